"""A lock beside a file, for work on it that only one process may do."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.gallery.errors import Busy


@contextmanager
def held(file: Path, *, refusal: str) -> Iterator[None]:
    """Hold a file's lock, or refuse; it dies with the process, and nothing is left beside the file.

    Args:
        file: need not be there, but its folder must be and take a file.
        refusal: what the error says where another process, or thread, holds it.

    Raises:
        Busy: somebody else holds it.
        OSError: the lock cannot be made.
    """
    place = file.parent.resolve() / f".{file.name}.lock"
    handle = _taken(place, refusal)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)  # as long as it is held, so that it is nobody else's
        os.close(handle)


def _taken(place: Path, refusal: str) -> int:
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), place.lstat()):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise Busy(refusal) from error
        except FileNotFoundError:
            pass
        os.close(handle)  # whoever held it removed it between the two calls
