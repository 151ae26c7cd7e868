"""What goes on in the background: indexes are tended, snapshots written, followers reported, old changes dropped."""

import contextvars
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

import structlog

from app.gallery.history import GalleryHistory
from app.gallery.index import SegmentedIndex
from app.gallery.index_source import IndexSource
from app.gallery.records import Gallery
from app.gallery.replica import GalleryReplica
from app.gallery.snapshots import Snapshots
from app.telemetry import INDEXED_TEMPLATES
from model.errors import FacegalleryError

_log = structlog.get_logger()
_PAUSE = 1.0  # seconds between two looks
_TOLD_AGAIN = 60.0  # seconds until a failure that goes on is logged again
_REPORTS = 30.0  # seconds between two reports to other processes
_REST = 10  # times as long as an erasure took, before the next
_LOWER_PRIORITY = 10


class Upkeep:
    """One thread of low priority that tends the indexes of a process, and does chores at every look.

    Of the processes that share a folder of snapshots one leads a gallery: it alone compresses, merges and writes
    snapshots. The others take up what it has written, and so share its memory.

    Args:
        replicas: those that this process has.
        history: that they follow.
        source: where their indexes come from.
        meet: told at every look of all galleries that there are.
        drop: forgets a replica whose gallery is gone, or of another extractor by now.
        chores: what else is done at every look.
        pause: seconds between two looks.
    """

    def __init__(
        self,
        replicas: Callable[[], list[GalleryReplica]],
        history: GalleryHistory,
        source: IndexSource,
        *,
        meet: Callable[[Iterable[Gallery]], None] = lambda _galleries: None,
        drop: Callable[[GalleryReplica], None] = lambda _replica: None,
        chores: Sequence[Callable[[], None]] = (),
        pause: float = _PAUSE,
    ) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._replicas = replicas
        self._history = history
        self._source = source
        self._meet = meet
        self._drop = drop
        self._chores = chores
        self._pause = pause
        self._ended = threading.Event()
        # In the caller's context, which says on whose behalf the chores are done.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="upkeep", daemon=True)
        self._snapshots: dict[int, tuple[int, float]] = {}  # revision and time of the last snapshot
        self._erasing_since: dict[int, float] = {}
        self._erase_from: dict[int, float] = {}  # the earliest moment of the next erasure that was wished for
        self._looked_at: set[int] = set()  # galleries whose index was asked what it has to erase
        self._reported = 0.0
        self._told: dict[str, float] = {}  # reasons of failures, and when they were logged
        self._without_folder: set[int] = set()  # galleries whose snapshots have no folder; told once

    def start(self) -> None:
        """Begin."""
        for replica in self._replicas():
            self._quietly(self._report, replica)
        self._thread.start()

    def stop(self) -> None:
        """End, after a last snapshot of each gallery that has changed."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for replica in self._replicas():
            self._quietly(self._last_snapshot, replica)
            if replica.snapshots is not None:
                replica.snapshots.resign()
        self._quietly(lambda: self._history.leave([self.name]))

    def tick(self) -> None:
        """Look at every gallery once, and do the other chores."""
        self._quietly(self._tend_all)
        for chore in self._chores:
            self._quietly(chore)
        INDEXED_TEMPLATES.set(sum(replica.templates for replica in self._replicas()))
        if time.monotonic() - self._reported >= _REPORTS:
            self._reported = time.monotonic()
            for replica in self._replicas():
                self._quietly(self._report, replica)

    def _run(self) -> None:
        # Of this thread alone, on Linux: a search that wants the processor has it.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWER_PRIORITY)
        while not self._ended.wait(self._pause):
            self.tick()

    def _tend_all(self) -> None:
        replicas = self._replicas()  # before the galleries are read: one that is not among them is gone
        galleries = self._history.galleries()
        self._quietly(self._meet, galleries.values())
        for replica in replicas:
            if not self._ended.is_set():
                self._quietly(self._tend, replica, galleries.get(replica.gallery_id))

    def _tend(self, replica: GalleryReplica, gallery: Gallery | None) -> None:
        if gallery is None or gallery.extractor != replica.extractor:
            self._let_go(replica, gone=gallery is None)
            return
        replica.follow(gallery.revision, self._ended.is_set)
        if replica.applied_revision < 0:
            return
        if replica.rebuild_wanted:
            replica.rebuild(self._ended.is_set)
        snapshots = replica.snapshots
        leads = snapshots is not None and self._leads(replica, snapshots)
        if leads is False and snapshots is not None:
            replica.adopt_snapshot()
            if not replica.neglected:  # who leads may have no room for a snapshot
                return
        while not self._ended.is_set() and replica.tend(self._ended.is_set):
            pass
        if leads and snapshots is not None and self._source.snapshot_interval:
            self._erase_if_wished(replica, snapshots)
            self._write_if_due(replica)

    def _leads(self, replica: GalleryReplica, snapshots: Snapshots) -> bool | None:
        """Whether this process writes the snapshots; None where there is no folder for them, and each does its own."""
        try:
            leads = snapshots.lead()
        except OSError as error:
            if replica.gallery_id not in self._without_folder:
                self._without_folder.add(replica.gallery_id)
                _log.error("snapshot.no_folder", gallery=replica.name, reason=str(error))
            return None
        self._without_folder.discard(replica.gallery_id)
        return leads

    def _let_go(self, replica: GalleryReplica, *, gone: bool) -> None:
        """Forget a gallery that this process has no more to do with, and erase what it wrote of one that is gone."""
        for kept in (self._snapshots, self._erasing_since, self._erase_from):
            kept.pop(replica.gallery_id, None)
        self._looked_at.discard(replica.gallery_id)
        if replica.snapshots is not None:
            replica.snapshots.resign()
        if gone:
            self._source.forget(replica.gallery)  # where that fails the next look tries again
        self._drop(replica)
        _log.info("gallery.let_go", gallery=replica.name, gone=gone)

    def _erase_if_wished(self, replica: GalleryReplica, snapshots: Snapshots) -> None:
        """Write the snapshot without what was erased; many erasures in a row get one every now and then."""
        start = time.monotonic()
        if not snapshots.erasure.there or start < self._erase_from.get(replica.gallery_id, start):
            return
        self._erase(replica, snapshots)
        self._erase_from[replica.gallery_id] = time.monotonic() + _REST * (time.monotonic() - start)

    def _erase(self, replica: GalleryReplica, snapshots: Snapshots) -> None:
        if replica.erase_snapshots():
            self._snapshots[replica.gallery_id] = (snapshots.lasting, time.monotonic())

    def _write_if_due(self, replica: GalleryReplica) -> None:
        if replica.rebuild_wanted:
            return
        clock = time.monotonic()
        index = replica.view.index
        if isinstance(index, SegmentedIndex) and index.erase_pending:
            # How long an earlier process has known of it nobody knows.
            first = clock if replica.gallery_id in self._looked_at else float("-inf")
            since = self._erasing_since.setdefault(replica.gallery_id, first)
        else:
            self._erasing_since.pop(replica.gallery_id, None)
            since = clock
        self._looked_at.add(replica.gallery_id)
        revision, written = self._snapshots.get(replica.gallery_id, (self._found(replica), float("-inf")))
        erase = clock - since >= self._source.erase_interval and replica.gallery_id in self._erasing_since
        changed = replica.applied_revision != revision
        if erase or (changed and clock - written >= self._source.snapshot_interval):
            self._write(replica, erase=erase)

    def _write(self, replica: GalleryReplica, *, erase: bool) -> None:
        try:
            revision = replica.write_snapshot(erase=erase)
        except (OSError, FacegalleryError) as error:
            # The service goes on without: a restart takes longer, and nothing is lost.
            _log.error("snapshot.failed", gallery=replica.name, reason=str(error))
            revision = self._snapshots.get(replica.gallery_id, (-1, 0.0))[0]
        self._snapshots[replica.gallery_id] = (-1 if revision is None else revision, time.monotonic())

    def _last_snapshot(self, replica: GalleryReplica) -> None:
        gallery = self._history.gallery(replica.gallery_id)
        if gallery is None or gallery.extractor != replica.extractor:
            self._let_go(replica, gone=gallery is None)
            return
        if replica.snapshots is None or not self._source.snapshot_interval or replica.rebuild_wanted:
            return
        if not self._leads(replica, replica.snapshots):
            return
        if replica.snapshots.erasure.there:
            self._erase(replica, replica.snapshots)
        revision, _ = self._snapshots.get(replica.gallery_id, (self._found(replica), 0.0))
        if replica.applied_revision not in {-1, revision}:
            self._write(replica, erase=False)

    @staticmethod
    def _found(replica: GalleryReplica) -> int:
        return replica.snapshots.lasting if replica.snapshots is not None else -1

    def _report(self, replica: GalleryReplica) -> None:
        self._history.report(replica.gallery_id, self.name, replica.applied_revision)
        if replica.snapshots is not None and (revision := self._found(replica)) >= 0:
            place = f"snapshot {socket.gethostname()}:{replica.snapshots.folder}"[-200:]
            self._history.report(replica.gallery_id, place, revision)
        self._history.prune(replica.gallery_id)

    def _quietly(self, work: Callable[..., object], *arguments: object) -> None:
        """Do it, and live on if it fails: the next look tries again."""
        try:
            work(*arguments)
        except FacegalleryError as error:
            reason = "; ".join([str(error), *getattr(error, "__notes__", ())])
            if self._news(reason):
                _log.warning("upkeep.failed", reason=reason)
        except Exception as error:
            if self._news(repr(error)):
                _log.error("upkeep.failed", exc_info=error)

    def _news(self, reason: str) -> bool:
        """Whether a reason is to be told: what fails at every look is told once in a while."""
        clock = time.monotonic()
        self._told = {one: since for one, since in self._told.items() if clock - since < _TOLD_AGAIN}
        return self._told.setdefault(reason, clock) == clock
