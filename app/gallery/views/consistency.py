"""Whether rows, index and snapshots of a gallery say the same, and what to do where they do not."""

from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.points import Point
from app.gallery.records import Gallery
from app.gallery.sealing.encryption import Flaw
from app.gallery.sql.history import GalleryHistory
from app.gallery.views.index_source import IndexSource
from app.gallery.views.owners import UNKNOWN
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.view import same_embeddings

_log = structlog.get_logger()
_LOOKS = 4  # at what differs, beside a service that writes


@dataclass(frozen=True, slots=True)
class Consistency:
    """What was compared, and how many templates differ.

    `missing` are in SQL and not in the index, `surplus` in the index and not in SQL; `moved` have another subject
    there, `changed` another embedding. `damaged_snapshots` says of each why it is not trusted. `unreadable` are the
    ids of templates in SQL that do not open: no index that is built anew holds them; `forgotten` are those of them
    whose subject was forgotten and came back with a backup. Without `compared` the rows alone were looked at.
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

    def ids(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class _Apart:
    """Ids of templates that differ, by how they do."""

    missing: frozenset[int]
    surplus: frozenset[int]
    moved: frozenset[int]
    changed: frozenset[int]

    def __and__(self, other: "_Apart") -> "_Apart":
        return _Apart(
            self.missing & other.missing,
            self.surplus & other.surplus,
            self.moved & other.moved,
            self.changed & other.changed,
        )


def check_gallery(gallery: Gallery, history: GalleryHistory, source: IndexSource) -> Consistency:
    """Compare SQL, row by row, with what a process that starts now would search.

    Writes that come meanwhile are followed, so a running service may go on.
    """
    snapshots = source.snapshots_of(gallery)
    damaged = () if snapshots is None else tuple(snapshots.damages(partial(history.contradiction, gallery.id)))
    replica = GalleryReplica(gallery, history, partial(source.make, gallery), None if damaged else snapshots)
    _follow(replica, history)
    suspects, opened = list[int](), [np.empty(0, np.int64)]
    for block in history.template_blocks(gallery.id):
        opened.append(block.ids)
        view = replica.view
        same = same_embeddings(view.index.vectors(block.ids), block.embeddings)
        same &= view.owners.subjects_of(block.ids) == block.subject_ids
        suspects += block.ids[~same].tolist()
    return _judged(gallery, history, replica, np.concatenate(opened), suspects, damaged)


def check_rows(gallery: Gallery, history: GalleryHistory) -> Consistency:
    """Whether a gallery's templates open; for one whose index another service has."""
    opened = {one for block in history.template_blocks(gallery.id) for one in block.ids.tolist()}
    there = {one for block in history.owner_blocks(gallery.id) for one in block.ids.tolist()}
    closed = _unreadable(gallery, history, there - opened)
    return Consistency(gallery.name, len(opened), 0, 0, 0, 0, (), closed, _forgotten(history, closed), compared=False)


def _judged(
    gallery: Gallery,
    history: GalleryHistory,
    replica: GalleryReplica,
    opened: NDArray[np.int64],
    suspects: list[int],
    damaged: tuple[str, ...],
) -> Consistency:
    """Look at the suspects again, until nothing was written meanwhile or they have differed every time."""
    there = {one for block in history.owner_blocks(gallery.id) for one in block.ids.tolist()}
    _follow(replica, history)
    surplus, uncounted = _not_in(there, replica)
    found = _Apart(*(frozenset(ids) for ids in (suspects, surplus, suspects, suspects)))
    for _ in range(_LOOKS):
        point = _follow(replica, history)
        found &= _apart(gallery, history, replica, suspects, surplus)
        if history.point(gallery.id) == point:
            break
    closed = _unreadable(gallery, history, there - set(opened.tolist()))
    return Consistency(
        gallery.name,
        len(opened),
        len(found.missing),
        len(found.surplus) + uncounted,
        len(found.moved),
        len(found.changed),
        damaged,
        closed,
        _forgotten(history, closed),
    )


def _follow(replica: GalleryReplica, history: GalleryHistory) -> Point | None:
    """Bring a replica up to date; answers to where, None where the gallery is gone."""
    point = history.point(replica.gallery_id)
    if point is not None:
        replica.catch_up(*point)
    return point


def _not_in(there: set[int], replica: GalleryReplica) -> tuple[list[int], int]:
    """Templates of a view that are not among those in SQL, and how many more an index has that does not name them."""
    view = replica.view
    known = view.owners.pairs()[0]
    more = max(0, len(view.index) - len(known))
    if isinstance(view.index, _NamesAll):  # as many that do not open would hide those that are too much
        known, more = np.union1d(known, view.index.ids()), 0
    return [one for one in known.tolist() if one not in there], more


def _apart(
    gallery: Gallery, history: GalleryHistory, replica: GalleryReplica, suspects: list[int], surplus: list[int]
) -> _Apart:
    """How some templates differ between SQL and the view as they are now."""
    ids = np.array(suspects, np.int64)
    stored, owners = history.embeddings(ids, gallery.dimension), history.owners(gallery.id, suspects)
    opens = ~np.isnan(stored[:, 0])
    ids, stored = ids[opens], stored[opens]
    view = replica.view
    found = view.index.vectors(ids)
    missing = np.isnan(found[:, 0])
    changed = ~missing & ~same_embeddings(found, stored)
    moved = ~missing & (
        view.owners.subjects_of(ids) != np.array([owners.get(one, UNKNOWN) for one in ids.tolist()], np.int64)
    )
    in_sql = history.owners(gallery.id, surplus)
    extra = np.array([one for one in surplus if one not in in_sql], np.int64)
    left = ~np.isnan(view.index.vectors(extra)[:, 0]) | (view.owners.subjects_of(extra) != UNKNOWN)
    return _Apart(*(frozenset(one.tolist()) for one in (ids[missing], extra[left], ids[moved], ids[changed])))


def _unreadable(gallery: Gallery, history: GalleryHistory, suspects: set[int]) -> tuple[int, ...]:
    """Which templates do not open, of some that were not among those that did: others have come meanwhile."""
    ids = np.array(sorted(suspects), np.int64)
    closed = np.isnan(history.embeddings(ids, gallery.dimension)[:, 0])
    there = {one for block in history.owner_blocks(gallery.id) for one in block.ids.tolist()}
    return tuple(one for one in ids[closed].tolist() if one in there)


def _forgotten(history: GalleryHistory, templates: tuple[int, ...]) -> tuple[int, ...]:
    flaws = history.flaws(templates)
    return tuple(one for one in templates if flaws.get(one) is Flaw.FORGOTTEN)


def repair_gallery(gallery: Gallery, history: GalleryHistory, source: IndexSource) -> None:
    """Trust no snapshot, and have every process build its index anew from SQL."""
    snapshots = source.snapshots_of(gallery)
    if snapshots is not None:
        snapshots.set_all_aside("facegallery check found differences")
    history.request_rebuild(gallery.name)
    _log.info("gallery.repaired", gallery=gallery.name)
