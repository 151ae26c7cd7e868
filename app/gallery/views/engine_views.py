"""Views whose index is an engine outside the process, which other processes fill and search as well."""

from collections.abc import Callable

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.engines import EngineIndex
from app.gallery.index import SharedIndex
from app.gallery.points import Point
from app.gallery.views.course import Course, Gap
from app.gallery.views.gallery_reading import GalleryReading
from app.gallery.views.view import View, asks_for_rebuild, replay

_PIECE = 10_000  # templates that are read and added together
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
        if fill or not trusted or not self.filled_up(View(index, owners, position), course.start):
            for block in self._reading.blocks(course, given_up):
                index.add(block.ids, block.embeddings)
                _log.info("index.building", gallery=self._reading.name, templates=len(index))
            self.set_right(index)
        if position.revision >= 0 and not trusted:
            index.put_position(*course.start)
        else:
            index.set_position(*course.start)
        _log.info("index.ready", gallery=self._reading.name, templates=len(index), revision=course.start.revision)
        return View(index, owners, course.start)

    def set_right(self, index: SharedIndex) -> None:
        """Add what SQL has and the index has not, as its server has lost it, and remove what SQL does not have.

        Only what SQL has committed is ever written to an engine, so what is there and then not in SQL was erased, or
        undone by a backup. The latter may give an id away again at any moment; hence the second look.

        Raises:
            ExtractorMismatch: the gallery has moved to another extractor meanwhile.
        """
        if not isinstance(index, EngineIndex):
            return
        there, known = index.ids(), self._known()
        if added := self._add(index, np.setdiff1d(known, there)):
            _log.warning("index.missing_added", gallery=self._reading.name, templates=added)
            there, known = index.ids(), self._known()  # one of them may have been erased meanwhile
        surplus = np.setdiff1d(there, known)
        if not len(surplus):
            return
        index.remove(surplus)
        back = np.intersect1d(surplus, self._known())
        self._add(index, back)
        _log.warning("index.surplus_removed", gallery=self._reading.name, templates=len(surplus) - len(back))

    def _known(self) -> NDArray[np.int64]:
        """The ids of all templates in SQL, ascending, shape (N,)."""
        return self._reading.owners().pairs()[0]

    def _add(self, index: SharedIndex, ids: NDArray[np.int64]) -> int:
        """Add some templates that open; answers how many do."""
        added = 0
        for first in range(0, len(ids), _PIECE):
            piece = ids[first : first + _PIECE]
            embeddings = self._reading.embeddings(piece)
            opened = ~np.isnan(embeddings[:, 0])
            if opened.any():
                index.add(piece[opened], embeddings[opened])
            added += int(np.count_nonzero(opened))
        return added

    def filled_up(self, view: View, present: Point) -> bool:
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
