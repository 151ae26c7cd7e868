"""Where a view of a gallery comes from: it is built from SQL, beside an engine or not, and brought up to date."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.course import Course, Gap, Undone
from app.gallery.engines import EngineIndex
from app.gallery.extractor_check import check_extractor
from app.gallery.history import GalleryHistory
from app.gallery.index import SegmentedIndex, SharedIndex, TemplateIndex
from app.gallery.index.protocol import agrees
from app.gallery.owners import TemplateOwners
from app.gallery.points import BEFORE, Point
from app.gallery.records import Change, Gallery
from app.gallery.view import View, asks_for_rebuild, replay

_log = structlog.get_logger()
_FEW = 16  # revisions that are read without asking how much they hold
_LARGE = 20_000  # templates that are built in more than a moment


class GivenUp(Exception):
    """The process is ending, and what is being built will not be needed."""


def never() -> bool:
    """Do not give up."""
    return False


@dataclass(frozen=True, slots=True)
class Steps:
    """Changes of a gallery, and the points that they lead through, beginning with the one they follow upon."""

    changes: Sequence[Change]
    trail: Sequence[Point]

    @property
    def end(self) -> Point:
        """The point that they lead to."""
        return self.trail[-1]


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
        self._extractor = gallery.extractor
        self._dimension = gallery.dimension
        self._history = history
        self._make_index = make_index

    def empty(self) -> View:
        """A view from before the first load."""
        return View(self._make_index(), TemplateOwners(), BEFORE)

    def gallery(self) -> Gallery | None:
        """The gallery as SQL has it now, None where it is gone."""
        return self._history.gallery(self._id)

    def present(self) -> Point | None:
        """Where in its history SQL has the gallery, None where it is gone."""
        return self._history.point(self._id)

    def contradiction(self, point: Point) -> str | None:
        """Why the gallery's history in SQL does not go through a point, None where it does."""
        return self._history.contradiction(self._id, point)

    @property
    def large(self) -> bool:
        """Whether building takes longer than a request may wait."""
        return self._history.has_more_than(self._id, _LARGE)

    def built(self, *, fill: bool = False, given_up: Callable[[], bool] = never) -> View:
        """A view from SQL, with all the work done that keeps searches quick.

        Args:
            fill: send an index outside the process all templates, though it may have them.
            given_up: is asked between two blocks.

        Raises:
            GivenUp: it was.
        """
        while True:
            index = self._make_index()
            position = index.point() if isinstance(index, SharedIndex) else BEFORE
            # Asked after the position: only a database that was set back is behind it then.
            course = Course(self.present(), self.contradiction)
            try:
                if isinstance(index, SharedIndex):
                    view = self._beside_shared(index, position, course, fill=fill, given_up=given_up)
                else:
                    view = self._of_this_process(index, course, given_up)
                if (reached := self._brought_to(view, course.last)) is not None:
                    return reached
            except Undone:  # meanwhile, so what was read may be of both histories
                fill = True
                _log.warning("index.undone", gallery=self._name)

    def _of_this_process(self, index: TemplateIndex, course: Course, given_up: Callable[[], bool]) -> View:
        ids, subjects = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for block in self._history.template_blocks(self._id):
            _go_on_unless(given_up)
            course.meet(block.point)
            self._check_moved(block.embeddings[:1])
            index.add(block.ids, block.embeddings)
            ids.append(block.ids)
            subjects.append(block.subject_ids)
            _log.info("index.building", gallery=self._name, templates=len(index))
        while isinstance(index, SegmentedIndex) and index.maintain():
            _go_on_unless(given_up)
        view = View(index, TemplateOwners(np.concatenate(ids), np.concatenate(subjects)), course.start)
        _log.info("index.ready", gallery=self._name, templates=len(index), revision=view.revision)
        return view

    def _brought_to(self, view: View, last: Point) -> View | None:
        """The view, brought to the last point of which it may hold something, so that it holds nothing beyond its own.

        Returns:
            None where a rebuild was asked for meanwhile: what comes next begins after that.

        Raises:
            Undone: that point is no longer in the gallery's history.
        """
        try:
            while view.revision < last.revision:
                view, rebuild = self.replayed(view, last.revision)
                if rebuild:
                    return None
        except Undone:
            raise
        except Gap:  # nobody knows any more; whoever follows finds the gap as well
            return view
        if view.point != last:
            raise Undone
        return view

    def replayed(self, view: View, revision: int) -> tuple[View, bool]:
        """The view with some of the changes up to a revision, and whether a rebuild is asked for among them.

        Those are some ten thousand rows: who wants them all calls again until the view has the revision.

        Raises:
            Undone: the view, or what an engine holds, is of a history that the database has undone.
            Gap: changes in between were pruned, or an engine has dropped what the view searches.
            ExtractorMismatch: the gallery has moved to another extractor meanwhile.
        """
        if view.revision >= revision:
            return view, False
        return self.taken(view, self.steps(view, revision))

    def steps(self, view: View, revision: int) -> Steps:
        """Some of the changes up to a revision, which is beyond the view's own; some ten thousand rows.

        Raises:
            Undone, Gap, ExtractorMismatch: as `replayed`.
        """
        changes, trail = self._changes(view.point, revision)
        self._check_moved([change.embedding for change in changes if change.embedding is not None])
        return Steps(changes, trail)

    def taken(self, view: View, steps: Steps) -> tuple[View, bool]:
        """The view with changes that were read for it, and whether a rebuild is asked for among them.

        Where an engine fails, the view may hold a part of them, though it is at its own point still.

        Raises:
            Undone, Gap: as `replayed`.
        """
        rebuild, index = asks_for_rebuild(steps.changes), view.index
        if rebuild and isinstance(index, SharedIndex):
            index = self._reopened()
        followed = View(index, view.owners, steps.end)
        replay(followed, steps.changes)
        if isinstance(index, SharedIndex):
            self._remember(index, steps.trail)
        return followed, rebuild

    def _check_moved(self, embeddings: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> None:
        """Take no embeddings of another length, which are those of an extractor that the gallery has moved to.

        Raises:
            ExtractorMismatch: it has.
            Undone: it has, and is back already, or gone: what is read in several goes is of both.
        """
        if all(len(embedding) == self._dimension for embedding in embeddings):
            return
        present = self.gallery()
        if present is None or present.dimension == self._dimension:
            raise Undone
        check_extractor(present, self._extractor)
        raise ValueError(f"gallery {self._name!r} has embeddings of {present.dimension} numbers by this extractor")

    def _remember(self, index: SharedIndex, trail: Sequence[Point]) -> None:
        """Have an index outside the process remember where a trail ends, unless it is further.

        Raises:
            Undone: it is where the gallery's history does not go through any more.
        """
        marks = dict(trail)
        there = index.set_position(*trail[-1], trail=marks)
        if there != trail[-1] and there.revision >= 0 and (not agrees(there, marks) or self.contradiction(there)):
            raise Undone

    def _reopened(self) -> TemplateIndex:
        """The index outside the process, opened anew: a gallery that leaves an extractor and comes back loses it.

        Raises:
            Gap: it must be filled before anybody is found in it.
        """
        index = self._make_index()
        if isinstance(index, SharedIndex) and index.position() < 0:
            raise Gap
        return index

    def _beside_shared(
        self, index: SharedIndex, position: Point, course: Course, *, fill: bool, given_up: Callable[[], bool]
    ) -> View:
        """Owners from SQL, beside an index that other processes may have filled already.

        Filling anew overwrites and never clears, as others are searching; what SQL does not have is removed afterwards.
        """
        trusted = position.revision >= 0 and self.contradiction(position) is None
        owners = self._owners(course)
        if fill or not trusted or not self._filled_up(View(index, owners, position), course.start):
            for block in self._history.template_blocks(self._id):
                _go_on_unless(given_up)
                course.meet(block.point)
                self._check_moved(block.embeddings[:1])
                index.add(block.ids, block.embeddings)
                _log.info("index.building", gallery=self._name, templates=len(index))
            self._remove_surplus(index)
        if position.revision >= 0 and not trusted:
            index.put_position(*course.start)
        else:
            index.set_position(*course.start)
        _log.info("index.ready", gallery=self._name, templates=len(index), revision=course.start.revision)
        return View(index, owners, course.start)

    def without_surplus(self, view: View) -> View:
        """The view, with nothing in an engine that SQL does not have.

        A process may have died between writing a template there and hearing that it was erased meanwhile.
        """
        if isinstance(view.index, SharedIndex) and len(view.index) != len(view.owners):
            self._remove_surplus(view.index)
        return view

    def _filled_up(self, view: View, present: Point) -> bool:
        """Tell an index outside the process what it has missed; False where it must be filled anew.

        Its position stays until all is told, so that a wish for a rebuild is met by whoever comes next.
        """
        try:
            while view.revision < present.revision:
                changes, trail = self._changes(view.point, present.revision)
                if asks_for_rebuild(changes):
                    return False
                replay(view, changes)
                view = View(view.index, view.owners, trail[-1])
        except Gap:
            return False
        return view.point == present

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

    def _owners(self, course: Course | None = None) -> TemplateOwners:
        blocks = list(self._history.owner_blocks(self._id))
        if course is not None:
            for block in blocks:
                course.meet(block.point)
        none = np.empty(0, np.int64)
        return TemplateOwners(
            np.concatenate([none, *(block.ids for block in blocks)]),
            np.concatenate([none, *(block.subject_ids for block in blocks)]),
        )

    def _changes(self, after: Point, revision: int) -> tuple[list[Change], list[Point]]:
        """Some of the changes up to a revision, and the points that they lead through, beginning with `after`.

        Raises:
            Gap: some were pruned.
            Undone: they follow upon another point of that revision.
        """
        if revision - after.revision > _FEW:
            revision, found = self._history.slice_of_changes(self._id, after=after.revision, up_to=revision)
            if found < revision - after.revision:
                raise Gap
        changes = self._history.changes(self._id, after=after.revision, up_to=revision)
        trail = [after]
        for change in changes:
            before = trail[-1]
            if change.revision == before.revision:
                continue
            if change.revision != before.revision + 1:
                raise Gap
            if change.previous != before.mark:
                raise Undone
            trail.append(Point(change.revision, change.mark))
        if trail[-1].revision < revision:
            raise Gap
        return changes, trail


def _go_on_unless(given_up: Callable[[], bool]) -> None:
    if given_up():
        raise GivenUp
