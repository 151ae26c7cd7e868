"""A folder in memory for what must not lie open on a disk, shared by the processes of one service on one machine."""

import fcntl
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from hashlib import blake2b
from pathlib import Path

from app.gallery.errors import Busy, StorageUnwritable
from app.gallery.held_file import held

# Folders in it are made for their owner alone, and looked at before use.
_MEMORY = Path("/dev/shm")  # nosec B108
_PATIENCE, _PATIENCE_AT_THE_END = 30.0, 2.0  # seconds; a folder is made, or removed, within much less
_OURS = "facegallery"  # in a folder that is given, which others may use, too
_NAME = re.compile(r"[0-9a-f]{32}")  # of the folders in it


class PrivateFolder:
    """A folder that is there as long as a process holds it; the last one removes it with all that is in it.

    What processes that were killed left behind is removed when the next one takes hold of any such folder, and nothing
    else that lies in the base is. Mappings of files outlive them.

    Args:
        base: from `private_base`.
        name: of the folder; processes that give the same name share it.
    """

    def __init__(self, base: Path, name: str) -> None:
        self._base = base
        self._path = base / blake2b(name.encode(), digest_size=16).hexdigest()  # of a form that nobody else's has
        self._handle: int | None = None
        self._taking = threading.Lock()

    @property
    def path(self) -> Path:
        """The folder, taken hold of on first use.

        Raises:
            StorageUnwritable: it cannot be made.
        """
        with self._taking:  # a second handle, of another thread, would outlive `close`
            if self._handle is None:
                self._take_hold()
        return self._path

    def close(self) -> None:
        """Let go; whoever is the last removes it. Where another process has hung at that, the next one does.

        No folder that is gone, or full, stops the end of a service.
        """
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        try:
            with suppress(Busy, OSError), _locked(self._base, _PATIENCE_AT_THE_END):
                _remove_if_unheld(self._path, handle)
        finally:
            os.close(handle)

    def _take_hold(self) -> None:
        try:
            with _locked(self._base, _PATIENCE):
                self._remove_the_dead()
                self._path.mkdir(mode=0o700, exist_ok=True)
                self._handle = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                fcntl.flock(self._handle, fcntl.LOCK_SH)
        except OSError as error:
            raise StorageUnwritable(f"{self._path} cannot be made: {error.strerror}") from error
        except Busy as error:
            raise StorageUnwritable(f"{self._path} cannot be made: {error}") from error

    def _remove_the_dead(self) -> None:
        for path in self._base.iterdir():
            if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                _remove_if_unheld(path, handle)
                os.close(handle)


def private_base(given: Path | None, *, apart_from: Sequence[Path] = ()) -> Path:
    """The folder that private folders lie in, made where it is missing.

    Args:
        given: a folder on a file system in memory, in which `facegallery` is the service's own; None: one for this user
            in /dev/shm.
        apart_from: folders that the given one may neither be, nor hold, nor lie in.

    Raises:
        StorageUnwritable: it cannot be made, others than this user may enter it, or it is not apart.
    """
    if given is None:
        if not _MEMORY.is_dir():
            raise StorageUnwritable("there is no /dev/shm here; set FACEGALLERY_RUNTIME_DIR to a folder in memory")
        return _made(_MEMORY / f"facegallery-{os.getuid()}")
    place = given.resolve()
    for other in (folder.resolve() for folder in apart_from):
        if place.is_relative_to(other) or other.is_relative_to(place):
            raise StorageUnwritable(f"FACEGALLERY_RUNTIME_DIR, {given}, must lie apart from {other}, which is kept")
    return _made(_made(given) / _OURS)


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone: `mkdir` leaves those to the umask.

    Raises:
        OSError: it cannot be made.
    """
    if not folder.parent.exists():
        make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def _made(folder: Path) -> Path:
    """A folder of this user alone, made where it is missing."""
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
    with suppress(OSError):  # by its own name a thread that was left behind would put files into it meanwhile
        path = path.rename(path.with_name(secrets.token_hex(16)))
    shutil.rmtree(path, ignore_errors=True)


def _locked(base: Path, patience: float) -> AbstractContextManager[None]:
    """Hold the base alone, across processes, after so many seconds of waiting for others at most."""
    return held(base / _OURS, refusal=f"another process has held {base} for too long", patience=patience)
