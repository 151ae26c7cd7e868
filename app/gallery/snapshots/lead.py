"""Which process of a machine writes a gallery's snapshots."""

import fcntl
import os
from pathlib import Path

_FILE = "lead"


class SnapshotLead:
    """A lock on a file in a folder of snapshots, which dies with the process that holds it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None

    def take(self) -> bool:
        """Whether this process leads; once it does, it stays so until it resigns or ends, or the folder is removed."""
        if self._lock is not None and not self._is_there(self._lock):
            self.resign()  # others would take the lock of a new file beside this one
        if self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / _FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    def _is_there(self, lock: int) -> bool:
        try:
            return os.path.samestat(os.fstat(lock), (self._folder / _FILE).stat())
        except OSError:
            return False

    def resign(self) -> None:
        """Let another process lead."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
