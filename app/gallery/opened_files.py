"""Sealed files opened once for all processes of a machine: a private file in memory that every one of them maps."""

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.gallery.errors import StorageUnwritable
from app.gallery.sealed_files import open_file

_MEMORY = Path("/dev/shm")
_LOCK = ".lock"


class OpenedFile:
    """An opened file at `path`, which stays as long as any process holds it; a mapping may outlive it."""

    def __init__(self, path: Path, folder: Path, handle: int) -> None:
        self.path = path
        self._folder = folder
        self._handle = handle

    def close(self) -> None:
        """Let go; whoever is the last removes the file."""
        if self._handle < 0:
            return
        with _locked(self._folder):
            _remove_if_unused(self.path, self._handle)
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> "OpenedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_shared(sealed: Path, *, key: bytes, associated: bytes, folder: Path) -> OpenedFile:
    """The opened file of a sealed one: the first process decrypts it, the others take what is there.

    Args:
        sealed: what `seal_file` wrote.
        key: as it was sealed with; it is part of the name, so that nobody gets the file without it.
        associated: as it was sealed with.
        folder: from `private_folder`.

    Raises:
        FileTampered, StorageUnwritable: as `open_file`.
    """
    with sealed.open("rb") as reader:
        header = reader.read(64)  # holds a random nonce: two files have two names
    path = folder / hashlib.blake2b(header + associated, key=key, digest_size=16).hexdigest()
    with _locked(folder):
        if not path.exists():
            open_file(sealed, path, key, associated)
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        fcntl.flock(handle, fcntl.LOCK_SH)
        return OpenedFile(path, folder, handle)


def private_folder(given: Path | None) -> Path:
    """The folder of opened files, made where it is missing; what processes that died left there is removed.

    Args:
        given: a folder on a file system in memory; None: one for this user in /dev/shm.

    Raises:
        StorageUnwritable: it cannot be made, or others than this user may enter it.
    """
    if given is None and not _MEMORY.is_dir():
        raise StorageUnwritable("there is no /dev/shm here; set FACEGALLERY_RUNTIME_DIR to a folder in memory")
    folder = given or _MEMORY / f"facegallery-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise StorageUnwritable(f"{folder} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise StorageUnwritable(f"{folder} must be a folder of this user that nobody else may enter (chmod 700)")
    with _locked(folder):
        for path in folder.iterdir():
            if path.name == _LOCK:
                continue
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            _remove_if_unused(path, handle)
            os.close(handle)
    return folder


def _remove_if_unused(path: Path, handle: int) -> None:
    """Remove the file unless another process holds it; the folder is locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder alone, across processes."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
