"""A folder in memory for what must not lie open on a disk, shared by the processes of one service on one machine."""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.gallery.errors import StorageUnwritable

# Folders in it are made for their owner alone, and looked at before use.
_MEMORY = Path("/dev/shm")  # nosec B108
_LOCK = ".lock"


class PrivateFolder:
    """A folder that is there as long as a process holds it; the last one removes it with all that is in it.

    What processes that were killed left behind is removed when the next one takes hold of any such folder. Mappings of
    files outlive them.

    Args:
        base: from `private_base`.
        name: of the folder; processes that give the same name share it.
    """

    def __init__(self, base: Path, name: str) -> None:
        self._base = base
        self._path = base / name
        self._handle: int | None = None

    @property
    def path(self) -> Path:
        """The folder, taken hold of on first use.

        Raises:
            StorageUnwritable: it cannot be made.
        """
        if self._handle is None:
            try:
                with _locked(self._base):
                    self._remove_the_dead()
                    self._path.mkdir(mode=0o700, exist_ok=True)
                    self._handle = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                    fcntl.flock(self._handle, fcntl.LOCK_SH)
            except OSError as error:
                raise StorageUnwritable(f"{self._path} cannot be made: {error.strerror}") from error
        return self._path

    def close(self) -> None:
        """Let go; whoever is the last removes it."""
        if self._handle is None:
            return
        with _locked(self._base):
            handle, self._handle = self._handle, None
            _remove_if_unheld(self._path, handle)
            os.close(handle)

    def _remove_the_dead(self) -> None:
        for path in self._base.iterdir():
            if path.name == _LOCK:
                continue
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            _remove_if_unheld(path, handle)
            os.close(handle)


def private_base(given: Path | None) -> Path:
    """The folder that private folders lie in, made where it is missing.

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
    return folder


def _remove_if_unheld(path: Path, handle: int) -> None:
    """Remove what no other process holds; the base is locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    """Hold the base alone, across processes."""
    handle = os.open(base / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
