"""A view of a gallery, and how changes are replayed on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.gallery.index import HALF_PRECISION, TemplateIndex
from app.gallery.points import Point
from app.gallery.records import Change
from app.gallery.views.owners import TemplateOwners

_Added = list[tuple[Change, NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class View:
    """What a search needs, switched as one: it is true up to `point`, and may be ahead of it.

    `rebuild_wanted` says whether somebody asked for a new index since this one was built.
    """

    index: TemplateIndex
    owners: TemplateOwners
    point: Point
    rebuild_wanted: bool = False

    @property
    def revision(self) -> int:
        """Revision up to which it is true."""
        return self.point.revision

    def is_at(self, revision: int, mark: int | None) -> bool:
        """Whether it is true up to a revision and no further, of that mark where it is known."""
        return self.point == (revision, self.point.mark if mark is None else mark)


def same_embeddings(stored: NDArray[np.float32], embeddings: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows an index holds as SQL does, (N,); both (N, D), and a row of NaN, of one that is gone, is like none."""
    return np.asarray(np.linalg.norm(stored - embeddings, axis=1) < HALF_PRECISION)


def asks_for_rebuild(changes: Sequence[Change]) -> bool:
    """Whether one of the changes has indexes built anew."""
    return any(change.kind == "rebuild" for change in changes)


def replay(view: View, changes: Sequence[Change]) -> None:
    """Do to a view's index and owners what changes come to in the end; doing it again does no harm.

    A template that a merge takes from one subject and gives to another changes its owner in one step and keeps its row
    in the index, so that a search meanwhile finds it under one of both.
    """
    last: dict[int, Change] = {}
    removed = set[int]()
    for change in changes:
        if change.kind != "rebuild":
            last[change.template_id] = change
        if change.kind == "remove":
            removed.add(change.template_id)
    # An added template that is gone by now has no embedding; its removal follows.
    there = [(one, one.embedding) for one in last.values() if one.kind == "add" and one.embedding is not None]
    gone = removed - {change.template_id for change, _ in there}
    if gone:
        view.index.remove(np.array(sorted(gone), np.int64))
        view.owners.remove(gone)
    _move(view, [(change, embedding) for change, embedding in there if change.template_id in removed])
    _add(view, [(change, embedding) for change, embedding in there if change.template_id not in removed])


def _move(view: View, moved: _Added) -> None:
    if not moved:
        return
    ids, embeddings = _stacked(moved)
    stored = same_embeddings(view.index.vectors(ids), embeddings)
    view.owners.move((change.template_id, change.subject_id) for change, _ in moved)
    if not np.all(stored):
        view.index.add(ids[~stored], embeddings[~stored])


def _add(view: View, added: _Added) -> None:
    if added:
        # The owners first: a template that a search finds has one.
        view.owners.add((change.template_id, change.subject_id) for change, _ in added)
        view.index.add(*_stacked(added))


def _stacked(added: _Added) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    ids = np.array([change.template_id for change, _ in added], np.int64)
    return ids, np.stack([embedding for _, embedding in added])
