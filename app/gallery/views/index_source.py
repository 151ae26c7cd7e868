"""Where a gallery's index comes from: its kind, and the folder of its snapshots."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import structlog

from app.gallery.engines import EngineKind, IndexEngine, storage_prefix
from app.gallery.index import COMPRESS_FROM, ExactIndex, IndexKind, SegmentedIndex, TemplateIndex
from app.gallery.records import Gallery
from app.gallery.snapshots.kept import Snapshots
from app.gallery.snapshots.leftovers import drop_all, drop_gone
from app.gallery.snapshots.private_folder import PrivateFolder
from app.gallery.snapshots.sealed import SnapshotKeys, purpose_of
from app.gallery.sql.failures import in_full
from model.errors import FacegalleryError

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SnapshotSeal:
    """Has snapshots sealed on the disk: the keys for that, and the folder in memory where they lie open."""

    keys: SnapshotKeys
    memory: PrivateFolder


@dataclass(frozen=True, slots=True)
class IndexSource:
    """Makes indexes of one kind, in this process or, with an `engine`, outside it.

    `folder` is that of the snapshots, None for none; `snapshot_interval` are the seconds between two. With a `seal` the
    folder holds sealed copies alone. `unused` are folder and keys of snapshots that earlier settings
    left, and these do not keep.
    """

    kind: IndexKind | EngineKind = "auto"
    half: bool = False
    folder: Path | None = None
    snapshot_interval: float = 300.0
    engine: IndexEngine | None = None
    seal: SnapshotSeal | None = None
    unused: tuple[Path, SnapshotKeys] | None = None

    def drop_unused(self) -> None:
        """Erase the snapshots that earlier settings left: no erasure would reach them."""
        if self.unused is None:
            return
        folder, keys = self.unused
        try:
            dropped = drop_all(folder, keys)
        except FacegalleryError as error:
            _log.error("snapshots.not_dropped", folder=str(folder), reason=in_full(error))
            return
        if dropped:
            _log.info("snapshots.dropped", folder=str(folder), galleries=dropped, reason="these settings keep none")

    def drop_gone(self, present: Callable[[], Collection[int]]) -> None:
        """Erase the snapshots of galleries that there are no more, which nobody has erased.

        Args:
            present: reads the ids of the galleries that there are.

        Raises:
            FacegalleryError: the vault or the database does not answer.
        """
        if self.seal is not None and self.folder is not None:
            folders, keys = [self.folder, self.seal.memory.path], self.seal.keys
        elif self.unused is not None:
            folders, keys = [self.unused[0]], self.unused[1]
        else:
            return
        if dropped := drop_gone(folders, keys, present):
            _log.info("snapshots.dropped", galleries=dropped, reason="these galleries are gone")

    def make(self, gallery: Gallery) -> TemplateIndex:
        """An empty index for a gallery."""
        if self.engine is not None:
            return self.engine.index(gallery)
        if self.kind == "exact":
            return ExactIndex(gallery.dimension)
        return SegmentedIndex(gallery.dimension, compress_from=self._compress_from, half=self.half)

    def snapshots_of(self, gallery: Gallery) -> Snapshots | None:
        """The gallery's snapshots, None where none are kept."""
        if self.folder is None or self.engine is not None or self.kind == "exact":
            return None
        opened = partial(self._open, gallery.dimension)
        if self.seal is None:
            return Snapshots(self.folder, gallery, opened)
        return Snapshots(self.seal.memory.path, gallery, opened, (self.folder, self.seal.keys))

    def snapshot_keys(self, gallery_ids: Iterable[int]) -> Collection[str]:
        """Ids of the keys that sealed snapshots of some galleries have, on whichever machine.

        Raises:
            FacegalleryError: the vault does not answer.
        """
        return () if self.seal is None else self.seal.keys.ids([purpose_of(one) for one in gallery_ids])

    def _open(self, dimension: int, folder: Path) -> SegmentedIndex:
        return SegmentedIndex.load(folder, dimension, compress_from=self._compress_from, half=self.half)

    @property
    def _compress_from(self) -> int | None:
        return COMPRESS_FROM[cast(IndexKind, self.kind)]

    def forget(self, gallery: Gallery) -> None:
        """Erase what is kept of a gallery beside SQL, by whichever extractor."""
        self.erase_snapshots(gallery)
        if self.engine is not None:
            self.engine.drop(storage_prefix(gallery))

    def erase_snapshots(self, gallery: Gallery) -> None:
        """Erase a gallery's snapshots with all that they remember."""
        snapshots = self.snapshots_of(gallery)
        if snapshots is not None:
            snapshots.erase()

    def close(self) -> None:
        """Give the engine's connections back, and let go of what lies open in memory."""
        if self.engine is not None:
            self.engine.close()
        if self.seal is not None:
            self.seal.memory.close()
