"""What goes on in the background: indexes are tended, snapshots written, followers reported, old changes dropped."""

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

import structlog

from app.gallery.records import Gallery
from app.gallery.sql.failures import in_full
from app.gallery.sql.history import GalleryHistory
from app.gallery.views.background import Background
from app.gallery.views.building import Building
from app.gallery.views.follower_reports import FollowerReports
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.rounds import Rounds
from app.gallery.views.snapshot_keeping import SnapshotKeeping
from app.telemetry import INDEXED_TEMPLATES
from model.errors import FacegalleryError

_log = structlog.get_logger()
_PAUSE = 1.0  # seconds between two looks
_TOLD_AGAIN = 60.0  # seconds until a failure that goes on is logged again
_PIECES = 16  # of work on an index at one look: writers may be faster than that goes
_LAST_PIECE = 5.0  # seconds for what is being done then
_LAST_SNAPSHOTS = 10.0  # seconds after which no further one is begun then


class Upkeep:
    """A thread that tends the indexes of a process, and one that does its chores, which may take as long as they like.

    Of the processes that share a folder of snapshots one leads a gallery: it alone builds (see `Building`), compresses,
    merges and writes snapshots. The others take up what it has written, and so share its memory.

    Args:
        replicas: those that this process has.
        history: that they follow.
        source: where their indexes come from.
        meet: told of galleries that have changed, and of those that have no replica here.
        drop: forgets a replica whose gallery is gone, or of another extractor by now.
        chores: what else is done again and again; in a process that `is_ending` they stop at the next good place.
        pause: seconds between two looks, and between two rounds of chores.
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
        self._tending = Background("upkeep", self._look, pause=pause)
        self._doing = Background("chores", self._do_chores, pause=pause)
        self._rounds = Rounds(history)
        self._building = Building(snapshots=source.snapshot_interval > 0)
        self._keeping = SnapshotKeeping(history, source, quietly=self._quietly)
        self._told: dict[str, float] = {}  # reasons of failures, and when they were logged
        self._reports = FollowerReports(self.name, replicas, history, quietly=self._quietly)

    def announce(self) -> None:
        """Have others keep what the replicas need that are about to be loaded, or are there."""
        self._reports.start()

    def start(self) -> None:
        """Begin, where nothing was announced with that as well."""
        if not self._reports.started:
            self.announce()
        self._tending.start()
        self._doing.start()

    def stop(self) -> None:
        """End, after a last snapshot of each gallery that has changed.

        What waits for a database that does not answer is given up, and what takes long otherwise is left behind: if
        that is about an index, there is no last snapshot then, and the next start has more to replay.
        """
        until = time.monotonic() + _LAST_PIECE
        for one in (self._tending, self._doing):
            one.end()
        if self._doing.left_behind(_LAST_PIECE):
            _log.warning("chores.left_behind", meaning="the next start does them")
        if self._tending.left_behind(max(0.0, until - time.monotonic())):
            _log.warning("upkeep.left_behind", meaning="there is no last snapshot")
        else:
            self._quietly(self._last_snapshots)
            for replica in self._replicas():
                if replica.snapshots is not None:
                    replica.snapshots.resign()
        self._reports.stop()

    def tick(self) -> None:
        """Do once what the threads do."""
        self._look()
        self._do_chores()

    def _look(self) -> None:
        self._quietly(self._tend_all)
        if not self._rounds.idle:
            INDEXED_TEMPLATES.set(sum(replica.templates for replica in self._replicas()))
        self._reports.look()

    def _do_chores(self) -> None:
        for chore in self._chores:
            self._quietly(chore)

    def _tend_all(self) -> None:
        replicas = self._replicas()  # before the galleries are read: one that is not among them is gone
        changed, galleries = self._rounds.look(), self._rounds.galleries
        settled = {replica.gallery_id for replica in replicas} - changed
        self._quietly(self._keeping.look_at_keys, self._rounds.galleries)
        self._quietly(self._meet, [gallery for one, gallery in galleries.items() if one not in settled])
        for replica in self._rounds.due(replicas, changed):
            if not self._tending.is_ended():
                self._quietly(self._tend, replica, galleries.get(replica.gallery_id))
        for gone in changed - galleries.keys():
            self._keeping.forget(gone)

    def _tend(self, replica: GalleryReplica, gallery: Gallery | None) -> None:
        here = gallery is not None and replica.is_of(gallery)
        if gallery is None or not here or gallery.extractor != replica.extractor:
            self._let_go(replica, gone=not here)
            return
        try:
            self._bring_on(replica, gallery)
        except Exception:
            # Whoever was erased does not wait in the snapshots until what has failed goes well again.
            self._quietly(self._keeping.erase_owed, replica, gallery)
            raise

    def _bring_on(self, replica: GalleryReplica, gallery: Gallery) -> None:
        """Bring a replica up to date, tend it, and do what is to be done about its snapshots."""
        if replica.applied_revision < 0 and not self._building.waits(replica):
            self._quietly(self._reports.report, replica)  # as on a database that can only be read
        leads = self._keeping.leads(replica)
        if self._building.bring_on(replica, gallery, self._tending.is_ended, leads=leads) and leads:
            self._keeping.hurry(replica)  # others may wait for it
        if not leads:
            self._quietly(self._keeping.watch_erasure, replica, gallery)
        if replica.applied_revision < 0:
            return
        # Who leads may have no room for a snapshot.
        waits = leads is False and (replica.rebuild_wanted or not replica.neglected)
        tended = waits or self._tend_index(replica)
        if leads:
            self._keeping.keep(replica, gallery)
        if tended and self._rests(replica, gallery, leads):
            self._rounds.rest(replica)

    def load(self, replica: GalleryReplica, gallery: Gallery, given_up: Callable[[], bool]) -> None:
        """Load a replica before anybody waits for it; where another process builds its index, that comes later.

        What takes long to build is written at once: others wait for it, and the next gallery may take as long.
        """
        leads = self._keeping.leads(replica)
        if self._building.load(replica, gallery, given_up, leads=leads) and leads:
            self._quietly(self._keep_large, replica, gallery)

    def _keep_large(self, replica: GalleryReplica, gallery: Gallery) -> None:
        if replica.large:  # asked of the database, where a failure of it does not refuse what is loaded
            self._keeping.keep(replica, gallery)

    def _tend_index(self, replica: GalleryReplica) -> bool:
        """Do some of the work that keeps searches quick; answers whether that was all."""
        for _ in range(_PIECES):
            if self._tending.is_ended() or replica.rebuild_wanted:  # by now: the next look leaves it to who leads
                return False
            if not replica.tend():
                return True
        return False

    def _rests(self, replica: GalleryReplica, gallery: Gallery, leads: bool | None) -> bool:
        """Whether nothing is to be done until the gallery changes: its last snapshot is of now, written or taken up."""
        if replica.rebuild_wanted or replica.point != gallery.point:
            return False
        return self._keeping.rests(replica, gallery, leads)

    def _let_go(self, replica: GalleryReplica, *, gone: bool) -> None:
        """Forget a gallery that this process has no more to do with, and erase what it wrote of one that is gone."""
        self._keeping.forget(replica.gallery_id)
        if replica.snapshots is not None:
            replica.snapshots.resign()
        if gone:
            self._source.forget(replica.gallery)  # where that fails the next look tries again
        self._drop(replica)
        _log.info("gallery.let_go", gallery=replica.name, gone=gone)

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
        self._keeping.keep_last(replica, gallery)

    def _quietly(self, work: Callable[..., object], *arguments: object) -> None:
        """Do it, and live on if it fails: the next look tries again."""
        try:
            work(*arguments)
        except FacegalleryError as error:
            reason = "; ".join([in_full(error), *getattr(error, "__notes__", ())])
            if self._news(reason):
                _log.warning("upkeep.failed", reason=reason)
        except Exception as error:
            if self._news(repr(error)):
                _log.error("upkeep.failed", exc_info=error)

    def _news(self, reason: str) -> bool:
        """Whether a reason is to be told: what fails at every look is told once in a while."""
        clock = time.monotonic()
        self._told = {one: since for one, since in list(self._told.items()) if clock - since < _TOLD_AGAIN}
        return self._told.setdefault(reason, clock) == clock
