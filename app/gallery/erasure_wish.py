"""The wish of any process that the one which leads erases what snapshots remember of erased people."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class ErasureWish:
    """A file in a folder that outlasts stops and reboots; so what was wished for is done, by whoever leads next.

    Args:
        folder: of the snapshots; need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self._wish, self._taken = folder / "erase", folder / "erasing"

    def make(self) -> None:
        """Wish."""
        self._wish.parent.mkdir(parents=True, exist_ok=True)
        self._wish.touch()

    @property
    def there(self) -> bool:
        """Whether somebody wished, and it is not done."""
        return self._wish.exists() or self._taken.exists()

    @contextmanager
    def granted(self) -> Iterator[None]:
        """Do it within. Who wishes meanwhile wishes anew; where it fails, or the process dies, the wish stays."""
        with suppress(OSError):  # nobody wished, or nothing can be written
            self._wish.rename(self._taken)
        yield
        self._taken.unlink(missing_ok=True)
