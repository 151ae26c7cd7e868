"""Whether rows, index and snapshots of a gallery say the same, and what to do where they do not."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import structlog

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
    there, `changed` another embedding. `damaged_snapshots` says of each why it is not trusted.
    """

    gallery: str
    templates: int
    missing: int
    surplus: int
    moved: int
    changed: int
    damaged_snapshots: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.surplus or self.moved or self.changed or self.damaged_snapshots)


def check_gallery(gallery: Gallery, history: GalleryHistory, source: IndexSource) -> Consistency:
    """Compare SQL, row by row, with what a process that starts now would search.

    Writes that come meanwhile are followed, so a running service may go on.
    """
    snapshots = source.snapshots_of(gallery)
    damaged = () if snapshots is None else tuple(snapshots.damages(partial(history.revision, gallery.id)))
    replica = GalleryReplica(gallery, history, partial(source.make, gallery), None if damaged else snapshots)
    replica.catch_up(history.revision(gallery.id) or 0)
    templates, suspects = 0, list[int]()
    for block in history.template_blocks(gallery.id):
        templates += len(block.ids)
        view = replica.view
        vectors = view.index.vectors(block.ids)
        apart = np.linalg.norm(vectors - block.embeddings, axis=1)
        same = (apart < _HALF_PRECISION) & (view.owners.subjects_of(block.ids) == block.subject_ids)
        suspects += block.ids[~same].tolist()
    return _judged(gallery, history, replica, templates, suspects, damaged)


def _judged(
    gallery: Gallery,
    history: GalleryHistory,
    replica: GalleryReplica,
    templates: int,
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
        gallery.name, templates, int(missing.sum()), surplus, int(moved.sum()), int(changed.sum()), damaged
    )


def repair_gallery(gallery: Gallery, history: GalleryHistory, source: IndexSource) -> None:
    """Trust no snapshot, and have every process build its index anew from SQL."""
    snapshots = source.snapshots_of(gallery)
    if snapshots is not None:
        snapshots.set_all_aside("facegallery check found differences")
    history.request_rebuild(gallery.name)
    _log.info("gallery.repaired", gallery=gallery.name)
