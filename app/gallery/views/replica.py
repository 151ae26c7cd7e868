"""One process's view of a gallery: an index that follows the revisions in SQL."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.deadline import holding
from app.gallery.errors import Busy, DatabaseUnavailable
from app.gallery.index import SegmentedIndex, SharedIndex, TemplateIndex
from app.gallery.index.protocol import SetBack
from app.gallery.matching import Candidate, MatchingRule, find_candidates
from app.gallery.points import Point
from app.gallery.records import Gallery
from app.gallery.snapshots.kept import Snapshots
from app.gallery.sql.history import GalleryHistory
from app.gallery.views.followed import FollowedView
from app.gallery.views.gallery_reading import GalleryReading, GivenUp, never
from app.gallery.views.view import View
from app.gallery.views.view_on_disk import ViewOnDisk
from app.gallery.views.view_source import ViewSource

_ENGINE_LOOK = 60.0  # seconds between two looks whether an engine has lost something that nobody searches
_SEARCHES = 3  # of an engine that loses what it is told meanwhile
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
        tended: whether a background thread calls `follow` and `rebuild`, which then build what takes long; otherwise
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
        self._reading = GalleryReading(gallery, history)
        self._source = ViewSource(self._reading, make_index)
        self._tended = tended
        self._followed = FollowedView(self._reading, self._source, snapshots, tended=tended)
        self._tending = threading.Lock()  # of what works on it at length
        self.on_disk = ViewOnDisk(self._followed, self._reading, history, snapshots, tending=self._tending)
        self._engine_looked = -math.inf  # when, by the monotonic clock

    @property
    def applied_revision(self) -> int:
        """Revision up to which the index is true; -1 before the first load."""
        return self.view.revision

    @property
    def point(self) -> Point:
        """The applied revision with its mark."""
        return self.view.point

    def is_of(self, gallery: Gallery) -> bool:
        """Whether it is that gallery's, and not one's that had its id in a history that was undone."""
        return (self.gallery_id, self.gallery.created_at) == (gallery.id, gallery.created_at)

    @property
    def subjects(self) -> int:
        """Number of subjects that have a template."""
        return self.view.owners.subjects

    @property
    def templates(self) -> int:
        """Number of templates; an index outside the process is not asked."""
        return len(self.view.owners)

    @property
    def rebuild_wanted(self) -> bool:
        """Whether somebody asked for a new index, and it is not there yet."""
        return self.view.rebuild_wanted

    @property
    def lost(self) -> bool:
        """Whether nothing but loading brings it up to date."""
        return self._followed.lost

    @property
    def large(self) -> bool:
        """Whether building takes longer than a request may wait."""
        return self._reading.large

    def awaited(self) -> bool:
        """Whether calls are refused until the index is loaded."""
        return self.lost and self._tended and self.large

    @property
    def view(self) -> View:
        """The present view."""
        return self._followed.view

    def catch_up(self, revision: int, mark: int | None = None) -> None:
        """Bring the index to a revision that SQL has.

        Args:
            revision: that SQL has.
            mark: of that revision; None: whichever it has.

        Raises:
            Busy: it has to be built, and that takes longer than a request may wait: `follow` does it.
            TimedOut: the request is out of time; another thread was at it, and waits for the database.
        """
        if self._followed.is_at(revision, mark):
            return
        with holding(self._followed.lock):
            if not self._followed.brought_to(revision, mark):
                if self.awaited():
                    raise Busy(f"the index of gallery {self.name!r} is being built; try again")
                self._followed.put(self._followed.from_snapshot(revision) or self._followed.built(never))
        if self.rebuild_wanted and not self._tended:
            self.rebuild()

    def follow(
        self,
        revision: int,
        mark: int | None = None,
        *,
        given_up: Callable[[], bool] = never,
        elsewhere: Callable[[], bool] = never,
    ) -> bool:
        """As `catch_up`, in the background: nobody waits for more than some ten thousand changes, nor for a building.

        Args:
            revision: that SQL has.
            mark: of that revision; None: whichever it has.
            given_up: whether the process is ending; the view stays as it is then.
            elsewhere: whether what has to be built is left to another process, whose snapshot comes; as `given_up`.

        Returns:
            Whether it was built from SQL.
        """
        with self._tending:
            while not self._followed.is_at(revision, mark) and not given_up():
                with self._followed.lock:
                    lost = not self._followed.brought_to(revision, mark, slices=1)
                if lost:
                    return self._loaded(revision, given_up, elsewhere)
                if self.view.revision >= revision:
                    break
        return False

    def look_at_engine(self) -> None:
        """Once a minute, ask an engine whether it has lost what it was told, which no search finds where nobody asks.

        `follow` tells it again then. One that another process is filling is left to that one.

        Raises:
            DatabaseUnavailable: it does not answer.
        """
        view, clock = self.view, time.monotonic()
        if isinstance(view.index, SharedIndex) and view.revision >= 0 and clock - self._engine_looked >= _ENGINE_LOOK:
            self._engine_looked = clock
            if 0 <= view.index.position() < view.revision:
                self._followed.doubt()

    def _loaded(self, revision: int, given_up: Callable[[], bool], elsewhere: Callable[[], bool]) -> bool:
        """Search a view from a snapshot, or one that is built; as `follow`."""
        view = self._followed.from_snapshot(revision)
        if view is None and elsewhere():
            return False
        try:
            return self._followed.switch(view or self._followed.built(given_up)) and view is None
        except GivenUp:
            _log.info("index.given_up", gallery=self.name)
            return False

    def search(
        self,
        probes: NDArray[np.float32],
        *,
        top_k: int,
        rule: MatchingRule,
        thorough: bool = False,
        limit: float | None = None,
    ) -> list[list[Candidate]]:
        """The `top_k` nearest subjects of each probe (Q, D); those further than the limit, if any, may be missing.

        `thorough` as `TemplateIndex.search`.

        Raises:
            ExtractorMismatch: exact embeddings were to be read, and the gallery has moved to another extractor.
            Busy: an engine has lost the index, and must be filled anew, which takes longer than a request may wait.
        """
        for _ in range(_SEARCHES):
            try:
                return self._found(probes, top_k=top_k, rule=rule, thorough=thorough, limit=limit)
            except SetBack:
                self._followed.doubt()
                self.catch_up(*self.point)
        raise DatabaseUnavailable("the gallery's index loses what it is told; try again")

    def _found(
        self, probes: NDArray[np.float32], *, top_k: int, rule: MatchingRule, thorough: bool, limit: float | None
    ) -> list[list[Candidate]]:
        view = self.view  # one reading: a rebuild may switch it meanwhile
        find = partial(find_candidates, view.index, view.owners, probes, top_k=top_k, rule=rule, thorough=thorough)
        if _keeps_exactly(view.index):
            found = find()
            if _keeps_exactly(view.index):
                return found  # else it began to round meanwhile
        return find(limit=limit, exact_vectors=self._reading.embeddings)

    def rebuild(self, given_up: Callable[[], bool] = never) -> None:
        """Build everything from SQL beside the present view, which goes on answering, and switch.

        Args:
            given_up: whether the process is ending; the rebuild stays wanted then.
        """
        with self._tending:
            if self._reading.unmoved() is None:
                return
            try:
                self._followed.switch(self._source.built(fill=True, given_up=given_up))
            except GivenUp:
                _log.info("index.given_up", gallery=self.name)

    def erase_snapshots(self) -> int:
        """As `ViewOnDisk.erase`, after the view was brought up to date, be it by loading, as far as that goes well."""
        gallery = self._reading.gallery() if self.snapshots is not None else None
        if gallery is None:
            return 0
        with suppress(Exception):
            self.catch_up(*gallery.point)
        return self.on_disk.erase(gallery)

    def tend(self) -> bool:
        """Do one piece of the work that keeps searches quick; answers whether there was any."""
        with self._tending:
            if self.view.owners.wants_folding:
                self._followed.fold_owners()
                return True
            index = self.view.index
            return index.maintain() if isinstance(index, SegmentedIndex) else False

    @property
    def neglected(self) -> bool:
        """Whether work that keeps searches quick has been due for long."""
        index = self.view.index
        return self.view.owners.wants_folding or (isinstance(index, SegmentedIndex) and index.neglected)


def _keeps_exactly(index: TemplateIndex) -> bool:
    return not isinstance(index, SegmentedIndex) or index.exact_vectors
