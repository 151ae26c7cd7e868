"""Which replicas a look of the upkeep visits: those that may have something to do, and some of the others in turn."""

from collections.abc import Sequence

from app.gallery.records import Gallery
from app.gallery.sql.history import GalleryHistory, GalleryState
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.turns import Turns

_ROUND = 60  # looks within which each has its turn
_AT_LEAST = 50  # turns at one look


class Rounds:
    """What is known of all galleries, and which replicas rest; for one thread.

    A replica rests that has nothing to do until its gallery changes in SQL. What no change there tells of, as that the
    process which led has died, it finds at its turn.
    """

    def __init__(self, history: GalleryHistory) -> None:
        self.galleries: dict[int, Gallery] = {}
        self.idle = False
        """Whether the last look found nothing to do but turns."""
        self._history = history
        self._states: dict[int, GalleryState] = {}
        self._resting = set[GalleryReplica]()
        self._turns = Turns(calls=_ROUND, at_least=_AT_LEAST)

    def look(self) -> set[int]:
        """Read what has changed, in one statement where nothing has; answers the ids, of what is gone as well."""
        states = self._history.states()
        came = {one for one, state in states.items() if self._states.get(one) != state}
        read = self._history.galleries(sorted(came))
        changed = came | (self._states.keys() - states.keys())
        for one in changed:
            self.galleries.pop(one, None)
        self.galleries |= read
        self._states = states
        return changed

    def due(self, replicas: Sequence[GalleryReplica], changed: set[int]) -> list[GalleryReplica]:
        """Those of all replicas that are to be visited now."""
        turn = self._turns.take(replicas)
        self._resting.intersection_update(replicas)  # the others were let go
        self.idle = not changed and len(self._resting) == len(replicas)
        self._resting.difference_update(turn, [one for one in replicas if one.lost or one.gallery_id in changed])
        return [one for one in replicas if one not in self._resting]

    def rest(self, replica: GalleryReplica) -> None:
        """Visit a replica in its turn, until its gallery changes."""
        self._resting.add(replica)
