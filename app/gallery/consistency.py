"""Whether rows, index and snapshots of a gallery say the same, and what to do where they do not."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.history import GalleryHistory
from app.gallery.index_source import IndexSource
from app.gallery.owners import UNKNOWN
from app.gallery.records import Gallery
from app.gallery.replica import GalleryReplica

_log = structlog.get_logger()
_HALF_PRECISION = 1e-3  # distance between an embedding and its half-precision copy


@dataclass(frozen=True, slots=True)
class Consistency:
    """What was compared, and how many templates differ.

    `missing` are in SQL and not in the index, `surplus` in the index and not in SQL; `moved` have another subject
    there, `changed` another embedding. `damaged_snapshots` says of each why it is not trusted. `unreadable` are the
    ids of templates in SQL that do not open: no index that is built anew holds them.
    """

    gallery: str
    templates: int
    missing: int
    surplus: int
    moved: int
    changed: int
    damaged_snapshots: tuple[str, ...]
    unreadable: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing differs."""
        return not (self.unreadable or self.mendable)

    @property
    def mendable(self) -> bool:
        """Whether something differs that building the index anew would mend."""
        return bool(self.missing or self.surplus or self.moved or self.changed or self.damaged_snapshots)


def check_gallery(gallery: Gallery, history: GalleryHistory, source: IndexSource) -> Consistency:
    """Compare SQL, row by row, with what a process that starts now would search.

    Writes that come meanwhile are followed, so a running service may go on.
    """
    snapshots = source.snapshots_of(gallery)
    damaged = () if snapshots is None else tuple(snapshots.damages(partial(history.revision, gallery.id)))
    replica = GalleryReplica(gallery, history, partial(source.make, gallery), None if damaged else snapshots)
    replica.catch_up(history.revision(gallery.id) or 0)
    suspects, opened = list[int](), [np.empty(0, np.int64)]
    for block in history.template_blocks(gallery.id):
        opened.append(block.ids)
        view = replica.view
        vectors = view.index.vectors(block.ids)
        apart = np.linalg.norm(vectors - block.embeddings, axis=1)
        same = (apart < _HALF_PRECISION) & (view.owners.subjects_of(block.ids) == block.subject_ids)
        suspects += block.ids[~same].tolist()
    return _judged(gallery, history, replica, np.concatenate(opened), suspects, damaged)


def _judged(
    gallery: Gallery,
    history: GalleryHistory,
    replica: GalleryReplica,
    opened: NDArray[np.int64],
    suspects: list[int],
    damaged: tuple[str, ...],
) -> Consistency:
    """Look at the suspects again, now that the index has followed what came while the rows were read."""
    replica.catch_up(history.revision(gallery.id) or 0)
    ids = np.array(suspects, np.int64)
    stored = history.embeddings(ids, gallery.dimension)
    there = ~np.isnan(stored[:, 0])
    ids, stored = ids[there], stored[there]
    found = replica.view.index.vectors(ids)
    missing = np.isnan(found[:, 0])
    changed = ~missing & ~(np.linalg.norm(found - stored, axis=1) < _HALF_PRECISION)
    owners = replica.view.owners.subjects_of(ids)
    subjects: dict[int, int] = {}
    for block in history.owner_blocks(gallery.id):
        subjects.update(zip(block.ids.tolist(), block.subject_ids.tolist(), strict=True))
    replica.catch_up(history.revision(gallery.id) or 0)
    moved = ~missing & (owners != np.array([subjects.get(one, UNKNOWN) for one in ids.tolist()], np.int64))
    surplus = sum(one not in subjects for one in replica.view.owners.pairs()[0].tolist())
    surplus = max(surplus, len(replica.view.index) - len(subjects))
    return Consistency(
        gallery.name,
        len(opened),
        int(missing.sum()),
        surplus,
        int(moved.sum()),
        int(changed.sum()),
        damaged,
        _unreadable(gallery, history, subjects.keys() - set(opened.tolist())),
    )


def _unreadable(gallery: Gallery, history: GalleryHistory, suspects: set[int]) -> tuple[int, ...]:
    """Which templates do not open, of some that were not among those that did: others have come meanwhile."""
    ids = np.array(sorted(suspects), np.int64)
    closed = np.isnan(history.embeddings(ids, gallery.dimension)[:, 0])
    there = {one for block in history.owner_blocks(gallery.id) for one in block.ids.tolist()}
    return tuple(one for one in ids[closed].tolist() if one in there)


def repair_gallery(gallery: Gallery, history: GalleryHistory, source: IndexSource) -> None:
    """Trust no snapshot, and have every process build its index anew from SQL."""
    snapshots = source.snapshots_of(gallery)
    if snapshots is not None:
        snapshots.set_all_aside("facegallery check found differences")
    history.request_rebuild(gallery.name)
    _log.info("gallery.repaired", gallery=gallery.name)
