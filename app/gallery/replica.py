"""One process's view of a gallery: an index that follows the revisions in SQL."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.course import Gap, Undone
from app.gallery.deadline import holding
from app.gallery.errors import Busy
from app.gallery.history import GalleryHistory
from app.gallery.index import SegmentedIndex, TemplateIndex
from app.gallery.matching import Candidate, MatchingRule, find_candidates
from app.gallery.owners import TemplateOwners
from app.gallery.points import Point
from app.gallery.records import Gallery
from app.gallery.sealed_snapshots import KeyDestroyed
from app.gallery.snapshot_files import ViewReplaced
from app.gallery.snapshots import Snapshots
from app.gallery.view import View
from app.gallery.view_source import GivenUp, ViewSource, never

_TRIES = 3  # at a snapshot during which other machines erase something, or the view is loaded anew
_log = structlog.get_logger()


class GalleryReplica:
    """An index, the subjects of its templates, and the revision up to which both are true.

    `catch_up` before a search makes what any process has acknowledged visible here, with no message between processes:
    it costs nothing where the revision is the same, and replays the change rows in between where it is not. Replaying
    is idempotent, so rows read a moment later than their revision do no harm. Where the database has undone what this
    view has followed (see `Point`), it is loaded anew.

    Args:
        gallery: whose view this is.
        history: what is loaded and followed.
        make_index: makes an empty index, or opens one outside the process.
        snapshots: where views are kept on disk; None: nowhere.
        tended: whether a background thread calls `follow` and `tend`, which then build what takes long; otherwise
            `catch_up` does.
    """

    def __init__(
        self,
        gallery: Gallery,
        history: GalleryHistory,
        make_index: Callable[[], TemplateIndex],
        snapshots: Snapshots | None = None,
        *,
        tended: bool = False,
    ) -> None:
        self.gallery = gallery  # as it was when this was made
        self.gallery_id = gallery.id
        self.name = gallery.name
        self.extractor = gallery.extractor
        self.snapshots = snapshots
        self._dimension = gallery.dimension
        self._history = history
        self._source = ViewSource(gallery, history, make_index)
        self._tended = tended
        self._view = self._source.empty()
        self._halfway: Point | None = None  # of changes that an engine failed in the middle of
        self._rebuild_wanted = False
        self._lock = threading.Lock()  # of what follows and switches the view
        self._tending = threading.Lock()  # of what works on it at length

    @property
    def applied_revision(self) -> int:
        """Revision up to which the index is true; -1 before the first load."""
        return self._view.revision

    @property
    def point(self) -> Point:
        """The applied revision with its mark."""
        return self._view.point

    def is_of(self, gallery: Gallery) -> bool:
        """Whether it is that gallery's, and not one's that had its id in a history that was undone."""
        return (self.gallery_id, self.gallery.created_at) == (gallery.id, gallery.created_at)

    @property
    def subjects(self) -> int:
        """Number of subjects that have a template."""
        return self._view.owners.subjects

    @property
    def templates(self) -> int:
        """Number of templates; an index outside the process is not asked."""
        return len(self._view.owners)

    @property
    def rebuild_wanted(self) -> bool:
        """Whether somebody asked for a new index, and it is not there yet."""
        return self._rebuild_wanted

    @property
    def view(self) -> View:
        """The present view."""
        return self._view

    def catch_up(self, revision: int, mark: int | None = None) -> None:
        """Bring the index to a revision that SQL has.

        Args:
            revision: that SQL has.
            mark: of that revision; None: whichever it has.

        Raises:
            Busy: it has to be built, and that takes longer than a request may wait: `follow` does it.
            TimedOut: the request is out of time; another thread was at it, and waits for the database.
        """
        if self._is_at(revision, mark):
            return
        with holding(self._lock):
            if not self._followed(revision, mark):
                if self._tended and self._source.large:
                    raise Busy(f"the index of gallery {self.name!r} is being built; try again")
                self._put(self._loaded(revision, never))
        if self._rebuild_wanted and not self._tended:
            self.rebuild()

    def follow(self, revision: int, mark: int | None = None, *, given_up: Callable[[], bool] = never) -> None:
        """As `catch_up`, in the background: nobody waits for more than some ten thousand changes, nor for a building.

        Args:
            revision: that SQL has.
            mark: of that revision; None: whichever it has.
            given_up: whether the process is ending; the view stays as it is then.
        """
        with self._tending:
            while not self._is_at(revision, mark) and not given_up():
                with self._lock:
                    lost = not self._followed(revision, mark, slices=1)
                if lost:
                    try:
                        self._switch(self._loaded(revision, given_up))
                    except GivenUp:
                        _log.info("index.given_up", gallery=self.name)
                if lost or self._view.revision >= revision:
                    return

    def search(self, probes: NDArray[np.float32], *, top_k: int, rule: MatchingRule) -> list[list[Candidate]]:
        """The `top_k` nearest subjects of each probe (Q, D)."""
        view = self._view  # one reading: a rebuild may switch it meanwhile
        exact = None
        if isinstance(view.index, SegmentedIndex) and not view.index.exact_vectors:
            exact = self._exact_vectors
        return find_candidates(view.index, view.owners, probes, top_k=top_k, rule=rule, exact_vectors=exact)

    def rebuild(self, given_up: Callable[[], bool] = never) -> None:
        """Build everything from SQL beside the present view, which goes on answering, and switch.

        Args:
            given_up: whether the process is ending; the rebuild stays wanted then.
        """
        with self._tending:
            gallery = self._source.gallery()
            if gallery is None or gallery.extractor != self.extractor:
                return
            self._rebuild_wanted, done = False, False  # one that is asked for from now on is another
            try:
                done = self._switch(self._source.built(fill=True, given_up=given_up))
            except GivenUp:
                _log.info("index.given_up", gallery=self.name)
            finally:
                self._rebuild_wanted |= not done

    def tend(self, given_up: Callable[[], bool] = never) -> bool:
        """Do one piece of the work that keeps searches quick; answers whether there was any."""
        if self._rebuild_wanted:
            self.rebuild(given_up)
            return not self._rebuild_wanted
        with self._tending:
            if self._view.owners.wants_folding:
                self._fold_owners()
                return True
            index = self._view.index
            return index.maintain() if isinstance(index, SegmentedIndex) else False

    @property
    def neglected(self) -> bool:
        """Whether work that keeps searches quick has been due for long."""
        index = self._view.index
        return self._view.owners.wants_folding or (isinstance(index, SegmentedIndex) and index.neglected)

    def write_snapshot(self, *, erase: bool = False) -> int | None:
        """Keep the present view on disk; answers its revision, or None where it is not of a kind that is kept.

        Nor is one kept that is to be built anew, or whose gallery is gone, or of another extractor by now.

        Args:
            erase: let no embedding that was erased survive in the files.
        """
        if self.snapshots is None or not isinstance(self._view.index, SegmentedIndex):
            return None
        with self._tending:
            revision = None
            try:
                for _ in range(_TRIES):
                    try:
                        revision = self._written(self.snapshots, erase=erase)
                        break
                    except (KeyDestroyed, ViewReplaced):
                        # Another machine has erased something that the view may have had, or the view was undone.
                        _log.info("snapshot.begun_anew", gallery=self.name)
            except Exception:
                if erase:
                    self.snapshots.drop()
                raise
            if erase and revision is None:
                self.snapshots.drop()
            return revision

    def _written(self, snapshots: Snapshots, *, erase: bool) -> int | None:
        """Write a snapshot; answers its revision, or None where there is none.

        Raises:
            KeyDestroyed: something was erased meanwhile.
            ViewReplaced: it was loaded anew meanwhile.
        """
        key = snapshots.take_key(anew=erase)  # before the gallery is read, so that it has what destroyed the last one
        gallery = self._source.gallery()
        if self._rebuild_wanted or gallery is None or gallery.extractor != self.extractor:
            return None
        anew = erase if key is None else key.before is None
        reached = not anew or self._reached(gallery.point)
        written = self._to_be_written(anew=anew) if reached else None
        if written is None:
            return None
        try:
            # What the index takes in between is newer than the revision; replaying it again does no harm.
            snapshots.write(*written, reach=partial(self._reach, written[0]), key=key, erase=erase)
        finally:
            # Who erased the gallery meanwhile may have looked for snapshots before this one was there.
            here = self._source.present() is not None
            if not here:
                snapshots.erase()
        return written[2].revision if here else None

    def erase_snapshots(self) -> int:
        """Have nothing that was erased so far left in this machine's snapshots; answers how many there were.

        Only the process that leads calls this. Where the snapshot cannot be written anew, there is none afterwards.

        Raises:
            FacegalleryError: the vault or the database does not answer; the erasure is still to be followed.
        """
        if self.snapshots is None:
            return 0
        gallery = self._source.gallery()
        if gallery is None:
            return 0
        with suppress(Busy):  # a view that is behind is not written below
            self.catch_up(*gallery.point)
        with holding(self._tending):  # one that is being written is waited for
            there = len(self.snapshots.revisions)
            behind = not self._reached(gallery.point)
            if not there or behind:
                self.snapshots.drop()  # also the keys that an attempt before could not destroy
        if there and not behind:
            try:
                self.write_snapshot(erase=True)
            except OSError as error:
                _log.error("snapshot.failed", gallery=self.name, reason=str(error))
        if gallery.erasure is not None:
            self._history.snapshots_erased(gallery.id, gallery.erasure)
        return there

    def adopt_snapshot(self) -> bool:
        """Switch to a newer snapshot that another process of this machine has written, and share its memory."""
        if self.snapshots is None or not isinstance(self._view.index, SegmentedIndex):
            return False
        with self._tending:
            opened = self.snapshots.open_newer(self._source.contradiction)
            if opened is None:
                return False
            return self._switch(View(*opened))

    # -- inside

    def _is_at(self, revision: int, mark: int | None) -> bool:
        """Whether the view is true up to a revision, and holds nothing beyond."""
        return self._halfway is None and self._view.is_at(revision, mark)

    def _put(self, view: View) -> None:
        """Search another view; the lock is held."""
        self._view, self._halfway = view, None

    def _reach(self, index: SegmentedIndex) -> Point:
        """The last point of which a view's index may hold something by now.

        Raises:
            ViewReplaced: it is searched no more.
        """
        with self._lock:  # what is being replayed is done
            if self._view.index is not index:
                raise ViewReplaced
            return self._halfway or self._view.point

    def _to_be_written(self, *, anew: bool) -> tuple[SegmentedIndex, TemplateOwners, Point] | None:
        """The index, the owners and the point of one view, or None where it is of a kind that is not kept.

        Args:
            anew: nothing that was erased so far is in the index's codes or saved files.
        """
        while isinstance(index := self._view.index, SegmentedIndex):
            if anew:
                index.rewrite_erased()
            with self._lock:
                view = self._view
                if view.index is index:  # else it was loaded anew meanwhile
                    return index, view.owners.copy(), view.point
        return None

    def _reached(self, point: Point) -> bool:
        """Follow to a point by replaying; whether that was enough."""
        with self._lock:
            return self._followed(*point) and self._view.revision >= point.revision

    def _followed(self, revision: int, mark: int | None, *, slices: int | None = None) -> bool:
        """Replay what has come, or so many slices of it; False where nothing but loading helps."""
        if self._view.revision < 0:
            return False
        if self._halfway is not None and self._source.contradiction(self._halfway) is not None:
            self._warn_of_undoing(revision)  # of which the view holds a part
            return False
        if self._view.revision >= revision and not self._view.is_at(revision, mark):
            # Another call was faster, or SQL is behind this view: an older copy of the database has taken its place.
            present = self._source.present()
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
                _log.warning("index.gap", gallery=self.name, applied=self._view.revision, revision=revision)
                return False
            slices = None if slices is None else slices - 1
        return True

    def _take_some(self, revision: int) -> None:
        """Replay some of the changes up to a revision on the view itself; the lock is held.

        Raises:
            Gap: as `_replayed`.
        """
        steps = self._source.steps(self._view, revision)
        try:
            followed, rebuild = self._source.taken(self._view, steps)
        except BaseException:
            # The view is at its point still, and holds more. That does no harm to who goes on from there, unless the
            # database falls back behind what it holds, as where the engine failed because the server died.
            self._halfway = steps.end
            raise
        self._rebuild_wanted |= rebuild
        self._put(followed)

    def _warn_of_undoing(self, revision: int) -> None:
        _log.warning("gallery.went_back", gallery=self.name, revision=revision, applied=self._view.revision)

    def _loaded(self, revision: int, given_up: Callable[[], bool]) -> View:
        opened = self.snapshots.open_newest(self._source.contradiction) if self.snapshots is not None else None
        if opened is not None:
            try:
                view = View(*opened)
                while view.revision < revision:
                    view = self._replayed(view, revision)
                return view
            except Gap:
                _log.warning("snapshot.too_old", gallery=self.name, revision=opened[2].revision)
        # An engine that may hold what this process wrote there of an undone history is filled whatever it says.
        view = self._source.built(fill=self._view.revision >= 0, given_up=given_up)
        return self._source.without_surplus(view) if self._tended else view

    def _replayed(self, view: View, revision: int) -> View:
        """The view with some of the changes up to a revision; a wish for a rebuild among them is noted.

        Raises:
            Gap: changes in between were pruned, or the view's own were undone.
        """
        followed, rebuild = self._source.replayed(view, revision)
        if rebuild:
            self._rebuild_wanted = True
        return followed

    def _switch(self, view: View) -> bool:
        """Bring a view that was made beside the present one up to date, and put it in its place."""
        try:
            view = self._brought_on(view)  # most of it while searches go on with the present one
            with self._lock:
                self._put(self._brought_on(view))
        except Gap:
            return False
        return True

    def _brought_on(self, view: View) -> View:
        present = self._source.present()
        while present is not None and view.point != present:
            if view.revision >= present.revision:
                raise Undone
            view = self._replayed(view, present.revision)
        return view

    def _fold_owners(self) -> None:
        with self._lock:
            owners = self._view.owners
            then = owners.begin_folding()
        folded = then.folded()
        with self._lock:
            if self._view.owners is not owners:  # the view was loaded anew meanwhile
                return
            folded.follow(owners)
            self._view = View(self._view.index, folded, self._view.point)

    def _exact_vectors(self, template_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._history.embeddings(template_ids, self._dimension)
