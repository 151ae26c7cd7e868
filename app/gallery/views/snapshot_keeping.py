"""What a process does about the snapshots of its galleries: they are written, and who was erased leaves them."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import structlog

from app.gallery.records import Gallery
from app.gallery.snapshots.kept import Snapshots
from app.gallery.sql.failures import in_full
from app.gallery.sql.history import GalleryHistory
from app.gallery.views.index_source import IndexSource
from app.gallery.views.leader_watch import LeaderWatch
from app.gallery.views.replica import GalleryReplica
from model.errors import FacegalleryError

_log = structlog.get_logger()
_REST = 10  # times as long as an erasure took, before the next
_LEADER_SILENT = 600.0  # seconds; what a leader does in one piece may take minutes


@dataclass(slots=True)
class _Kept:
    """What is known of a gallery's snapshots.

    Args:
        revision: of the last one; -1: there is none.
        written: when, by the monotonic clock.
        erase_from: the earliest moment of the next that an erasure asks for.
        told: whether it was logged that they have no folder.
        erasing: how who leads looks to this process, which waits for it to erase something.
    """

    revision: int
    written: float = float("-inf")
    erase_from: float = float("-inf")
    told: bool = False
    erasing: LeaderWatch | None = None


class SnapshotKeeping:
    """Writes the snapshots of galleries that this process leads, and erases from them; not safe among threads.

    Args:
        history: tells what is to be erased.
        source: tells how often to write, and which keys there are.
        quietly: does something, and lives on if it fails.
    """

    def __init__(self, history: GalleryHistory, source: IndexSource, *, quietly: Callable[..., None]) -> None:
        self._history = history
        self._source = source
        self._quietly = quietly
        self._kept: dict[int, _Kept] = {}
        self._keys: Collection[str] = ()  # of all galleries' snapshots, when the vault was last asked
        self._asked = float("-inf")

    def leads(self, replica: GalleryReplica) -> bool | None:
        """Whether this process writes the snapshots; None where there are none, or no folder, and each does its own."""
        if replica.snapshots is None:
            return None
        try:
            leads = replica.snapshots.lead()
        except OSError as error:
            if not self._of(replica).told:
                _log.error("snapshot.no_folder", gallery=replica.name, reason=str(error))
            self._of(replica).told = True
            return None
        self._of(replica).told = False
        return leads

    def look_at_keys(self, galleries: Mapping[int, Gallery]) -> None:
        """Ask the vault, for all galleries at once, which keys of snapshots there still are."""
        if self._source.snapshot_interval and time.monotonic() - self._asked >= self._source.snapshot_interval:
            self._keys = self._source.snapshot_keys(galleries)
            self._asked = time.monotonic()

    def hurry(self, replica: GalleryReplica) -> None:
        """Have the next snapshot be due at once."""
        self._of(replica).written = float("-inf")

    def keep(self, replica: GalleryReplica, gallery: Gallery) -> None:
        """Erase what is owed from the snapshots, and write one if it is due; for who leads."""
        if replica.snapshots is None or not self._source.snapshot_interval:
            return
        if gallery.erasure is not None:
            self._quietly(self._erase, replica)
        kept = self._of(replica)
        if replica.rebuild_wanted or time.monotonic() - kept.written < self._source.snapshot_interval:
            return
        kept_now = replica.applied_revision == kept.revision == _found(replica)
        # One whose key is not among those that were there may have a newer one.
        if not kept_now or (replica.snapshots.key_id not in self._keys and replica.snapshots.outdated):
            self._write(replica)

    def keep_last(self, replica: GalleryReplica, gallery: Gallery) -> None:
        """As `keep`, before the process ends, also where none is due yet."""
        if replica.snapshots is None or not self._source.snapshot_interval or replica.rebuild_wanted:
            return
        if not self.leads(replica):
            return
        if gallery.erasure is not None:
            self._of(replica).erase_from = float("-inf")
            self._erase(replica)
        if replica.applied_revision not in {-1, self._of(replica).revision}:
            self._write(replica)

    def erase_owed(self, replica: GalleryReplica, gallery: Gallery) -> None:
        """Erase what is owed, whether this process leads or not, and whether there is a view or not."""
        if replica.snapshots is None or gallery.erasure is None:
            return
        if self.leads(replica):
            self._erase(replica)
        else:
            self._erase_for(replica, replica.snapshots)

    def watch_erasure(self, replica: GalleryReplica, gallery: Gallery) -> None:
        """Wait for who leads to erase what is owed, and do it where nothing is heard of that process."""
        if replica.snapshots is None:
            return
        if gallery.erasure is None:
            self._of(replica).erasing = None
        else:
            self._erase_for(replica, replica.snapshots)

    def rests(self, replica: GalleryReplica, gallery: Gallery, leads: bool | None) -> bool:
        """Whether nothing is to be done: the last snapshot is of now, written or taken up."""
        if replica.snapshots is None:
            return True
        if gallery.erasure is not None:
            return False
        if leads is None or (leads and not self._source.snapshot_interval):
            return True
        return replica.applied_revision == (self._of(replica).revision if leads else replica.snapshots.known)

    def forget(self, gallery_id: int) -> None:
        """Of a gallery that this process has no more to do with nothing is kept in mind."""
        self._kept.pop(gallery_id, None)

    def _erase(self, replica: GalleryReplica) -> None:
        """Write the snapshot without what was erased; many erasures in a row get one every now and then."""
        kept, start = self._of(replica), time.monotonic()
        if start < kept.erase_from:
            return
        gallery = self._history.gallery(replica.gallery_id)
        if gallery is None or gallery.erasure is None:  # another machine has done it since, or a request here
            return
        try:
            if replica.erase_snapshots():
                kept.revision, kept.written = _found(replica), time.monotonic()
        finally:
            kept.erase_from = time.monotonic() + _REST * (time.monotonic() - start)

    def _erase_for(self, replica: GalleryReplica, snapshots: Snapshots) -> None:
        """Erase in place of who leads, where that process was stopped or hangs, or where nobody can lead."""
        kept = self._of(replica)
        kept.erasing = kept.erasing or LeaderWatch()
        kept.erasing.look(snapshots.lead_sign)
        if kept.erasing.silence < _LEADER_SILENT:
            return
        replica.on_disk.drop()
        _log.error("snapshot.leader_silent", gallery=replica.name, meaning="its snapshots were erased for it")

    def _write(self, replica: GalleryReplica) -> None:
        kept = self._of(replica)
        try:
            revision = replica.on_disk.write()
            kept.revision = -1 if revision is None else revision
        except (OSError, FacegalleryError) as error:
            # The service goes on without: a restart takes longer, and nothing is lost.
            _log.error("snapshot.failed", gallery=replica.name, reason=in_full(error))
        finally:
            kept.written = time.monotonic()

    def _of(self, replica: GalleryReplica) -> _Kept:
        kept = self._kept.get(replica.gallery_id)
        return self._kept.setdefault(replica.gallery_id, _Kept(_found(replica))) if kept is None else kept


def _found(replica: GalleryReplica) -> int:
    return replica.snapshots.lasting if replica.snapshots is not None else -1
