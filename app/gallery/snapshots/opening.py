"""Where sealed copies are opened: by one process at a time."""

import fcntl
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.gallery.deadline import seconds_left

_PATIENCE = 120.0  # seconds that another process may take to open a sealed copy
_LOOK = 0.02  # seconds between two looks whether it has


@contextmanager
def opening(folder: Path) -> Iterator[Path]:
    """An empty folder to open a sealed copy in, for one process at a time; removed in the end, if it is there.

    Args:
        folder: of a gallery's snapshots in memory.

    Raises:
        TimeoutError: another process has been at it for long, or the request is out of time. That process may have been
            stopped; without an end of the waiting no service would start beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "opening").open("a") as lock:
        _lock(lock.fileno(), until=time.monotonic() + min(_PATIENCE, seconds_left()))
        for left in folder.glob("opening-*"):  # by a process that was killed over it
            shutil.rmtree(left, ignore_errors=True)
        draft = folder / f"opening-{uuid.uuid4().hex[:8]}"
        draft.mkdir(mode=0o700)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _lock(file: int, *, until: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise TimeoutError("another process has been opening it for too long") from None
            time.sleep(_LOOK)
        else:
            return
