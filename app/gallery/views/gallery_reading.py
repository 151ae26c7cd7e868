"""What a view of a gallery is made of, as it is read from SQL."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.gallery.extractor_check import check_extractor
from app.gallery.points import Point
from app.gallery.records import Change, Gallery, TemplateBlock
from app.gallery.sql.history import GalleryHistory
from app.gallery.views.course import Course, Gap, Undone
from app.gallery.views.owners import TemplateOwners

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


class GalleryReading:
    """Reads one gallery.

    Args:
        gallery: which.
        history: where.
    """

    def __init__(self, gallery: Gallery, history: GalleryHistory) -> None:
        self.name = gallery.name
        self._gallery = gallery
        self._history = history

    def gallery(self) -> Gallery | None:
        """The gallery as SQL has it now, None where it is gone."""
        return self._history.gallery(self._gallery.id)

    def unmoved(self) -> Gallery | None:
        """As `gallery`, and None where it has moved to another extractor."""
        gallery = self.gallery()
        return gallery if gallery is not None and gallery.extractor == self._gallery.extractor else None

    def present(self) -> Point | None:
        """Where in its history SQL has the gallery, None where it is gone."""
        return self._history.point(self._gallery.id)

    def contradiction(self, point: Point) -> str | None:
        """Why the gallery's history in SQL does not go through a point, None where it does."""
        return self._history.contradiction(self._gallery.id, point)

    @property
    def large(self) -> bool:
        """Whether building takes longer than a request may wait."""
        return self._history.has_more_than(self._gallery.id, _LARGE)

    def blocks(self, course: Course, given_up: Callable[[], bool]) -> Iterator[TemplateBlock]:
        """All templates, block by block, while the course goes on.

        Raises:
            GivenUp: it was.
            Undone, ExtractorMismatch: as `steps`.
        """
        for block in self._history.template_blocks(self._gallery.id):
            if given_up():
                raise GivenUp
            course.meet(block.point)
            self._check_moved(block.embeddings[:1])
            yield block

    def embeddings(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings (N, D) of some templates; NaN where one is gone or does not open.

        Raises:
            ExtractorMismatch: the gallery has moved to another extractor.
        """
        return self._history.embeddings(ids, self._gallery)

    def owners(self, course: Course | None = None) -> TemplateOwners:
        """Who owns which template, read while the course, if there is one, goes on.

        Raises:
            Undone: of the course.
        """
        blocks = list(self._history.owner_blocks(self._gallery.id))
        if course is not None:
            for block in blocks:
                course.meet(block.point)
        none = np.empty(0, np.int64)
        return TemplateOwners(
            np.concatenate([none, *(block.ids for block in blocks)]),
            np.concatenate([none, *(block.subject_ids for block in blocks)]),
        )

    def steps(self, after: Point, revision: int) -> Steps:
        """Some of the changes up to a revision, which is beyond a point; some ten thousand rows.

        Raises:
            Undone: the point is of a history that the database has undone.
            Gap: changes in between were pruned.
            ExtractorMismatch: the gallery has moved to another extractor meanwhile.
        """
        changes, trail = self.changes(after, revision)
        self._check_moved([change.embedding for change in changes if change.embedding is not None])
        return Steps(changes, trail)

    def changes(self, after: Point, revision: int) -> tuple[list[Change], list[Point]]:
        """Some of the changes up to a revision, and the points that they lead through, beginning with `after`.

        Raises:
            Gap: some were pruned.
            Undone: they follow upon another point of that revision.
        """
        if revision - after.revision > _FEW:
            revision, found = self._history.slice_of_changes(self._gallery.id, after=after.revision, up_to=revision)
            if found < revision - after.revision:
                raise Gap
        changes = self._history.changes(self._gallery.id, after=after.revision, up_to=revision)
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

    def _check_moved(self, embeddings: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> None:
        """Take no embeddings of another length, which are those of an extractor that the gallery has moved to.

        Raises:
            ExtractorMismatch: it has.
            Undone: it has, and is back already, or gone: what is read in several goes is of both.
        """
        if all(len(embedding) == self._gallery.dimension for embedding in embeddings):
            return
        present = self.gallery()
        if present is None or present.dimension == self._gallery.dimension:
            raise Undone
        check_extractor(present, self._gallery.extractor)
        raise ValueError(f"gallery {self.name!r} has embeddings of {present.dimension} numbers by this extractor")
