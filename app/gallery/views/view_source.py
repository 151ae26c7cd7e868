"""Where a view of a gallery comes from: it is built from SQL, beside an engine or not, and brought up to date."""

from collections.abc import Callable, Sequence

import numpy as np
import structlog

from app.gallery.index import SegmentedIndex, SharedIndex, TemplateIndex
from app.gallery.index.protocol import agrees
from app.gallery.points import BEFORE, Point
from app.gallery.views.course import Course, Gap, Undone
from app.gallery.views.engine_views import EngineViews
from app.gallery.views.gallery_reading import GalleryReading, GivenUp, Steps, never
from app.gallery.views.owners import TemplateOwners
from app.gallery.views.view import View, asks_for_rebuild, replay

_log = structlog.get_logger()


class ViewSource:
    """Builds views of one gallery.

    Args:
        reading: of that gallery.
        make_index: makes an empty index, or opens one outside the process.
    """

    def __init__(self, reading: GalleryReading, make_index: Callable[[], TemplateIndex]) -> None:
        self._reading = reading
        self._make_index = make_index
        self._engine_views = EngineViews(reading)

    def empty(self) -> View:
        """A view from before the first load."""
        return View(self._make_index(), TemplateOwners(), BEFORE)

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
            course = Course(self._reading.present(), self._reading.contradiction)
            try:
                if isinstance(index, SharedIndex):
                    view = self._engine_views.beside(index, position, course, fill=fill, given_up=given_up)
                else:
                    view = self._of_this_process(index, course, given_up)
                if (reached := self._brought_to(view, course.last)) is not None:
                    return reached
            except Undone:  # meanwhile, so what was read may be of both histories
                fill = True
                _log.warning("index.undone", gallery=self._reading.name)

    def set_right(self, view: View) -> View:
        """The view, with as many templates in an engine as SQL has.

        A process may have died between writing a template there and hearing that it was erased meanwhile, and the
        engine's server may have lost some.
        """
        if isinstance(view.index, SharedIndex) and len(view.index) != len(view.owners):
            self._engine_views.set_right(view.index)
        return view

    def _of_this_process(self, index: TemplateIndex, course: Course, given_up: Callable[[], bool]) -> View:
        ids, subjects = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for block in self._reading.blocks(course, given_up):
            index.add(block.ids, block.embeddings)
            ids.append(block.ids)
            subjects.append(block.subject_ids)
            _log.info("index.building", gallery=self._reading.name, templates=len(index))
        while isinstance(index, SegmentedIndex) and index.maintain():
            if given_up():
                raise GivenUp
        view = View(index, TemplateOwners(np.concatenate(ids), np.concatenate(subjects)), course.start)
        _log.info("index.ready", gallery=self._reading.name, templates=len(index), revision=view.revision)
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
                view = self.replayed(view, last.revision)
                if view.rebuild_wanted:
                    return None
        except Undone:
            raise
        except Gap:  # nobody knows any more; whoever follows finds the gap as well
            return view
        if view.point != last:
            raise Undone
        return view

    def replayed(self, view: View, revision: int) -> View:
        """The view with some of the changes up to a revision.

        Those are some ten thousand rows: who wants them all calls again until the view has the revision.

        Raises:
            Undone: the view, or what an engine holds, is of a history that the database has undone.
            Gap: changes in between were pruned, or an engine has dropped what the view searches.
            ExtractorMismatch: the gallery has moved to another extractor meanwhile.
        """
        if view.revision >= revision:
            return view
        return self.taken(view, self._reading.steps(view.point, revision))

    def taken(self, view: View, steps: Steps) -> View:
        """The view with changes that were read for it.

        Where an engine fails, the view may hold a part of them, though it is at its own point still.

        Raises:
            Undone, Gap: as `replayed`.
        """
        asked, index = asks_for_rebuild(steps.changes), view.index
        if asked and isinstance(index, SharedIndex):
            index = self._reopened()
        followed = View(index, view.owners, steps.end, view.rebuild_wanted or asked)
        replay(followed, steps.changes)
        if isinstance(index, SharedIndex):
            self._remember(index, steps.trail)
        return followed

    def told_again(self, view: View) -> None:
        """Have an engine that has lost its last writes hold what a view does.

        Raises:
            Gap: it must be filled anew.
            ExtractorMismatch: the gallery has moved to another extractor meanwhile.
        """
        if isinstance(view.index, SharedIndex) and self._remember(view.index, [view.point]).revision < 0:
            raise Gap

    def _remember(self, index: SharedIndex, trail: Sequence[Point]) -> Point:
        """Have an index outside the process remember where a trail ends, unless it is further; answers where it is.

        One that has fallen back behind the trail is told first what it has lost; who owns what, the view knows.

        Raises:
            Undone: it is where the gallery's history does not go through any more.
            Gap: what it has lost is not written down any more.
            ExtractorMismatch: the gallery has moved to another extractor meanwhile.
        """
        marks = dict(trail)
        there = index.set_position(*trail[-1], trail=marks)
        while 0 <= there.revision < min(marks):
            _log.info("index.told_again", gallery=self._reading.name, position=there.revision, applied=min(marks))
            if not self._engine_views.filled_up(View(index, TemplateOwners(), there), trail[-1]):
                raise Gap
            marks[there.revision] = there.mark
            there = index.set_position(*trail[-1], trail=marks)
        if (
            there != trail[-1]
            and there.revision >= 0
            and (not agrees(there, marks) or self._reading.contradiction(there))
        ):
            raise Undone
        return there

    def _reopened(self) -> TemplateIndex:
        """The index outside the process, opened anew: a gallery that leaves an extractor and comes back loses it.

        Raises:
            Gap: it must be filled before anybody is found in it.
        """
        index = self._make_index()
        if isinstance(index, SharedIndex) and index.point().revision < 0:
            raise Gap
        return index
