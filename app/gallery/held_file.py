"""A lock beside a file, for work on it that only one process may do."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.gallery.errors import Busy

_PAUSE = 0.05  # seconds between two looks at a lock


@contextmanager
def held(file: Path, *, refusal: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a file's lock, or refuse; it dies with the process, and nothing is left beside the file.

    Args:
        file: need not be there, but its folder must be and take a file.
        refusal: what the error says where another process, or thread, holds it.
        patience: seconds to wait for them.

    Raises:
        Busy: somebody else holds it.
        OSError: the lock cannot be made.
    """
    place = file.parent.resolve() / f".{file.name}.lock"
    handle = _taken(place, refusal, time.monotonic() + patience)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)  # as long as it is held, so that it is nobody else's
        os.close(handle)


def _taken(place: Path, refusal: str, until: float) -> int:
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), place.lstat()):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            if time.monotonic() >= until:
                raise Busy(refusal) from error
            time.sleep(_PAUSE)
            continue
        except FileNotFoundError:
            pass
        os.close(handle)  # whoever held it removed it between the two calls
