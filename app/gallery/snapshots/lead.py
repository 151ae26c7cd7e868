"""Which process of a machine writes a gallery's snapshots."""

import fcntl
import os
import threading
import time
from pathlib import Path

from app.gallery.snapshots.private_folder import make_private

_FILE = "lead"
_EVERY = 10.0  # seconds between two signs of life


class SnapshotLead:
    """A lock on a file in a folder of snapshots, which dies with the process that holds it.

    It does not die with one that is stopped or hangs, so that process also has to touch the file: see `sign`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None
        self._resigned = False
        self._changing = threading.Lock()  # who erases a gallery and the upkeep meet here
        self._touched = float("-inf")

    def take(self) -> bool:
        """Whether this process leads; once it does, it stays so until it resigns or ends, or the folder is removed.

        Raises:
            OSError: the file cannot be made, or locked; who leads is not known.
        """
        with self._changing:
            if self._resigned:
                return False
            if self._lock is not None and not self._is_there(self._lock):
                os.close(self._lock)  # others would take the lock of a new file beside this one
                self._lock = None
            if self._lock is None:
                self._lock = self._locked()
            return self._lock is not None

    def touch(self) -> None:
        """Give a sign of life, if this process leads, and the last one was a while ago.

        Raises:
            OSError: the file does not take it.
        """
        with self._changing:
            if self._lock is not None and time.monotonic() - self._touched >= _EVERY:
                os.utime(self._lock)
                self._touched = time.monotonic()

    @property
    def sign(self) -> int | None:
        """The last sign of life of who leads: it changes as long as that process gives any; None: nobody does.

        A moment by that process's clock, in nanoseconds, and only good for being compared with an earlier one.
        """
        try:
            return (self._folder / _FILE).stat().st_mtime_ns
        except OSError:
            return None

    def resign(self) -> None:
        """Let another process lead, for good: who still has this to do with the gallery does not take it back."""
        self._resigned = True
        self.pause()

    def pause(self) -> None:
        """Let another process lead, until this one asks for it again."""
        with self._changing:
            lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _locked(self) -> int | None:
        """The file, locked; None where another has it."""
        make_private(self._folder)
        lock = os.open(self._folder / _FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return lock

    def _is_there(self, lock: int) -> bool:
        try:
            return os.path.samestat(os.fstat(lock), (self._folder / _FILE).stat())
        except OSError:
            return False
