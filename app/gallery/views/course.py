"""The course of a gallery's history while it is read, and how it may break off."""

from collections.abc import Callable

from app.gallery.points import BEFORE, Point


class Gap(Exception):
    """Changes in between are gone: nothing but loading anew helps."""


class Undone(Gap):
    """What a view was made of is no longer in the gallery's history: the database was set back."""


class Course:
    """Sees to it that what is read in several goes is of one history.

    Args:
        present: where the gallery is, None where it is gone.
        contradiction: says why the gallery's history does not go through a point, None where it does.
    """

    def __init__(self, present: Point | None, contradiction: Callable[[Point], str | None]) -> None:
        self.start = self.last = present or BEFORE
        self._contradiction = contradiction

    def meet(self, point: Point | None) -> None:
        """Note how new what was just read may be.

        Raises:
            Undone: the database has been set back since the last time.
        """
        if point is None or point == self.last:
            return
        if point.revision <= self.last.revision or self._contradiction(self.last) is not None:
            raise Undone
        self.last = point
