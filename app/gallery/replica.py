"""One process's view of a gallery: an index that follows the revisions in SQL."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.history import GalleryHistory
from app.gallery.index import TemplateIndex
from app.gallery.matching import Candidate, MatchingRule, find_candidates
from app.gallery.owners import TemplateOwners
from app.gallery.records import Change, Gallery

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _View:
    """What a search needs, switched as one."""

    index: TemplateIndex
    owners: TemplateOwners


class GalleryReplica:
    """An index, the subjects of its templates, and the revision up to which both are true.

    `catch_up` before a search makes what any process has acknowledged visible here, with no message between processes:
    it costs nothing where the revision is the same, and replays the change rows in between where it is not. Replaying
    is idempotent, so rows read a moment later than their revision do no harm.
    """

    def __init__(self, gallery: Gallery, history: GalleryHistory, make_index: Callable[[int], TemplateIndex]) -> None:
        self._gallery_id = gallery.id
        self._name = gallery.name
        self._dimension = gallery.dimension
        self._history = history
        self._make_index = make_index
        self._view = _View(make_index(gallery.dimension), TemplateOwners())
        self._applied = -1  # nothing is loaded yet
        self._lock = threading.Lock()

    @property
    def applied_revision(self) -> int:
        """Revision up to which the index is true; -1 before the first load."""
        return self._applied

    @property
    def subjects(self) -> int:
        """Number of subjects that have a template."""
        return self._view.owners.subjects

    @property
    def templates(self) -> int:
        """Number of templates."""
        return len(self._view.index)

    def catch_up(self, revision: int) -> None:
        """Bring the index to a revision that SQL has."""
        if self._applied >= revision:
            return
        with self._lock:
            if self._applied >= revision:
                return
            if self._applied < 0:
                self._load(revision)
                return
            changes = self._history.changes(self._gallery_id, after=self._applied, up_to=revision)
            if any(change.kind == "rebuild" for change in changes):
                self._load(revision)
                return
            for kind, grouped in groupby(changes, key=lambda change: change.kind):
                run = list(grouped)
                if kind == "add":
                    self._add(run)
                else:
                    self._remove(run)
            self._applied = revision

    def search(self, probes: NDArray[np.float32], *, top_k: int, rule: MatchingRule) -> list[list[Candidate]]:
        """The `top_k` nearest subjects of each probe (Q, D)."""
        view = self._view  # one reading: a rebuild may switch it meanwhile
        return find_candidates(view.index, view.owners, probes, top_k=top_k, rule=rule)

    def _load(self, revision: int) -> None:
        """Build everything from SQL beside the old and switch."""
        index, owners = self._make_index(self._dimension), TemplateOwners()
        for block in self._history.template_blocks(self._gallery_id):
            index.add(block.ids, block.embeddings)
            owners.add(zip(block.ids.tolist(), block.subject_ids.tolist(), strict=True))
            _log.info("index.building", gallery=self._name, templates=len(index))
        self._view = _View(index, owners)
        self._applied = revision
        _log.info("index.ready", gallery=self._name, templates=len(index), revision=revision)

    def _add(self, changes: Sequence[Change]) -> None:
        present = [change for change in changes if change.embedding is not None]
        if not present:
            return
        self._view.owners.add((change.template_id, change.subject_id) for change in present)
        ids = np.array([change.template_id for change in present], np.int64)
        self._view.index.add(ids, np.stack([change.embedding for change in present if change.embedding is not None]))

    def _remove(self, changes: Sequence[Change]) -> None:
        template_ids = [change.template_id for change in changes]
        self._view.index.remove(np.array(template_ids, np.int64))
        self._view.owners.remove(template_ids)
