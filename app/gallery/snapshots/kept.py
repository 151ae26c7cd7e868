"""Views of a gallery on disk, so that a restart replays only what came since, and processes share memory."""

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

import structlog

from app.gallery.index import SegmentedIndex, SnapshotDamaged
from app.gallery.points import Point
from app.gallery.records import Gallery
from app.gallery.snapshots.files import INDEX, Opened, SnapshotsOfGallery, read_files, write_files
from app.gallery.snapshots.lead import SnapshotLead
from app.gallery.snapshots.private_folder import make_private
from app.gallery.snapshots.sealed import SealedSnapshots, SealingKey, SnapshotKeys, listed, set_aside
from app.gallery.snapshots.steady_look import look_steadily
from app.gallery.snapshots.unsealing import Unsealing
from app.gallery.views.owners import TemplateOwners
from model.replaced_file import flush_folder

_log = structlog.get_logger()
_REVISION = re.compile(r"\d{20}")


@dataclass(frozen=True, slots=True)
class Looked:
    """How many snapshots are whole, what is wrong with others, and how many could not be opened, damaged or not."""

    whole: int
    damaged: tuple[str, ...]
    closed: int

    @property
    def count(self) -> int:
        """How many were there."""
        return self.whole + len(self.damaged) + self.closed


def snapshot_place(gallery: Gallery) -> Path:
    """Where in the folder of all snapshots those of a gallery and its extractor are."""
    return Path(f"gallery-{gallery.id}", hashlib.sha256(gallery.extractor.encode()).hexdigest()[:12])


class Snapshots:
    """The snapshots of one gallery and one extractor: a folder for each revision, written beside and renamed.

    The newest is kept. One that is damaged, or is another gallery's, is set aside and named in the log.

    Args:
        folder: of all snapshots of this machine; where they are sealed, one in memory.
        gallery: whose they are.
        open_index: opens the index part of a snapshot; raises SnapshotDamaged.
        sealed: folder and keys of the sealed copies, which outlast this machine's memory; None: there are none.
    """

    def __init__(
        self,
        folder: Path,
        gallery: Gallery,
        open_index: Callable[[Path], SegmentedIndex],
        sealed: tuple[Path, SnapshotKeys] | None = None,
    ) -> None:
        place = snapshot_place(gallery)
        self.folder = folder / place
        self._name = gallery.name
        self._sealed = self._unsealing = None
        if sealed is not None:
            name = f"{gallery.id}/{gallery.created_at.astimezone(UTC).isoformat()}/{gallery.extractor}"
            self._sealed = SealedSnapshots(sealed[0] / place, place=name, gallery=gallery.id, keys=sealed[1])
            self._unsealing = Unsealing(self.folder, self._sealed, gallery=gallery.name)
        self._of = SnapshotsOfGallery(gallery.id, gallery.created_at, gallery.extractor, gallery.dimension)
        self._open_index = open_index
        self._lead = SnapshotLead(self.folder)
        self.known = -1
        """Revision of the newest that this process has written or opened; -1: none."""

    @property
    def revisions(self) -> list[int]:
        """Revisions of the snapshots that are there, oldest first."""
        found = set(self._sealed.revisions if self._sealed is not None else ())
        found |= {int(path.name) for path in listed(self.folder) if _REVISION.fullmatch(path.name)}
        return sorted(found)

    @property
    def lasting(self) -> int:
        """Revision of the newest that outlasts this machine's memory; -1: there is none."""
        return max(self.revisions if self._sealed is None else self._sealed.revisions, default=-1)

    def lead(self) -> bool:
        """Whether this process is the one of its machine that writes; once it is, it stays so until it ends.

        For who tends the gallery: others see that it is at it.
        """
        leads = self._lead.take()
        self._lead.touch()
        return leads

    def lead_unseen(self) -> bool:
        """As `lead`, for a call: that one is answered does not say that the gallery is tended."""
        return self._lead.take()

    def resign(self) -> None:
        """Let another process lead, for good."""
        self._lead.resign()

    def pause_leading(self) -> None:
        """Let another process lead, until this one asks for it again."""
        self._lead.pause()

    @property
    def lead_sign(self) -> int | None:
        """The last sign of life of the process that leads (see `SnapshotLead`)."""
        return self._lead.sign

    @property
    def key_id(self) -> str | None:
        """Which key the newest sealed one names, whether that is still there or not."""
        return None if self._sealed is None else self._sealed.key_id

    @property
    def outdated(self) -> bool:
        """Whether another machine erased something and destroyed the key of what this one has sealed."""
        return self._sealed is not None and self._sealed.key_destroyed

    # -- writing

    def take_key(self, *, anew: bool) -> SealingKey | None:
        """What the next snapshot is sealed with, to be taken before its view is captured; None: it is not sealed.

        Raises:
            FacegalleryError: the vault does not answer.
        """
        return None if self._sealed is None else self._sealed.take_key(anew=anew)

    def write(
        self,
        index: SegmentedIndex,
        owners: TemplateOwners,
        point: Point,
        *,
        reach: Callable[[], Point],
        key: SealingKey | None = None,
        erase: bool = False,
    ) -> Path:
        """Write a snapshot and drop the older ones.

        Args:
            index: what is written, with its owners and the point of the gallery's history that both have reached.
            owners: as the index.
            point: as the index.
            reach: tells the last point of which the index may hold something, once it is written.
            key: of `take_key`, where they are sealed.
            erase: nothing of what was erased may be left: no older snapshot stays, whatever fails, and sealed
                copies of them do not open any more, wherever they are.

        Raises:
            KeyDestroyed: something was erased since the key was taken; nothing was sealed.
            ViewReplaced: of `reach`; nothing was written.
            OSError, FacegalleryError: the disk is full or not writable, or the vault does not answer; without `erase`
                the earlier snapshot is still there.
        """
        try:
            place = self._write(index, owners, point, reach)
            if self._sealed is not None:
                self._sealed.write(place, point.revision, key or self._sealed.take_key(anew=True), alone=erase)
            if erase:
                self._erase_others(place)
        except BaseException:
            if erase:
                self.drop()
            raise
        return place

    def _erase_others(self, place: Path) -> None:
        """Remove what lies there of older revisions and of extractors that the gallery has left."""
        if self._unsealing is not None:
            with self._unsealing.alone():  # removes what a killed process had opened halfway
                self._sweep(keep=place)  # what another has opened since the first sweep
        for path in self.folder.glob("damaged-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.parent.iterdir():
            if path != self.folder:
                shutil.rmtree(path, ignore_errors=True)

    def drop(self) -> None:
        """Remove all snapshots; who searches goes on.

        Raises:
            OSError: those that lie open cannot be listed; the sealed ones do not open any more.
            FacegalleryError: the vault does not answer.
        """
        try:
            if self.folder.is_dir():
                for path in (*self.folder.iterdir(), *self.folder.parent.iterdir()):
                    if path != self.folder and path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
        finally:
            if self._sealed is not None:
                self._sealed.drop()

    def _write(self, index: SegmentedIndex, owners: TemplateOwners, point: Point, reach: Callable[[], Point]) -> Path:
        make_private(self.folder)
        self._sweep()
        draft = self.folder / f"writing-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        draft.mkdir(mode=0o700)
        try:
            templates = write_files(draft, self._of, index, owners, point, reach)
            place = self._place(point.revision)
            if place.exists():  # the same revision, told anew, as after a compaction
                place.rename(self.folder / f"writing-old-{uuid.uuid4().hex[:8]}")
            draft.rename(place)
            index.moved(draft / INDEX, place / INDEX)
            flush_folder(self.folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self.known = point.revision
        self._sweep(keep=place)
        _log.info("snapshot.written", gallery=self._name, revision=point.revision, templates=templates)
        return place

    def open_newest(self, contradiction: Callable[[Point], str | None]) -> Opened | None:
        """The newest snapshot that is whole and of the gallery's history; others are set aside on the way.

        Args:
            contradiction: says why the gallery's history does not go through a point, None where it does. It is asked
                after a snapshot is seen, so that one which another process has just written is not taken for one of a
                later past.
        """
        if self._sealed is not None:
            self._sealed.remove_open_ones()
        tried = set[int]()
        while left := set(self.revisions) - tried:  # listed anew each time: another process may replace what is there
            found = max(left)
            tried.add(found)
            place = self._place(found)

            def look(found: int = found, place: Path = place) -> Opened | None:
                return self._open(place, found, contradiction) if self._lies_open(place, found) else None

            try:
                opened = look_steadily(self._places(found), look)
            except SnapshotDamaged as error:
                self._set_aside(place, str(error))
                continue
            except OSError as error:  # as where a process has too many files open
                _log.warning("snapshot.not_opened", gallery=self._name, revision=found, reason=str(error))
                continue
            if opened is not None:
                self.known = found
                return opened
        return None

    def open_newer(self, contradiction: Callable[[Point], str | None]) -> Opened | None:
        """The newest snapshot, if it is one that this process has not seen."""
        newest = max(self.revisions, default=-1)  # lower than the known one where that was undone
        return None if newest in {-1, self.known} else self.open_newest(contradiction)

    def looked_through(self, contradiction: Callable[[Point], str | None]) -> Looked:
        """Look at all snapshots that are there; they stay where they are."""
        whole, damaged, closed = 0, list[str](), 0
        for revision in self.revisions:
            place = self._place(revision)

            def look(revision: int = revision, place: Path = place) -> Opened | None:
                if self._unsealing is not None:
                    self._unsealing.try_copy(revision)
                return self._open(place, revision, contradiction) if self._lies_open(place, revision) else None

            opened = None
            try:
                opened = look_steadily(self._places(revision), look)
            except SnapshotDamaged as error:
                damaged.append(f"snapshot of revision {revision}: {error}")
                continue
            except OSError as error:
                _log.warning("snapshot.not_opened", gallery=self._name, revision=revision, reason=str(error))
            whole += opened is not None
            closed += opened is None and revision in self.revisions  # else it is gone
        return Looked(whole, tuple(damaged), closed)

    def set_all_aside(self, reason: str) -> None:
        """Trust no snapshot that is there."""
        for revision in self.revisions:
            self._set_aside(self._place(revision), reason)

    def erase(self) -> None:
        """Remove every trace from the disk."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        if self._sealed is not None:
            self._sealed.erase()

    def _places(self, revision: int) -> list[Path]:
        """Where the snapshot of a revision lies, open and sealed."""
        sealed = [] if self._sealed is None else [self._sealed.place_of(revision)]
        return [self._place(revision), *sealed]

    def _place(self, revision: int) -> Path:
        return self.folder / f"{revision:020d}"

    def _lies_open(self, place: Path, revision: int) -> bool:
        return place.exists() if self._unsealing is None else self._unsealing.opened(revision, place)

    def _open(self, place: Path, revision: int, contradiction: Callable[[Point], str | None]) -> Opened:
        start = time.perf_counter()
        opened, reach = read_files(place, self._of, revision, self._open_index)
        for point in dict.fromkeys((opened[2], reach)):
            if reason := contradiction(point):
                raise SnapshotDamaged(reason)
        seconds, templates = round(time.perf_counter() - start, 2), len(opened[1])
        _log.info("snapshot.opened", gallery=self._name, revision=revision, templates=templates, seconds=seconds)
        return opened

    def _set_aside(self, place: Path, reason: str) -> None:
        self.known = min(self.known, int(place.name) - 1)  # another of that number may be written
        if self._sealed is not None:
            shutil.rmtree(place, ignore_errors=True)  # memory is no place to keep it; the sealed copy stays to be seen
            self._sealed.set_aside(int(place.name), reason)
            return
        set_aside(place, reason)

    def _sweep(self, keep: Path | None = None) -> None:
        """Remove drafts of processes that died, and snapshots older than the one to keep."""
        for path in list(self.folder.iterdir()):
            stale = path.name.startswith("writing-")  # one that is being opened is another process's
            older = keep is not None and _REVISION.fullmatch(path.name) and path.name < keep.name
            if older:
                # Renamed first: a process that dies halfway leaves a draft, not half a snapshot.
                path = path.rename(self.folder / f"writing-old-{uuid.uuid4().hex[:8]}")
            if stale or older:
                shutil.rmtree(path, ignore_errors=True)
