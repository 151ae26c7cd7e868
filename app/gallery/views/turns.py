"""Replicas in turn: some at each call, and all of them within a round."""

import math
from collections.abc import Sequence

from app.gallery.views.replica import GalleryReplica


class Turns:
    """Whose turn it is, for one thread.

    Args:
        calls: within which each replica has its turn.
        at_least: turns at one call.
    """

    def __init__(self, *, calls: int, at_least: int) -> None:
        self._calls, self._at_least = calls, at_least
        self._next = 0

    def take(self, replicas: Sequence[GalleryReplica]) -> Sequence[GalleryReplica]:
        """Those whose turn it is now, of all that there are."""
        first = self._next
        last = first + max(self._at_least, math.ceil(len(replicas) / self._calls))
        self._next = last if last < len(replicas) else 0
        return replicas[first:last]
