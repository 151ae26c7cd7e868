"""What a process keeps of a gallery's view on disk: written, erased from, and taken up from other processes."""

import threading
from contextlib import suppress
from functools import partial

import structlog

from app.gallery.deadline import holding
from app.gallery.index import SegmentedIndex
from app.gallery.points import Point
from app.gallery.records import Gallery
from app.gallery.snapshots.files import ViewReplaced
from app.gallery.snapshots.kept import Snapshots
from app.gallery.snapshots.sealed import KeyDestroyed
from app.gallery.sql.history import GalleryHistory
from app.gallery.views.followed import FollowedView
from app.gallery.views.gallery_reading import GalleryReading
from app.gallery.views.owners import TemplateOwners
from app.gallery.views.view import View

_TRIES = 3  # at a snapshot during which other machines erase something, or the view is loaded anew
_log = structlog.get_logger()


class ViewOnDisk:
    """The snapshots of one view.

    Args:
        followed: the view.
        reading: of its gallery.
        history: is told what was erased.
        snapshots: where it is kept; None: nowhere.
        tending: held by whoever works on the view at length.
    """

    def __init__(
        self,
        followed: FollowedView,
        reading: GalleryReading,
        history: GalleryHistory,
        snapshots: Snapshots | None,
        *,
        tending: threading.Lock,
    ) -> None:
        self._followed = followed
        self._reading = reading
        self._history = history
        self._snapshots = snapshots
        self._tending = tending

    def write(self, *, erase: bool = False) -> int | None:
        """Keep the present view on disk; answers its revision, or None where it is not of a kind that is kept.

        Nor is one kept that is to be built or loaded anew, or whose gallery is gone, or of another extractor by now.

        Args:
            erase: let no embedding that was erased survive in the files.

        Raises:
            TimedOut: the request is out of time; the upkeep was at something long.
        """
        if self._snapshots is None or not isinstance(self._followed.view.index, SegmentedIndex):
            return None
        with holding(self._tending):
            revision = None
            try:
                for _ in range(_TRIES):
                    try:
                        revision = self._written(self._snapshots, erase=erase)
                        break
                    except (KeyDestroyed, ViewReplaced):
                        # Another machine has erased something that the view may have had, or the view was undone.
                        _log.info("snapshot.begun_anew", gallery=self._reading.name)
            except Exception:
                if erase:
                    self._snapshots.drop()
                raise
            if erase and revision is None:
                self._snapshots.drop()
            return revision

    def _written(self, snapshots: Snapshots, *, erase: bool) -> int | None:
        """Write a snapshot; answers its revision, or None where there is none.

        Raises:
            KeyDestroyed: something was erased meanwhile.
            ViewReplaced: it was loaded anew meanwhile.
        """
        key = snapshots.take_key(anew=erase)  # before the gallery is read, so that it has what destroyed the last one
        gallery = self._reading.unmoved()
        if self._followed.view.rebuild_wanted or self._followed.lost or gallery is None:
            return None
        anew = erase if key is None else key.before is None
        reached = not anew or self._reached(gallery.point)
        written = self._to_be_written(anew=anew) if reached else None
        if written is None:
            return None
        try:
            # What the index takes in between is newer than the revision; replaying it again does no harm.
            snapshots.write(*written, reach=partial(self._followed.reach, written[0]), key=key, erase=erase)
        finally:
            # Who erased the gallery meanwhile may have looked for snapshots before this one was there.
            here = self._reading.present() is not None
            if not here:
                snapshots.erase()
        return written[2].revision if here else None

    def erase(self, gallery: Gallery) -> int:
        """Have nothing that was erased so far left in this machine's snapshots; answers how many there were.

        Only the process that leads calls this. Where the snapshot cannot be written anew, there is none afterwards; nor
        where nothing but loading brings the view up to date.

        Args:
            gallery: as SQL has it, with what is to be erased.

        Raises:
            OSError, FacegalleryError: snapshots cannot be removed, or the vault or the database does not answer; the
                erasure is still to be followed.
        """
        if self._snapshots is None:
            return 0
        with holding(self._tending):  # one that is being written is waited for
            there = len(self._snapshots.revisions)
            reached = False
            with suppress(Exception):
                reached = self._reached(gallery.point)
            if not there or not reached:
                self._snapshots.drop()  # also the keys that an attempt before could not destroy
        if there and reached:
            try:
                self.write(erase=True)
            except OSError as error:
                _log.error("snapshot.failed", gallery=self._reading.name, reason=str(error))
                self._snapshots.drop()  # again: what failed may have been that
        if gallery.erasure is not None:
            self._history.snapshots_erased(gallery.id, gallery.erasure)
        return there

    def drop(self) -> None:
        """As `erase`, in place of the process that leads: its snapshots go, and none is written.

        Should that process be at one, it finds its key destroyed and begins anew.

        Raises:
            FacegalleryError: the vault or the database does not answer; the erasure is still to be followed.
        """
        gallery = self._reading.gallery()
        if self._snapshots is None or gallery is None or gallery.erasure is None:
            return
        self._snapshots.drop()
        self._history.snapshots_erased(gallery.id, gallery.erasure)

    def adopt(self) -> bool:
        """Switch to a newer snapshot that another process of this machine has written, and share its memory."""
        if self._snapshots is None or not isinstance(self._followed.view.index, SegmentedIndex):
            return False
        with self._tending:
            opened = self._snapshots.open_newer(self._reading.contradiction)
            if opened is None:
                return False
            return self._followed.switch(View(*opened))

    def _to_be_written(self, *, anew: bool) -> tuple[SegmentedIndex, TemplateOwners, Point] | None:
        """The index, the owners and the point of one view, or None where it is not to be kept.

        Args:
            anew: nothing that was erased so far is in the index's codes or saved files.
        """
        while isinstance(index := self._followed.view.index, SegmentedIndex):
            if anew:
                index.rewrite_erased()
            with self._followed.lock:
                view = self._followed.view
                if view.rebuild_wanted:  # since a moment ago: the point would say that it was done
                    return None
                if view.index is index:  # else it was loaded anew meanwhile
                    return index, view.owners.copy(), view.point
        return None

    def _reached(self, point: Point) -> bool:
        """Follow to a point by replaying; whether that was enough."""
        with self._followed.lock:
            return self._followed.brought_to(*point) and self._followed.view.revision >= point.revision
