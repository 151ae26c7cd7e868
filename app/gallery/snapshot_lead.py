"""Which process of a machine writes a gallery's snapshots."""

import fcntl
import os
from pathlib import Path


class SnapshotLead:
    """A lock on a file in a folder of snapshots, which dies with the process that holds it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None

    def take(self) -> bool:
        """Whether this process leads; once it does, it stays so until it resigns or ends."""
        if self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / "lead", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    def resign(self) -> None:
        """Let another process lead."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
