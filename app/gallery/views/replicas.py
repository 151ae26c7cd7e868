"""The galleries that this process has an index of, and what follows when something in them was erased."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial

import structlog

from app.gallery.engines import storage_name, storage_prefix
from app.gallery.engines.leftovers import EngineLeftovers
from app.gallery.engines.protocol import STORAGE
from app.gallery.errors import Busy, ExtractorMismatch, GalleryNotFound
from app.gallery.extractor_check import check_extractor
from app.gallery.names import normalise_gallery_name
from app.gallery.points import Point
from app.gallery.records import Gallery
from app.gallery.sql.failures import in_full
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.try_each import try_each
from app.gallery.views.gallery_reading import never
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.turns import Turns
from app.gallery.views.upkeep import Upkeep
from model.errors import FacegalleryError

_LOOKS = 60  # within which each gallery has its turn
_MOMENT = 1.0  # seconds for which what all galleries have reached is not read again to tell how far one is behind
_log = structlog.get_logger()


class Replicas:
    """One replica for each gallery, made on first use; every method may be called from any thread.

    Args:
        store: that has the galleries.
        history: that replicas are loaded from and follow.
        indexes: where their indexes come from.
        extractor: identity of the extractor that runs; galleries of others get no replica.
    """

    def __init__(self, store: GalleryStore, history: GalleryHistory, indexes: IndexSource, *, extractor: str) -> None:
        self._store = store
        self._history = history
        self._indexes = indexes
        self._extractor = extractor
        self._by_gallery: dict[int, GalleryReplica] = {}
        self._lock = threading.Lock()
        self._upkeep: Upkeep | None = None
        self._leftovers = EngineLeftovers(store.engine, indexes.engine) if indexes.engine is not None else None
        self._looks = Turns(calls=_LOOKS, at_least=1)
        self._points: tuple[float, dict[int, Point]] = float("-inf"), {}  # of all galleries, and when they were read
        self._owed: dict[tuple[int, datetime], Gallery] = {}  # in which an erasure could not be followed yet

    def start(self, chores: Sequence[Callable[[], None]], given_up: Callable[[], bool] = never) -> None:
        """Load the index of every gallery that belongs to this extractor, log the others as refused, tend them all.

        Args:
            chores: done in the background at every look, each second or so.
            given_up: whether the process is ending already; indexes that are not built are left so.
        """
        leftovers = [self._leftovers.look] if self._leftovers is not None else []
        self._upkeep = Upkeep(
            self.all,
            self._history,
            self._indexes,
            meet=self._take_up,
            drop=self._let_go,
            chores=[*chores, self.follow_again, self.look_at_engine, *leftovers],
        )
        served = list[tuple[Gallery, GalleryReplica]]()
        for gallery in self._store.galleries():
            with _refusing(gallery):
                served.append((gallery, self.of(gallery)))
        self._upkeep.announce()  # before they are read: what comes meanwhile is not dropped
        for gallery, replica in served:
            with _refusing(gallery):
                self._upkeep.load(replica, gallery, given_up)
        self._upkeep.start()

    def stop(self) -> None:
        """End the upkeep, with a last snapshot of what has changed."""
        if self._upkeep is not None:
            self._upkeep.stop()
        for replica in self.all():  # what the upkeep has left behind leads no more
            if replica.snapshots is not None:
                replica.snapshots.resign()

    def all(self) -> list[GalleryReplica]:
        """Those that are there."""
        with self._lock:
            return list(self._by_gallery.values())

    def of(self, gallery: Gallery) -> GalleryReplica:
        """The gallery's replica, as it is.

        One of a gallery that was erased meanwhile is let go by the upkeep at its next look.

        Raises:
            ExtractorMismatch: the gallery belongs to another extractor.
            DatabaseUnavailable, Busy, StorageUnwritable, IndexEngineUnusable: of the engine, where it is outside.
        """
        check_extractor(gallery, self._extractor)
        with self._lock:
            replica = self._by_gallery.get(gallery.id)
        if replica is not None and replica.is_of(gallery):
            return replica
        # An engine may take long over it, and the other galleries do not wait for that. Of two that are made at once
        # one is dropped; it has nothing of its own yet.
        made = GalleryReplica(
            gallery,
            self._history,
            partial(self._indexes.make, gallery),
            self._indexes.snapshots_of(gallery),
            tended=self._upkeep is not None,
        )
        with self._lock:
            replica = self._by_gallery.get(gallery.id)
            if replica is not None and replica.is_of(gallery):
                return replica
            self._by_gallery[gallery.id] = made
            if replica is not None:  # of one that had the id in a history that was undone: `follow_again` forgets it
                self._owed[_which(replica.gallery)] = replica.gallery
        if replica is not None and replica.snapshots is not None:
            replica.snapshots.resign()
        return made

    def up_to_date(self, gallery: str) -> GalleryReplica:
        """The replica of the gallery with that name, brought up to date.

        Raises:
            GalleryNotFound, ExtractorMismatch: as named.
        """
        found = self._store.gallery(normalise_gallery_name(gallery))
        replica = self.of(found)
        replica.catch_up(*found.point)
        return replica

    def _let_go(self, replica: GalleryReplica) -> None:
        with self._lock:
            if self._by_gallery.get(replica.gallery_id) is replica:
                del self._by_gallery[replica.gallery_id]

    def _take_up(self, galleries: Iterable[Gallery]) -> None:
        """Have the upkeep load what was made elsewhere, or moved to this extractor, before somebody waits for it."""
        try_each(partial(self.of, gallery) for gallery in galleries if gallery.extractor == self._extractor)

    def lag(self) -> int:
        """How many revisions this process is behind, in the gallery where it is most; its next call catches up.

        What other processes have written counts a moment later: probes of many load balancers share one reading.
        """
        read, present = self._points
        if (clock := time.monotonic()) - read >= _MOMENT:
            present = self._history.points()
            self._points = clock, present
        return max((_behind(one.point, present.get(one.gallery_id)) for one in self.all()), default=0)

    def awaited(self) -> int:
        """In how many galleries calls are refused until the upkeep has loaded the index."""
        return sum(one.awaited() for one in self.all())

    # -- after an erasure

    def follow(self, gallery: Gallery) -> None:
        """Bring this process's index up to date after an erasure, if it has one, or an engine that keeps one.

        What an engine has of extractors that the gallery has left is dropped: nothing follows there. Of a gallery that
        was erased itself nothing is kept, and its replica goes.

        Raises:
            DatabaseUnavailable, Busy: the engine or the vault did not do its part; the upkeep tries again.
        """
        with self._lock:
            self._owed[_which(gallery)] = gallery
        present = None
        with suppress(GalleryNotFound):
            present = self._store.gallery(gallery.name)
        if present is None or _which(present) != _which(gallery):
            self._forget(gallery)  # it is gone, though another may have its name
        else:
            self._follow_present(present)
        with self._lock:
            if self._owed.get(_which(gallery)) is gallery:  # not what another erasure has come to owe meanwhile
                del self._owed[_which(gallery)]

    def follow_again(self) -> None:
        """Do what an engine could not do at the moment of an erasure.

        Raises:
            DatabaseUnavailable, Busy: as `follow`, of one gallery or several; the others were followed.
        """
        with self._lock:
            owed = list(self._owed.values())
        self._follow_each(owed)

    def settle_engine(self) -> None:
        """Bring an engine up to date with every gallery, and have it drop what nobody needs, now.

        Raises:
            DatabaseUnavailable, Busy: as `follow`, of one gallery or several; the others are settled.
        """
        if self._leftovers is not None:
            try_each([self._leftovers.sweep, lambda: self._follow_each(self._store.galleries())])

    def look_at_engine(self) -> None:
        """Of some galleries in turn, see whether an engine outside the process has lost what it was told.

        Raises:
            DatabaseUnavailable: it does not answer; it is not waited for again before the next turn.
        """
        if self._indexes.engine is not None:
            for replica in self._looks.take(self.all()):
                replica.look_at_engine()

    def _follow_each(self, galleries: Sequence[Gallery]) -> None:
        if galleries and self._indexes.engine is not None:
            self._indexes.engine.names(STORAGE)  # one that is away is waited for here, and not for each gallery anew
        try_each(partial(self.follow, gallery) for gallery in galleries)

    def drop_gone(self) -> None:
        """Erase the snapshots of galleries that there are no more: whose erasure broke off, or that a restore undid.

        Raises:
            FacegalleryError: the vault or the database does not answer; the next sweep tries again.
        """
        self._indexes.drop_gone(self._history.points)

    def _forget(self, gone: Gallery) -> None:
        """Erase what is kept of a gallery that was erased itself, and let its replica go."""
        self._indexes.forget(gone)
        with self._lock:
            replica = self._by_gallery.get(gone.id)
            if replica is None or not replica.is_of(gone):  # another's, which has the id by now
                return
            del self._by_gallery[gone.id]
        if replica.snapshots is not None:
            replica.snapshots.resign()

    def _follow_present(self, present: Gallery) -> None:
        with suppress(GalleryNotFound):  # erased since it was read
            if present.extractor == self._extractor:
                self._follow(present)
            else:
                self._follow_for_others(present)
            if self._leftovers is not None:  # last: what is left may be busy for minutes
                self._leftovers.drop_left(present.name)

    def _follow(self, present: Gallery) -> None:
        with self._lock:
            there = present.id in self._by_gallery
        if self._indexes.engine is not None:
            self.of(present).catch_up(*present.point)
        elif there and (replica := self.of(present)).applied_revision >= 0:
            with suppress(Busy):  # the upkeep loads it, and misses nothing
                replica.catch_up(*present.point)

    def _follow_for_others(self, present: Gallery) -> None:
        """The gallery belongs to another extractor by now: forget it, and write to the engine in place of others."""
        with self._lock:
            replica = self._by_gallery.pop(present.id, None)
            if replica is not None and not replica.is_of(present):  # as in `of`
                self._owed[_which(replica.gallery)] = replica.gallery
        if replica is not None and replica.snapshots is not None:
            replica.snapshots.resign()
        engine = self._indexes.engine
        if engine is not None and storage_name(present) in engine.names(storage_prefix(present)):
            stranger = GalleryReplica(present, self._history, partial(self._indexes.make, present))
            stranger.catch_up(*present.point)

    def erase_traces(self, gallery: Gallery, at_once: bool) -> int | None:
        """Erase what this machine's snapshots of a gallery's index remember of what was erased.

        Returns:
            How many snapshots; None where it is left to the upkeep of the process that leads, within seconds.
        """
        if self._indexes.folder is None or self._indexes.engine is not None:
            return 0
        try:
            present = self._store.gallery(gallery.name)
            if present.id != gallery.id:
                return 0
            replica = self.of(present)
        except GalleryNotFound:
            return 0  # and its snapshots with it
        except ExtractorMismatch:
            self._indexes.erase_snapshots(gallery)
            return 0
        if replica.snapshots is None:
            return 0
        # A command has no upkeep: either it leads, or a service does.
        leads = (at_once or self._upkeep is None) and replica.snapshots.lead_unseen()
        try:
            return replica.erase_snapshots() if leads else None
        finally:
            if self._upkeep is None:  # a service that starts meanwhile would wait for its snapshots
                replica.snapshots.pause_leading()


@contextmanager
def _refusing(gallery: Gallery) -> Iterator[None]:
    """Log a gallery that cannot be served, and go on with the others; whatever it is, they have no part in it."""
    try:
        yield
    except FacegalleryError as error:
        _log.error("gallery.refused", gallery=gallery.name, reason=in_full(error))
    except Exception as error:
        _log.error("gallery.refused", gallery=gallery.name, reason=repr(error), exc_info=error)


def _which(gallery: Gallery) -> tuple[int, datetime]:
    """What tells a gallery from one that had its id in a history that was undone."""
    return gallery.id, gallery.created_at


def _behind(applied: Point, present: Point | None) -> int:
    """How many revisions; 1 where the number is the same, and what had it here was undone."""
    if present is None:
        return 0
    undone = applied.revision == present.revision and applied.mark != present.mark
    return max(int(undone), present.revision - applied.revision)
