"""What goes on in the background: indexes are tended, snapshots written, followers reported, old changes dropped."""

import contextvars
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from app.gallery.deadline import WaitLimit, waiting_at_most
from app.gallery.records import Gallery
from app.gallery.snapshots.kept import Snapshots
from app.gallery.sql.history import GalleryHistory
from app.gallery.views.building import Building
from app.gallery.views.follower_reports import FollowerReports
from app.gallery.views.index_source import IndexSource
from app.gallery.views.leader_watch import LeaderWatch
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.rounds import Rounds
from app.telemetry import INDEXED_TEMPLATES
from model.errors import FacegalleryError

_log = structlog.get_logger()
_PAUSE = 1.0  # seconds between two looks
_TOLD_AGAIN = 60.0  # seconds until a failure that goes on is logged again
_REST = 10  # times as long as an erasure took, before the next
_LOWER_PRIORITY = 10
_PIECES = 16  # of work on an index at one look: writers may be faster than that goes
_LAST_ANSWER = 0.5  # seconds for the database, once the process ends
_LAST_PIECE = 5.0  # seconds for what is being done then
_LAST_SNAPSHOTS = 10.0  # seconds after which no further one is begun then
_LEADER_SILENT = 600.0  # seconds; what a leader does in one piece may take minutes


@dataclass(slots=True)
class _Kept:
    """What is known of a gallery's snapshots.

    Args:
        revision: of the last one; -1: there is none.
        written: when, by the monotonic clock.
        erase_from: the earliest moment of the next that an erasure asks for.
        told: whether it was logged that they have no folder.
        erasing: how who leads looks to this process, which waits for it to erase something.
    """

    revision: int
    written: float = float("-inf")
    erase_from: float = float("-inf")
    told: bool = False
    erasing: LeaderWatch | None = None


class Upkeep:
    """One thread of low priority that tends the indexes of a process, and does chores at every look.

    Of the processes that share a folder of snapshots one leads a gallery: it alone builds (see `Building`), compresses,
    merges and writes snapshots. The others take up what it has written, and so share its memory.

    Args:
        replicas: those that this process has.
        history: that they follow.
        source: where their indexes come from.
        meet: told of galleries that have changed, and of those that have no replica here.
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
        self._limit = WaitLimit()
        # In the caller's context, which says on whose behalf the chores are done.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="upkeep", daemon=True)
        self._rounds = Rounds(history)
        self._building = Building(snapshots=source.snapshot_interval > 0)
        self._kept: dict[int, _Kept] = {}
        self._keys: Collection[str] = ()  # of all galleries' snapshots, when the vault was last asked
        self._asked = float("-inf")
        self._told: dict[str, float] = {}  # reasons of failures, and when they were logged
        self._reports = FollowerReports(self.name, replicas, history, quietly=self._quietly)

    def announce(self) -> None:
        """Have others keep what the replicas need that are about to be loaded, or are there."""
        self._reports.start()

    def start(self) -> None:
        """Begin, where nothing was announced with that as well."""
        if not self._reports.started:
            self.announce()
        self._thread.start()

    def stop(self) -> None:
        """End, after a last snapshot of each gallery that has changed.

        What waits for a database that does not answer is given up, and what takes long otherwise is left behind: there
        is no last snapshot then, and the next start has more to replay.
        """
        self._ended.set()
        self._limit.cut(_LAST_ANSWER)
        if self._thread.is_alive():
            self._thread.join(_LAST_PIECE)
        if self._thread.is_alive():
            _log.warning("upkeep.left_behind", meaning="there is no last snapshot")
        else:
            self._quietly(self._last_snapshots)
            for replica in self._replicas():
                if replica.snapshots is not None:
                    replica.snapshots.resign()
        self._reports.stop()

    def tick(self) -> None:
        """Look at the galleries, and do the other chores."""
        self._quietly(self._tend_all)
        for chore in self._chores:
            self._quietly(chore)
        if not self._rounds.idle:
            INDEXED_TEMPLATES.set(sum(replica.templates for replica in self._replicas()))
        self._reports.look()

    def _run(self) -> None:
        # Of this thread alone, on Linux: a search that wants the processor has it.
        with suppress(OSError):  # the whole process may have a lower one, which nobody but root may raise
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWER_PRIORITY)
        with waiting_at_most(self._limit):
            while not self._ended.wait(self._pause):
                self.tick()

    def _tend_all(self) -> None:
        replicas = self._replicas()  # before the galleries are read: one that is not among them is gone
        changed, galleries = self._rounds.look(), self._rounds.galleries
        settled = {replica.gallery_id for replica in replicas} - changed
        self._quietly(self._look_at_keys)
        self._quietly(self._meet, [gallery for one, gallery in galleries.items() if one not in settled])
        for replica in self._rounds.due(replicas, changed):
            if not self._ended.is_set():
                self._quietly(self._tend, replica, galleries.get(replica.gallery_id))
        for gone in changed - galleries.keys():
            self._kept.pop(gone, None)

    def _look_at_keys(self) -> None:
        """Ask the vault, for all galleries at once, which keys of snapshots there still are."""
        if self._source.snapshot_interval and time.monotonic() - self._asked >= self._source.snapshot_interval:
            self._keys = self._source.snapshot_keys(self._rounds.galleries)
            self._asked = time.monotonic()

    def _tend(self, replica: GalleryReplica, gallery: Gallery | None) -> None:
        here = gallery is not None and replica.is_of(gallery)
        if gallery is None or not here or gallery.extractor != replica.extractor:
            self._let_go(replica, gone=not here)
            return
        try:
            self._bring_on(replica, gallery)
        except Exception:
            # Whoever was erased does not wait in the snapshots until what has failed goes well again.
            self._quietly(self._erase_owed, replica, gallery)
            raise

    def _bring_on(self, replica: GalleryReplica, gallery: Gallery) -> None:
        """Bring a replica up to date, tend it, and do what is to be done about its snapshots."""
        if replica.applied_revision < 0 and not self._building.waits(replica):
            self._quietly(self._reports.report, replica)  # as on a database that can only be read
        snapshots = replica.snapshots
        leads = self._leads(replica)
        if self._building.bring_on(replica, gallery, self._ended.is_set, leads=leads) and leads:
            self._of(replica).written = float("-inf")  # others may wait for it
        if snapshots is not None and not leads:
            if gallery.erasure is not None:
                self._quietly(self._erase_for, replica, snapshots)
            else:
                self._of(replica).erasing = None
        if replica.applied_revision < 0:
            return
        # Who leads may have no room for a snapshot.
        waits = leads is False and (replica.rebuild_wanted or not replica.neglected)
        tended = waits or self._tend_index(replica)
        if leads:
            self._keep(replica, gallery)
        if tended and self._rests(replica, gallery, leads):
            self._rounds.rest(replica)

    def load(self, replica: GalleryReplica, gallery: Gallery, given_up: Callable[[], bool]) -> None:
        """Load a replica before anybody waits for it; where another process builds its index, that comes later.

        What takes long to build is written at once: others wait for it, and the next gallery may take as long.
        """
        leads = self._leads(replica)
        if self._building.load(replica, gallery, given_up, leads=leads) and leads:
            self._quietly(self._keep_large, replica, gallery)

    def _keep_large(self, replica: GalleryReplica, gallery: Gallery) -> None:
        if replica.large:
            self._keep(replica, gallery)

    def _keep(self, replica: GalleryReplica, gallery: Gallery) -> None:
        """Erase what is owed from the snapshots, and write one if it is due; for who leads."""
        if replica.snapshots is None or not self._source.snapshot_interval:
            return
        if gallery.erasure is not None:
            self._quietly(self._erase, replica)
        self._write_if_due(replica, replica.snapshots)

    def _tend_index(self, replica: GalleryReplica) -> bool:
        """Do some of the work that keeps searches quick; answers whether that was all."""
        for _ in range(_PIECES):
            if self._ended.is_set() or replica.rebuild_wanted:  # by now: the next look leaves it to who leads
                return False
            if not replica.tend():
                return True
        return False

    def _rests(self, replica: GalleryReplica, gallery: Gallery, leads: bool | None) -> bool:
        """Whether nothing is to be done until the gallery changes: its last snapshot is of now, written or taken up."""
        snapshots = replica.snapshots
        if replica.rebuild_wanted or replica.point != gallery.point:
            return False
        if snapshots is None:
            return True
        if gallery.erasure is not None:
            return False
        if leads is None or (leads and not self._source.snapshot_interval):
            return True
        return replica.applied_revision == (self._of(replica).revision if leads else snapshots.known)

    def _leads(self, replica: GalleryReplica) -> bool | None:
        """Whether this process writes the snapshots; None where there are none, or no folder, and each does its own."""
        if replica.snapshots is None:
            return None
        try:
            leads = replica.snapshots.lead()
        except OSError as error:
            if not self._of(replica).told:
                _log.error("snapshot.no_folder", gallery=replica.name, reason=str(error))
            self._of(replica).told = True
            return None
        self._of(replica).told = False
        return leads

    def _let_go(self, replica: GalleryReplica, *, gone: bool) -> None:
        """Forget a gallery that this process has no more to do with, and erase what it wrote of one that is gone."""
        self._kept.pop(replica.gallery_id, None)
        if replica.snapshots is not None:
            replica.snapshots.resign()
        if gone:
            self._source.forget(replica.gallery)  # where that fails the next look tries again
        self._drop(replica)
        _log.info("gallery.let_go", gallery=replica.name, gone=gone)

    def _erase_owed(self, replica: GalleryReplica, gallery: Gallery) -> None:
        """Erase what is owed, whether this process leads or not, and whether there is a view or not."""
        if replica.snapshots is None or gallery.erasure is None:
            return
        if self._leads(replica):
            self._erase(replica)
        else:
            self._erase_for(replica, replica.snapshots)

    def _erase(self, replica: GalleryReplica) -> None:
        """Write the snapshot without what was erased; many erasures in a row get one every now and then."""
        kept, start = self._of(replica), time.monotonic()
        if start < kept.erase_from:
            return
        gallery = self._history.gallery(replica.gallery_id)
        if gallery is None or gallery.erasure is None:  # another machine has done it since, or a request here
            return
        try:
            if replica.erase_snapshots():
                kept.revision, kept.written = self._found(replica), time.monotonic()
        finally:
            kept.erase_from = time.monotonic() + _REST * (time.monotonic() - start)

    def _erase_for(self, replica: GalleryReplica, snapshots: Snapshots) -> None:
        """Erase in place of who leads, where that process was stopped or hangs, or where nobody can lead."""
        kept = self._of(replica)
        kept.erasing = kept.erasing or LeaderWatch()
        kept.erasing.look(snapshots.lead_sign)
        if kept.erasing.silence < _LEADER_SILENT:
            return
        replica.drop_snapshots()
        _log.error("snapshot.leader_silent", gallery=replica.name, meaning="its snapshots were erased for it")

    def _write_if_due(self, replica: GalleryReplica, snapshots: Snapshots) -> None:
        kept, interval = self._of(replica), self._source.snapshot_interval
        if replica.rebuild_wanted or time.monotonic() - kept.written < interval:
            return
        kept_now = replica.applied_revision == kept.revision == self._found(replica)
        # One whose key is not among those that were there may have a newer one.
        if not kept_now or (snapshots.key_id not in self._keys and snapshots.outdated):
            self._write(replica)

    def _write(self, replica: GalleryReplica) -> None:
        kept = self._of(replica)
        try:
            revision = replica.write_snapshot()
            kept.revision = -1 if revision is None else revision
        except (OSError, FacegalleryError) as error:
            # The service goes on without: a restart takes longer, and nothing is lost.
            _log.error("snapshot.failed", gallery=replica.name, reason=str(error))
        finally:
            kept.written = time.monotonic()

    def _last_snapshots(self) -> None:
        until, changed = time.monotonic() + _LAST_SNAPSHOTS, self._rounds.look()
        for replica in self._rounds.due(self._replicas(), changed):
            if time.monotonic() < until:  # of a thousand that have changed the rest is replayed with the next start
                self._quietly(self._last_snapshot, replica)

    def _last_snapshot(self, replica: GalleryReplica) -> None:
        gallery = self._history.gallery(replica.gallery_id)
        here = gallery is not None and replica.is_of(gallery)
        if gallery is None or not here or gallery.extractor != replica.extractor:
            self._let_go(replica, gone=not here)
            return
        if replica.snapshots is None or not self._source.snapshot_interval or replica.rebuild_wanted:
            return
        if not self._leads(replica):
            return
        if gallery.erasure is not None:
            self._of(replica).erase_from = float("-inf")
            self._erase(replica)
        if replica.applied_revision not in {-1, self._of(replica).revision}:
            self._write(replica)

    def _of(self, replica: GalleryReplica) -> _Kept:
        kept = self._kept.get(replica.gallery_id)
        return self._kept.setdefault(replica.gallery_id, _Kept(self._found(replica))) if kept is None else kept

    @staticmethod
    def _found(replica: GalleryReplica) -> int:
        return replica.snapshots.lasting if replica.snapshots is not None else -1

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
