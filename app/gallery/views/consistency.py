"""Whether rows, index and snapshots of a gallery say the same, and what to do where they do not."""

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.errors import Busy, StorageUnwritable
from app.gallery.extractor_check import check_extractor
from app.gallery.points import BEFORE, Point
from app.gallery.records import Gallery
from app.gallery.sealing.encryption import Flaw
from app.gallery.snapshots.kept import Looked
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.rows import no_gallery
from app.gallery.views.index_source import IndexSource
from app.gallery.views.owners import UNKNOWN
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.view import View, same_embeddings
from model.errors import FacegalleryError

_Ids = NDArray[np.int64]
_NONE = np.empty(0, np.int64)
_NO_SNAPSHOT = Looked(0, (), 0)
_LOOKS = 4  # at what differs, beside a service that writes
_PIECE = 10_000  # templates that are looked at together
LISTED = 1000
"""Of templates that differ in one way as many are named."""
_TELL = 64  # blocks between two reports of how far a check is: a minute or so
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Differing:
    """Ids of the templates that a `Consistency` counts, ascending: the first `LISTED` of each kind."""

    missing: tuple[int, ...] = ()
    surplus: tuple[int, ...] = ()
    moved: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Consistency:
    """What was compared, how many templates differ, and which.

    `missing` are in SQL and not in the index, `surplus` in the index and not in SQL; `moved` have another subject
    there, `changed` another embedding. `damaged_snapshots` says of each why it is not trusted. `unreadable` are the
    ids of templates in SQL that do not open: no index that is built anew holds them; `forgotten` are those of them
    whose subject was forgotten and came back with a backup. There were so many `snapshots`, of which
    `closed_snapshots` could not be opened; without one the index was built from SQL. Without `compared` the rows alone
    were looked at.
    """

    gallery: str
    templates: int
    missing: int
    surplus: int
    moved: int
    changed: int
    damaged_snapshots: tuple[str, ...]
    unreadable: tuple[int, ...] = ()
    forgotten: tuple[int, ...] = ()
    differing: Differing = Differing()
    snapshots: int = 0
    closed_snapshots: int = 0
    compared: bool = True

    @property
    def whole(self) -> bool:
        """Whether nothing differs."""
        return not (self.unreadable or self.mendable)

    @property
    def mendable(self) -> bool:
        """Whether something differs that building the index anew would mend."""
        return bool(self.missing or self.surplus or self.moved or self.changed or self.damaged_snapshots)


@runtime_checkable
class _NamesAll(Protocol):
    """An index that can name its templates."""

    def ids(self) -> _Ids: ...


@dataclass(frozen=True, slots=True)
class _Apart:
    """Ids of templates that differ, ascending, by how they do."""

    missing: _Ids
    surplus: _Ids
    moved: _Ids
    changed: _Ids

    @property
    def first(self) -> Differing:
        """The first of each kind."""
        kinds = (self.missing, self.surplus, self.moved, self.changed)
        return Differing(*(tuple(ids[:LISTED].tolist()) for ids in kinds))

    def __and__(self, other: "_Apart") -> "_Apart":
        return _Apart(
            np.intersect1d(self.missing, other.missing, assume_unique=True),
            np.intersect1d(self.surplus, other.surplus, assume_unique=True),
            np.intersect1d(self.moved, other.moved, assume_unique=True),
            np.intersect1d(self.changed, other.changed, assume_unique=True),
        )


def check_gallery(gallery: Gallery, history: GalleryHistory, source: IndexSource) -> Consistency:
    """Compare SQL, row by row, with what a process that starts now would search.

    Writes that come meanwhile are followed, so a running service may go on. Ids are kept in arrays: sets of ten million
    would take gigabytes.

    Raises:
        GalleryNotFound: it was erased meanwhile.
        ExtractorMismatch: it has moved to another extractor meanwhile.
    """
    with _changes_kept(gallery, history) as tell:
        snapshots = source.snapshots_of(gallery)
        seen = (
            _NO_SNAPSHOT if snapshots is None else snapshots.looked_through(partial(history.contradiction, gallery.id))
        )
        replica = GalleryReplica(gallery, history, partial(source.make, gallery), None if seen.damaged else snapshots)
        _follow(replica, history)
        suspects, opened = [_NONE], [_NONE]
        for number, block in enumerate(history.template_blocks(gallery.id)):
            if number % _TELL == 0:
                tell(replica.applied_revision)
            opened.append(block.ids)
            view = replica.view
            same = same_embeddings(view.index.vectors(block.ids), block.embeddings)
            same &= view.owners.subjects_of(block.ids) == block.subject_ids
            suspects.append(block.ids[~same])
        found = _judged(gallery, history, replica, np.concatenate(opened), np.concatenate(suspects), seen)
    present = history.gallery(gallery.id)
    if present is None:
        raise no_gallery(gallery.name)
    check_extractor(present, gallery.extractor)
    return found


@contextmanager
def _changes_kept(gallery: Gallery, history: GalleryHistory) -> Iterator[Callable[[int], None]]:
    """Have the changes kept that a check has yet to follow; gives what is told how far it is.

    Without them it would load its index anew, or fill an engine anew, and find no difference in that.
    """
    name = f"check {socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def tell(revision: int) -> None:
        with suppress(Busy, StorageUnwritable):  # a full disk is a reason to check, and takes no changes either
            history.report(gallery.id, name, revision)

    tell(BEFORE.revision)
    try:
        yield tell
    finally:
        with suppress(FacegalleryError):
            history.leave([name])


def check_rows(gallery: Gallery, history: GalleryHistory) -> Consistency:
    """Whether a gallery's templates open; for one whose index another service has."""
    opened = np.concatenate([_NONE, *(block.ids for block in history.template_blocks(gallery.id))])
    closed, forgotten = _closed(gallery, history, _without(_there(gallery, history), opened))
    return Consistency(gallery.name, len(opened), 0, 0, 0, 0, (), closed, forgotten, compared=False)


def _judged(
    gallery: Gallery,
    history: GalleryHistory,
    replica: GalleryReplica,
    opened: _Ids,
    suspects: _Ids,
    snapshots: Looked,
) -> Consistency:
    """Look at the suspects again, until nothing was written meanwhile or they have differed every time."""
    there = _there(gallery, history)
    _follow(replica, history)
    surplus, uncounted = _not_in(there, replica)
    found = _Apart(suspects, surplus, suspects, suspects)
    for _ in range(_LOOKS):
        point = _follow(replica, history)
        found &= _apart(gallery, history, replica.view, suspects, surplus)
        if history.point(gallery.id) == point:
            break
    closed, forgotten = _closed(gallery, history, _without(there, opened))
    return Consistency(
        gallery.name,
        len(opened),
        len(found.missing),
        len(found.surplus) + uncounted,
        len(found.moved),
        len(found.changed),
        snapshots.damaged,
        closed,
        forgotten,
        found.first,
        snapshots.count,
        snapshots.closed,
    )


def _there(gallery: Gallery, history: GalleryHistory) -> _Ids:
    """The templates that SQL has, ascending."""
    return np.concatenate([_NONE, *(block.ids for block in history.owner_blocks(gallery.id))])


def _follow(replica: GalleryReplica, history: GalleryHistory) -> Point | None:
    """Bring a replica up to date; answers to where, None where the gallery is gone."""
    point = history.point(replica.gallery_id)
    if point is not None:
        replica.catch_up(*point)
    return point


def _not_in(there: _Ids, replica: GalleryReplica) -> tuple[_Ids, int]:
    """Templates of a view that are not among those in SQL, and how many more an index has that does not name them."""
    view = replica.view
    known = view.owners.pairs()[0]
    more = max(0, len(view.index) - len(known))
    if isinstance(view.index, _NamesAll):  # as many that do not open would hide those that are too much
        known, more = np.union1d(known, view.index.ids()), 0
    return _without(known, there), more


def _pieces(ids: _Ids) -> Iterator[_Ids]:
    """Some thousand at a time; of none one piece, which is empty."""
    for first in range(0, max(len(ids), 1), _PIECE):
        yield ids[first : first + _PIECE]


def _without(ids: _Ids, others: _Ids) -> _Ids:
    """Those of some ids that are not among others; both ascending."""
    left = [_NONE]
    for piece in _pieces(ids):
        if len(piece):
            first, last = np.searchsorted(others, [piece[0], piece[-1] + 1])
            left.append(np.setdiff1d(piece, others[first:last], assume_unique=True))
    return np.concatenate(left)


def _apart(gallery: Gallery, history: GalleryHistory, view: View, suspects: _Ids, surplus: _Ids) -> _Apart:
    """How some templates differ between SQL and the view as they are now."""
    differing = [_differing(gallery, history, view, piece) for piece in _pieces(suspects)]
    missing, moved, changed = (np.concatenate(ids) for ids in zip(*differing, strict=True))
    left = np.concatenate([_left(gallery, history, view, piece) for piece in _pieces(surplus)])
    return _Apart(missing, left, moved, changed)


def _differing(gallery: Gallery, history: GalleryHistory, view: View, ids: _Ids) -> tuple[_Ids, _Ids, _Ids]:
    """Which of some templates in SQL the view lacks, has under another subject, or has with another embedding."""
    stored, owners = history.embeddings(ids, gallery), history.owners(gallery.id, ids.tolist())
    opens = ~np.isnan(stored[:, 0])
    ids, stored = ids[opens], stored[opens]
    found = view.index.vectors(ids)
    missing = np.isnan(found[:, 0])
    changed = ~missing & ~same_embeddings(found, stored)
    moved = ~missing & (
        view.owners.subjects_of(ids) != np.array([owners.get(one, UNKNOWN) for one in ids.tolist()], np.int64)
    )
    return ids[missing], ids[moved], ids[changed]


def _left(gallery: Gallery, history: GalleryHistory, view: View, ids: _Ids) -> _Ids:
    """Which of some templates the view has and SQL does not."""
    in_sql = history.owners(gallery.id, ids.tolist())
    extra = np.array([one for one in ids.tolist() if one not in in_sql], np.int64)
    here: NDArray[np.bool_] = ~np.isnan(view.index.vectors(extra)[:, 0]) | (view.owners.subjects_of(extra) != UNKNOWN)
    return extra[here]


def _closed(gallery: Gallery, history: GalleryHistory, ids: _Ids) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which of some templates are there and do not open, and those of them whose subjects were forgotten.

    Of those that were not among the ones that opened, others have come or gone meanwhile.
    """
    closed, forgotten = list[int](), list[int]()
    for piece in _pieces(ids):
        shut = piece[np.isnan(history.embeddings(piece, gallery)[:, 0])].tolist()
        flaws = history.flaws(shut)
        there = history.owners(gallery.id, shut)  # asked last, so that nobody who was erased meanwhile is told
        closed += [one for one in shut if one in there]
        forgotten += [one for one in shut if one in there and flaws.get(one) is Flaw.FORGOTTEN]
    return tuple(closed), tuple(forgotten)


def repair_gallery(gallery: Gallery, history: GalleryHistory, source: IndexSource) -> None:
    """Trust no snapshot, and have every process build its index anew from SQL."""
    snapshots = source.snapshots_of(gallery)
    if snapshots is not None:
        snapshots.set_all_aside("facegallery check found differences")
    history.request_rebuild(gallery.name)
    _log.info("gallery.repaired", gallery=gallery.name)
