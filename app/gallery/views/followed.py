"""The view of a gallery that a process searches, and how it follows what SQL has."""

import threading
from collections.abc import Callable
from dataclasses import replace

import structlog

from app.gallery.index import SegmentedIndex
from app.gallery.points import Point
from app.gallery.snapshots.files import ViewReplaced
from app.gallery.snapshots.kept import Snapshots
from app.gallery.views.course import Gap, Undone
from app.gallery.views.gallery_reading import GalleryReading
from app.gallery.views.view import View
from app.gallery.views.view_source import ViewSource

_log = structlog.get_logger()


class FollowedView:
    """One view at a time, switched as one. Searches take it as it is; what brings it on holds the lock.

    Args:
        reading: of the gallery.
        source: where views of it come from.
        snapshots: where views are kept on disk; None: nowhere.
        tended: whether a background thread follows, which then looks for what an engine has too much.
    """

    def __init__(
        self, reading: GalleryReading, source: ViewSource, snapshots: Snapshots | None, *, tended: bool
    ) -> None:
        self.lock = threading.Lock()
        self.lost = False
        """Whether nothing but loading brought the view on when that was last tried."""
        self._reading = reading
        self._source = source
        self._name = reading.name
        self._snapshots = snapshots
        self._tended = tended
        self._view = source.empty()
        self._halfway: Point | None = None  # of changes that an engine failed in the middle of
        self._set_back = False  # whether an engine may have lost what it was told of the view
        self._too_old: int | None = None  # revision of a snapshot from before changes that were pruned

    @property
    def view(self) -> View:
        """The present view."""
        return self._view

    def is_at(self, revision: int, mark: int | None) -> bool:
        """Whether the view is true up to a revision, holds nothing beyond, and nothing is to be done to know that."""
        known = self._halfway is None and not self._set_back and not self.lost
        return known and self._view.is_at(revision, mark)

    def doubt(self) -> None:
        """Have the next call that brings the view on compare an engine with SQL, and tell it what it has lost."""
        self._set_back = True

    def put(self, view: View) -> None:
        """Search another view; the lock is held."""
        self._view, self._halfway, self._set_back, self.lost = view, None, False, False

    def reach(self, index: SegmentedIndex) -> Point:
        """The last point of which a view's index may hold something by now.

        Raises:
            ViewReplaced: it is searched no more.
        """
        with self.lock:  # what is being replayed is done
            if self._view.index is not index:
                raise ViewReplaced
            return self._halfway or self._view.point

    def brought_to(self, revision: int, mark: int | None, *, slices: int | None = None) -> bool:
        """Replay what has come, or so many slices of it; False where nothing but loading helps. The lock is held."""
        self.lost = not self._brought_to(revision, mark, slices)
        return not self.lost

    def _brought_to(self, revision: int, mark: int | None, slices: int | None) -> bool:
        if self._view.revision < 0:
            return False
        if self._halfway is not None and self._reading.contradiction(self._halfway) is not None:
            self._warn_of_undoing(revision)  # of which the view holds a part
            return False
        if self._set_back:
            try:
                self._source.told_again(self._view)
            except Gap:
                self._warn_of_gap(revision)
                return False
            self._set_back = False
        if self._view.revision >= revision and not self._view.is_at(revision, mark):
            # Another call was faster, or SQL is behind this view: an older copy of the database has taken its place.
            present = self._reading.present()
            if present is None or present == self._view.point:
                return True
            if present.revision <= self._view.revision:
                self._warn_of_undoing(present.revision)
                return False
            revision = present.revision
        while self._view.revision < revision and slices != 0:
            try:
                self._take_some(revision)
            except Undone:
                self._warn_of_undoing(revision)
                return False
            except Gap:
                self._warn_of_gap(revision)
                return False
            slices = None if slices is None else slices - 1
        return True

    def from_snapshot(self, revision: int) -> View | None:
        """A view up to a revision that SQL has, from a snapshot, None where none will do; it is not put."""
        if self._snapshots is None or self._too_old == max(self._snapshots.revisions, default=-1):
            return None
        opened = self._snapshots.open_newest(self._reading.contradiction)
        if opened is None:
            return None
        view = View(*opened)
        try:
            while view.revision < revision:
                view = self._source.replayed(view, revision)
        except Gap:
            self._too_old = opened[2].revision
            _log.warning("snapshot.too_old", gallery=self._name, revision=self._too_old)
            return None
        return view

    def built(self, given_up: Callable[[], bool]) -> View:
        """A view from SQL; it is not put.

        Raises:
            GivenUp: the process is ending.
        """
        # An engine that may hold what this process wrote there of an undone history is filled whatever it says.
        view = self._source.built(fill=self._view.revision >= 0, given_up=given_up)
        return self._source.set_right(view) if self._tended else view

    def switch(self, view: View) -> bool:
        """Bring a view that was made beside the present one up to date, and put it in its place."""
        with self.lock:
            if self._view.revision < 0:  # the first: nobody searches yet, and who does catches up before
                self.put(view)
                return True
        try:
            view = self._brought_on(view)  # most of it while searches go on with the present one
            with self.lock:
                self.put(self._brought_on(view))
        except Gap:
            return False
        return True

    def fold_owners(self) -> None:
        """Fold what has changed among the owners into their long lists, beside the searches."""
        with self.lock:
            owners = self._view.owners
            then = owners.begin_folding()
        folded = then.folded()
        with self.lock:
            if self._view.owners is not owners:  # the view was loaded anew meanwhile
                return
            folded.follow(owners)
            self._view = replace(self._view, owners=folded)

    def _take_some(self, revision: int) -> None:
        """Replay some of the changes up to a revision on the view itself; the lock is held.

        Raises:
            Gap: changes in between were pruned, or the view's own were undone.
        """
        steps = self._reading.steps(self._view.point, revision)
        try:
            followed = self._source.taken(self._view, steps)
        except BaseException:
            # The view is at its point still, and holds more. That does no harm to who goes on from there, unless the
            # database falls back behind what it holds, as where the engine failed because the server died.
            self._halfway = steps.end
            raise
        self.put(followed)

    def _brought_on(self, view: View) -> View:
        present = self._reading.present()
        while present is not None and view.point != present:
            if view.revision >= present.revision:
                raise Undone
            view = self._source.replayed(view, present.revision)
        return view

    def _warn_of_gap(self, revision: int) -> None:
        if not self.lost:
            _log.warning("index.gap", gallery=self._name, applied=self._view.revision, revision=revision)

    def _warn_of_undoing(self, revision: int) -> None:
        if not self.lost:  # else it was told already
            _log.warning("gallery.went_back", gallery=self._name, revision=revision, applied=self._view.revision)
