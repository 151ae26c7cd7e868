"""Where a view of a gallery comes from: it is built from SQL, beside an engine or not, and brought up to date."""

from collections.abc import Callable

import numpy as np
import structlog

from app.gallery.history import GalleryHistory
from app.gallery.index import SharedIndex, TemplateIndex
from app.gallery.owners import TemplateOwners
from app.gallery.records import Change, Gallery
from app.gallery.view import View, asks_for_rebuild, replay

_log = structlog.get_logger()


class Gap(Exception):
    """Changes in between are gone: nothing but loading anew helps."""


class ViewSource:
    """Builds views of one gallery.

    Args:
        gallery: of which.
        history: what is loaded and followed.
        make_index: makes an empty index, or opens one outside the process.
    """

    def __init__(self, gallery: Gallery, history: GalleryHistory, make_index: Callable[[], TemplateIndex]) -> None:
        self._id = gallery.id
        self._name = gallery.name
        self._history = history
        self._make_index = make_index

    def empty(self) -> View:
        """A view from before the first load."""
        return View(self._make_index(), TemplateOwners(), -1)

    def present(self) -> int | None:
        """The gallery's revision in SQL, None where it is gone."""
        return self._history.revision(self._id)

    def built(self, revision: int, *, fill: bool = False) -> View:
        """A view from SQL.

        Args:
            revision: that SQL has.
            fill: send an index outside the process all templates, though it may have them.
        """
        index = self._make_index()
        if isinstance(index, SharedIndex):
            return self._beside_shared(index, revision, fill=fill)
        ids, subjects = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for block in self._history.template_blocks(self._id):
            index.add(block.ids, block.embeddings)
            ids.append(block.ids)
            subjects.append(block.subject_ids)
            _log.info("index.building", gallery=self._name, templates=len(index))
        view = View(index, TemplateOwners(np.concatenate(ids), np.concatenate(subjects)), revision)
        _log.info("index.ready", gallery=self._name, templates=len(index), revision=revision)
        return view

    def replayed(self, view: View, revision: int) -> tuple[View, bool]:
        """The view with the changes up to a revision, and whether a rebuild is asked for among them.

        Raises:
            Gap: changes in between were pruned.
        """
        changes = self._changes(view.revision, revision)
        replay(view, changes)
        if changes and isinstance(view.index, SharedIndex):
            view.index.set_position(revision)
        return View(view.index, view.owners, max(revision, view.revision)), asks_for_rebuild(changes)

    def _beside_shared(self, index: SharedIndex, revision: int, *, fill: bool) -> View:
        """Owners from SQL, beside an index that other processes may have filled already.

        Filling anew overwrites and never clears, as others are searching: what SQL no longer has stays in the engine
        without an owner, and names nobody.
        """
        position = index.position()
        # Read after the position: only a database that was set back is behind it then.
        present = self.present()
        revision = revision if present is None else present
        owners = self._owners()
        changes = None
        if 0 <= position <= revision and not fill:
            try:
                changes = self._changes(position, revision)
            except Gap:
                changes = None
        if changes is None or asks_for_rebuild(changes):
            for block in self._history.template_blocks(self._id):
                index.add(block.ids, block.embeddings)
                _log.info("index.building", gallery=self._name, templates=len(index))
            changes = []
        view = View(index, owners, revision)
        replay(view, changes)
        if position > revision:
            index.lower_position(revision)
        else:
            index.set_position(revision)
        _log.info("index.ready", gallery=self._name, templates=len(index), revision=revision)
        return view

    def _owners(self) -> TemplateOwners:
        blocks = list(self._history.owner_blocks(self._id))
        none = np.empty(0, np.int64)
        return TemplateOwners(
            np.concatenate([none, *(block.ids for block in blocks)]),
            np.concatenate([none, *(block.subject_ids for block in blocks)]),
        )

    def _changes(self, after: int, revision: int) -> list[Change]:
        changes = self._history.changes(self._id, after=after, up_to=revision)
        if len({change.revision for change in changes}) < revision - after:
            raise Gap
        return changes
