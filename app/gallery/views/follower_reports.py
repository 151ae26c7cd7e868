"""How far a process and its snapshots have followed each gallery, told to the others, which drop what nobody needs."""

import socket
import time
from collections.abc import Callable, Sequence

from app.gallery.sql.history import GalleryHistory
from app.gallery.views.background import Background
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.turns import Turns

_EVERY = 30.0  # seconds between two reports
_AT_LEAST = 500  # replicas of one report in which nothing has moved since they were in one
_ROUND = 20  # reports within which each is in one: ten minutes, while an hour's silence is death
_LAST_PIECE = 2.0  # seconds for the report that is under way then


class FollowerReports:
    """Reports by a thread of its own: what the upkeep does may take long, and changes that it needs must stay.

    A replica that is not loaded yet, or is to be built anew, is reported as well. It needs every change from then on,
    and so nothing is dropped. Of thousands in which nothing moves some are reported in turn.

    Args:
        name: of the process.
        replicas: those that it has.
        history: that they follow.
        quietly: calls a function with arguments, and lives on if it fails.
    """

    def __init__(
        self,
        name: str,
        replicas: Callable[[], list[GalleryReplica]],
        history: GalleryHistory,
        *,
        quietly: Callable[..., None],
    ) -> None:
        self._name = name
        self._replicas = replicas
        self._history = history
        self._quietly = quietly
        self._reported = float("-inf")
        self._told: dict[GalleryReplica, tuple[int, int]] = {}
        self._turns = Turns(calls=_ROUND, at_least=_AT_LEAST)
        self._thread = Background("reports", self.report_all, pause=_EVERY, steps_back=False)

    def start(self) -> None:
        """Report all, now and from now on."""
        self.report_all()
        self._thread.start()

    @property
    def started(self) -> bool:
        """Whether it has been."""
        return self._thread.started

    def stop(self) -> None:
        """Report no more, and be no follower any more."""
        self._thread.end()
        self._thread.left_behind(_LAST_PIECE)
        self._quietly(self._history.leave, [self._name])

    def report_all(self) -> None:
        """Report what has moved, and others in their turn, and drop what all followers have behind them."""
        self._reported = time.monotonic()
        self._quietly(self._report_due, self._replicas())

    def look(self) -> None:
        """Report all if it is time; called every second or so."""
        if time.monotonic() - self._reported >= _EVERY:
            self.report_all()

    def report(self, replica: GalleryReplica) -> None:
        """Report one, with its snapshot."""
        self._report([replica])

    def _report_due(self, replicas: Sequence[GalleryReplica]) -> None:
        turn = set(self._turns.take(replicas))
        points = {one: (_behind(one), -1 if one.snapshots is None else one.snapshots.known) for one in replicas}
        self._report([one for one, point in points.items() if one in turn or self._told.get(one) != point])
        self._told = points

    def _report(self, replicas: Sequence[GalleryReplica]) -> None:
        reports = list[tuple[int, str, int]]()
        for replica in replicas:
            reports.append((replica.gallery_id, self._name, _behind(replica)))
            self._quietly(self._add_snapshot, reports, replica)
        self._history.report_all(reports)
        self._history.prune_all(replica.gallery_id for replica in replicas)

    @staticmethod
    def _add_snapshot(reports: list[tuple[int, str, int]], replica: GalleryReplica) -> None:
        if replica.snapshots is not None and (revision := replica.snapshots.lasting) >= 0:
            place = f"snapshot {socket.gethostname()}:{replica.snapshots.folder}"[-200:]
            reports.append((replica.gallery_id, place, revision))


def _behind(replica: GalleryReplica) -> int:
    """Up to which revision a replica needs no change any more; -1 until the index is there that it is to have.

    What is built beside a view follows from where the building began, while calls bring the view on, and one that was
    undone has a number that tells nothing.
    """
    return -1 if replica.lost or replica.rebuild_wanted else replica.applied_revision
