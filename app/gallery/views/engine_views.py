"""Views whose index is an engine outside the process, which other processes fill and search as well."""

from collections.abc import Callable

import numpy as np
import structlog

from app.gallery.engines import EngineIndex
from app.gallery.index import SharedIndex
from app.gallery.points import Point
from app.gallery.views.course import Course, Gap
from app.gallery.views.gallery_reading import GalleryReading
from app.gallery.views.view import View, asks_for_rebuild, replay

_log = structlog.get_logger()


class EngineViews:
    """Makes views of one gallery beside an engine.

    Args:
        reading: of that gallery.
    """

    def __init__(self, reading: GalleryReading) -> None:
        self._reading = reading

    def beside(
        self, index: SharedIndex, position: Point, course: Course, *, fill: bool, given_up: Callable[[], bool]
    ) -> View:
        """Owners from SQL, beside an index that other processes may have filled already.

        Filling anew overwrites and never clears, as others are searching; what SQL does not have is removed afterwards.
        """
        trusted = position.revision >= 0 and self._reading.contradiction(position) is None
        owners = self._reading.owners(course)
        if fill or not trusted or not self._filled_up(View(index, owners, position), course.start):
            for block in self._reading.blocks(course, given_up):
                index.add(block.ids, block.embeddings)
                _log.info("index.building", gallery=self._reading.name, templates=len(index))
            self.remove_surplus(index)
        if position.revision >= 0 and not trusted:
            index.put_position(*course.start)
        else:
            index.set_position(*course.start)
        _log.info("index.ready", gallery=self._reading.name, templates=len(index), revision=course.start.revision)
        return View(index, owners, course.start)

    def remove_surplus(self, index: SharedIndex) -> None:
        """Remove what SQL does not have.

        Only what SQL has committed is ever written to an engine, so what is there and then not in SQL was erased, or
        undone by a backup. The latter may give an id away again at any moment; hence the second look.

        Raises:
            ExtractorMismatch: the gallery has moved to another extractor meanwhile.
        """
        if not isinstance(index, EngineIndex):
            return
        there = index.ids()
        surplus = np.setdiff1d(there, self._reading.owners().pairs()[0])
        if not len(surplus):
            return
        index.remove(surplus)
        back = np.intersect1d(surplus, self._reading.owners().pairs()[0])
        embeddings = self._reading.embeddings(back)
        opened = ~np.isnan(embeddings[:, 0])
        if opened.any():
            index.add(back[opened], embeddings[opened])
        _log.warning("index.surplus_removed", gallery=self._reading.name, templates=len(surplus) - len(back))

    def _filled_up(self, view: View, present: Point) -> bool:
        """Tell an index outside the process what it has missed; False where it must be filled anew.

        Its position stays until all is told, so that a wish for a rebuild is met by whoever comes next.

        Raises:
            ExtractorMismatch: the gallery has moved to another extractor meanwhile.
        """
        try:
            while view.revision < present.revision:
                steps = self._reading.steps(view.point, present.revision)
                if asks_for_rebuild(steps.changes):
                    return False
                replay(view, steps.changes)
                view = View(view.index, view.owners, steps.end)
        except Gap:
            return False
        return view.point == present
