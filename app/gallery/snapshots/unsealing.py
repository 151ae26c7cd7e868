"""Sealed copies of snapshots, opened into the folder in memory where processes share them."""

import fcntl
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from app.gallery.deadline import seconds_left
from app.gallery.snapshots.private_folder import make_private
from app.gallery.snapshots.sealed import FAILURES, SealedSnapshots

_PATIENCE = 120.0  # seconds that another process may take to open a sealed copy
_LOOK = 0.02  # seconds between two looks whether it has
_log = structlog.get_logger()


class Unsealing:
    """Opens sealed copies of one gallery's snapshots; one process of a machine does, the others wait and find it done.

    Args:
        folder: in memory, of that gallery and extractor; an opened copy lies there under its revision.
        sealed: the copies.
        gallery: name of the gallery, for the log.
    """

    def __init__(self, folder: Path, sealed: SealedSnapshots, *, gallery: str) -> None:
        self._folder = folder
        self._sealed = sealed
        self._gallery = gallery

    def opened(self, revision: int, place: Path) -> bool:
        """Whether a snapshot lies open at a place, now that its copy was opened if it did not.

        False where it cannot be opened though nothing is wrong with it: there is no room, or its key was destroyed.

        Raises:
            SnapshotDamaged: the copy is.
        """
        if place.exists():
            return True
        with self.alone() as draft:
            if place.exists():
                return True
            start = time.perf_counter()
            try:
                if not self._sealed.open(revision, draft):
                    return False
                draft.rename(place)
                if not self._sealed.place_of(revision).exists():  # erased while it was being opened
                    shutil.rmtree(place, ignore_errors=True)
                    return False
            except FAILURES as error:
                self._warn(revision, error)
                return False
        seconds = round(time.perf_counter() - start, 2)
        _log.info("snapshot.unsealed", gallery=self._gallery, revision=revision, seconds=seconds)
        return True

    def try_copy(self, revision: int) -> None:
        """See whether a copy opens, if it is there; memory may have no room for it beside one that lies open.

        Raises:
            SnapshotDamaged: it does not.
        """
        if revision not in self._sealed.revisions:
            return
        with self.alone():
            try:
                self._sealed.try_out(revision)
            except FAILURES as error:
                self._warn(revision, error)

    @contextmanager
    def alone(self) -> Iterator[Path]:
        """An empty folder to open a copy in, while no other process opens one; removed in the end, if it is there.

        Raises:
            TimeoutError: another process has been at it for long, or the request is out of time. That process may have
                been stopped; without an end of the waiting no service would start beside it.
        """
        make_private(self._folder)
        with (self._folder / "opening").open("a") as lock:
            _lock(lock.fileno(), until=time.monotonic() + min(_PATIENCE, seconds_left()))
            for left in self._folder.glob("opening-*"):  # by a process that was killed over it
                shutil.rmtree(left, ignore_errors=True)
            draft = self._folder / f"opening-{uuid.uuid4().hex[:8]}"
            draft.mkdir(mode=0o700)
            try:
                yield draft
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def _warn(self, revision: int, error: Exception) -> None:
        _log.warning("snapshot.not_opened", gallery=self._gallery, revision=revision, reason=str(error))


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
