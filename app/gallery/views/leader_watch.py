"""What a process that waits for the one which leads sees of it."""

import time


class LeaderWatch:
    """Signs of life of who leads (see `SnapshotLead`), since something was begun to be waited for."""

    def __init__(self) -> None:
        self.signs = 0
        """How many there were."""
        self._last: int | None = None
        self._since: float | None = None

    def look(self, sign: int | None) -> None:
        """Note the last one that there is now."""
        if self._since is not None and sign == self._last:
            return
        self.signs += self._since is not None
        self._last, self._since = sign, time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds for which there was none."""
        return 0.0 if self._since is None else time.monotonic() - self._since
