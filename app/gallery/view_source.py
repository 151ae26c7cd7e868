"""Where a view of a gallery comes from: it is built from SQL, beside an engine or not, and brought up to date."""

from collections.abc import Callable

import numpy as np
import structlog

from app.gallery.engines import EngineIndex
from app.gallery.history import GalleryHistory
from app.gallery.index import SegmentedIndex, SharedIndex, TemplateIndex
from app.gallery.owners import TemplateOwners
from app.gallery.records import Change, Gallery
from app.gallery.view import View, asks_for_rebuild, replay

_log = structlog.get_logger()
_FEW = 16  # revisions that are read without asking how much they hold
_LARGE = 20_000  # templates that are built in more than a moment


class Gap(Exception):
    """Changes in between are gone: nothing but loading anew helps."""


class GivenUp(Exception):
    """The process is ending, and what is being built will not be needed."""


def never() -> bool:
    """Do not give up."""
    return False


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

    def gallery(self) -> Gallery | None:
        """The gallery as SQL has it now, None where it is gone."""
        return self._history.gallery(self._id)

    def present(self) -> int | None:
        """The gallery's revision in SQL, None where it is gone."""
        return self._history.revision(self._id)

    @property
    def large(self) -> bool:
        """Whether building takes longer than a request may wait."""
        return self._history.has_more_than(self._id, _LARGE)

    def built(self, revision: int, *, fill: bool = False, given_up: Callable[[], bool] = never) -> View:
        """A view from SQL, with all the work done that keeps searches quick.

        Args:
            revision: that SQL has.
            fill: send an index outside the process all templates, though it may have them.
            given_up: is asked between two blocks.

        Raises:
            GivenUp: it was.
        """
        index = self._make_index()
        if isinstance(index, SharedIndex):
            return self._beside_shared(index, revision, fill=fill, given_up=given_up)
        ids, subjects = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for block in self._history.template_blocks(self._id):
            _go_on_unless(given_up)
            index.add(block.ids, block.embeddings)
            ids.append(block.ids)
            subjects.append(block.subject_ids)
            _log.info("index.building", gallery=self._name, templates=len(index))
        while isinstance(index, SegmentedIndex) and index.maintain():
            _go_on_unless(given_up)
        view = View(index, TemplateOwners(np.concatenate(ids), np.concatenate(subjects)), revision)
        _log.info("index.ready", gallery=self._name, templates=len(index), revision=revision)
        return view

    def replayed(self, view: View, revision: int) -> tuple[View, bool]:
        """The view with some of the changes up to a revision, and whether a rebuild is asked for among them.

        Those are some ten thousand rows: who wants them all calls again until the view has the revision.

        Raises:
            Gap: changes in between were pruned, or an engine has dropped what the view searches.
        """
        if view.revision >= revision:
            return view, False
        changes, end = self._changes(view.revision, revision)
        rebuild, index = asks_for_rebuild(changes), view.index
        if rebuild and isinstance(index, SharedIndex):
            index = self._reopened()
        followed = View(index, view.owners, end)
        replay(followed, changes)
        if isinstance(index, SharedIndex):
            index.set_position(end)
        return followed, rebuild

    def _reopened(self) -> TemplateIndex:
        """The index outside the process, opened anew: a gallery that leaves an extractor and comes back loses it.

        Raises:
            Gap: it must be filled before anybody is found in it.
        """
        index = self._make_index()
        if isinstance(index, SharedIndex) and index.position() < 0:
            raise Gap
        return index

    def _beside_shared(self, index: SharedIndex, revision: int, *, fill: bool, given_up: Callable[[], bool]) -> View:
        """Owners from SQL, beside an index that other processes may have filled already.

        Filling anew overwrites and never clears, as others are searching; what SQL does not have is removed afterwards.
        """
        position = index.position()
        # Read after the position: only a database that was set back is behind it then.
        present = self.present()
        revision = revision if present is None else present
        owners = self._owners()
        if fill or not 0 <= position <= revision or not self._filled_up(View(index, owners, position), revision):
            for block in self._history.template_blocks(self._id):
                _go_on_unless(given_up)
                index.add(block.ids, block.embeddings)
                _log.info("index.building", gallery=self._name, templates=len(index))
            self._remove_surplus(index)
        if position > revision:
            index.lower_position(revision)
        else:
            index.set_position(revision)
        _log.info("index.ready", gallery=self._name, templates=len(index), revision=revision)
        return View(index, owners, revision)

    def without_surplus(self, view: View) -> View:
        """The view, with nothing in an engine that SQL does not have.

        A process may have died between writing a template there and hearing that it was erased meanwhile.
        """
        if isinstance(view.index, SharedIndex) and len(view.index) != len(view.owners):
            self._remove_surplus(view.index)
        return view

    def _filled_up(self, view: View, revision: int) -> bool:
        """Tell an index outside the process what it has missed; False where it must be filled anew.

        Its position stays until all is told, so that a wish for a rebuild is met by whoever comes next.
        """
        try:
            while view.revision < revision:
                changes, end = self._changes(view.revision, revision)
                if asks_for_rebuild(changes):
                    return False
                replay(view, changes)
                view = View(view.index, view.owners, end)
        except Gap:
            return False
        return True

    def _remove_surplus(self, index: SharedIndex) -> None:
        """Remove what SQL does not have.

        Only what SQL has committed is ever written to an engine, so what is there and then not in SQL was erased, or
        undone by a backup. The latter may give an id away again at any moment; hence the second look.
        """
        if not isinstance(index, EngineIndex):
            return
        there = index.ids()
        surplus = np.setdiff1d(there, self._owners().pairs()[0])
        if not len(surplus):
            return
        index.remove(surplus)
        back = np.intersect1d(surplus, self._owners().pairs()[0])
        embeddings = self._history.embeddings(back, index.dimension)
        opened = ~np.isnan(embeddings[:, 0])
        if opened.any():
            index.add(back[opened], embeddings[opened])
        _log.warning("index.surplus_removed", gallery=self._name, templates=len(surplus) - len(back))

    def _owners(self) -> TemplateOwners:
        blocks = list(self._history.owner_blocks(self._id))
        none = np.empty(0, np.int64)
        return TemplateOwners(
            np.concatenate([none, *(block.ids for block in blocks)]),
            np.concatenate([none, *(block.subject_ids for block in blocks)]),
        )

    def _changes(self, after: int, revision: int) -> tuple[list[Change], int]:
        """Some of the changes up to a revision, and up to which they go."""
        if revision - after > _FEW:
            revision, found = self._history.slice_of_changes(self._id, after=after, up_to=revision)
            if found < revision - after:
                raise Gap
        changes = self._history.changes(self._id, after=after, up_to=revision)
        if len({change.revision for change in changes}) < revision - after:
            raise Gap
        return changes, revision


def _go_on_unless(given_up: Callable[[], bool]) -> None:
    if given_up():
        raise GivenUp
