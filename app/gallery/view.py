"""A view of a gallery, and how changes are replayed on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from app.gallery.index import TemplateIndex
from app.gallery.owners import TemplateOwners
from app.gallery.records import Change


@dataclass(frozen=True, slots=True)
class View:
    """What a search needs, switched as one: it is true up to `revision`, and may be ahead of it."""

    index: TemplateIndex
    owners: TemplateOwners
    revision: int


def asks_for_rebuild(changes: Sequence[Change]) -> bool:
    """Whether one of the changes has indexes built anew."""
    return any(change.kind == "rebuild" for change in changes)


def replay(view: View, changes: Sequence[Change]) -> None:
    """Do to a view's index and owners what changes say, in their order; doing it again does no harm."""
    for kind, run in groupby(changes, key=lambda change: change.kind):
        if kind == "remove":
            _remove(view, list(run))
        elif kind == "add":
            _add(view, list(run))


def _remove(view: View, changes: Sequence[Change]) -> None:
    template_ids = [change.template_id for change in changes]
    view.index.remove(np.array(template_ids, np.int64))
    view.owners.remove(template_ids)


def _add(view: View, changes: Sequence[Change]) -> None:
    # An added template that is gone by now has no embedding; its removal follows.
    present = [(change, change.embedding) for change in changes if change.embedding is not None]
    if present:
        # The owners first: a template that a search finds has one.
        view.owners.add((change.template_id, change.subject_id) for change, _ in present)
        ids = np.array([change.template_id for change, _ in present], np.int64)
        view.index.add(ids, np.stack([embedding for _, embedding in present]))
