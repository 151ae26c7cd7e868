"""Which process of a machine builds an index that all of them need."""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import structlog

from app.gallery.records import Gallery
from app.gallery.views.leader_watch import LeaderWatch
from app.gallery.views.replica import GalleryReplica

_log = structlog.get_logger()
_SILENT = 1800.0  # seconds in which who leads shows no sign, as a building takes long
_SIGNS = 3  # of life without a snapshot: by the third it has tried


class Building:
    """The one that leads builds, and the others wait for its snapshot; should none come, each builds for itself.

    What takes but a moment everybody builds at once.

    Args:
        snapshots: whether any are written.
    """

    def __init__(self, *, snapshots: bool) -> None:
        self._snapshots = snapshots
        self._watches = WeakKeyDictionary[GalleryReplica, LeaderWatch]()

    def load(
        self, replica: GalleryReplica, gallery: Gallery, given_up: Callable[[], bool], *, leads: bool | None
    ) -> bool:
        """Bring a replica up to date with its gallery; where it has an index, a new one that is wanted comes later.

        Args:
            replica: of that gallery.
            gallery: as SQL has it.
            given_up: whether the process is ending.
            leads: whether this process does; None: there is no folder for snapshots.

        Returns:
            Whether it was built here.
        """
        elsewhere = partial(self._elsewhere, replica, leads)
        return replica.follow(*gallery.point, given_up=given_up, elsewhere=elsewhere)

    def bring_on(
        self, replica: GalleryReplica, gallery: Gallery, given_up: Callable[[], bool], *, leads: bool | None
    ) -> bool:
        """As `load`, take up what who leads has written, and build the new index that is wanted.

        Returns:
            Whether the replica has another index than before.
        """
        before = replica.view.index
        self.load(replica, gallery, given_up, leads=leads)
        # Who wants a new index may lead by now because the one that built it hangs, or is gone.
        if not replica.lost and (leads is False or replica.rebuild_wanted):
            replica.on_disk.adopt()
        if replica.rebuild_wanted and not self._elsewhere(replica, leads):
            replica.rebuild(given_up)
        if not replica.lost and not replica.rebuild_wanted:
            self._watches.pop(replica, None)
        return replica.view.index is not before

    def waits(self, replica: GalleryReplica) -> bool:
        """Whether another process was seen to build what this one needs, at the last look."""
        return replica in self._watches

    def _elsewhere(self, replica: GalleryReplica, leads: bool | None) -> bool:
        """Whether what is to be built is left to who leads."""
        if replica.snapshots is None or not self._snapshots or leads is not False or not replica.large:
            return False
        watch = self._watches.get(replica)
        if watch is None:
            watch = self._watches[replica] = LeaderWatch()
            _log.info("index.awaited", gallery=replica.name, meaning="another process of this machine builds it")
        watch.look(replica.snapshots.lead_sign)
        return watch.signs < _SIGNS and watch.silence < _SILENT
