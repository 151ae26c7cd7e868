"""The files of one snapshot: how a view of a gallery is written into a folder, and read back."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from app.gallery.index import SegmentedIndex, SnapshotDamaged
from app.gallery.points import Point
from app.gallery.small_pieces import read_whole, write_whole
from app.gallery.views.owners import TemplateOwners
from model.replaced_file import flush_folder

_FORMAT = 2
_ABOUT = "snapshot.json"
INDEX = "index"
"""Folder of the index within a snapshot's."""
_OWNERS = "owners.i64"

Opened = tuple[SegmentedIndex, TemplateOwners, Point]
"""Index, owners, and the point of the gallery's history that both have reached, or are ahead of."""


class ViewReplaced(Exception):
    """The view that is being written is searched no more: what it holds may have been undone."""


@dataclass(frozen=True, slots=True)
class SnapshotsOfGallery:
    """Which gallery a snapshot is of; the moment tells it from one of the same id in another database."""

    gallery: int
    created_at: datetime
    extractor: str
    dimension: int

    def at(self, revision: int) -> dict[str, object]:
        """What the snapshot of a revision says of itself."""
        return {
            "format": _FORMAT,
            "gallery": self.gallery,
            "created_at": self.created_at.astimezone(UTC).isoformat(),
            "extractor": self.extractor,
            "dimension": self.dimension,
            "revision": revision,
        }


def write_files(
    folder: Path,
    of: SnapshotsOfGallery,
    index: SegmentedIndex,
    owners: TemplateOwners,
    point: Point,
    reach: Callable[[], Point],
) -> int:
    """Write a snapshot into an empty folder, down to the disk; answers its templates.

    `reach` tells the last point of which the index may hold something, and is asked when that is written: a snapshot
    that is ahead of its own point is of no use where the database falls back in between.

    Raises:
        OSError: the disk is full or not writable.
        ViewReplaced: the index is searched no more.
    """
    part = folder / INDEX
    part.mkdir()
    index.save(part)
    ids, subjects = (column.astype("<i8", copy=False) for column in owners.pairs())
    digest = write_whole(folder / _OWNERS, ids.view(np.uint8).data, subjects.view(np.uint8).data)
    about = of.at(point.revision) | {"mark": point.mark, "templates": len(ids), "owners_sha256": digest}
    about["reach"] = list(reach())
    write_whole(folder / _ABOUT, memoryview(json.dumps(about, indent=1).encode()))
    flush_folder(folder)
    return len(ids)


def read_files(
    folder: Path, of: SnapshotsOfGallery, revision: int, open_index: Callable[[Path], SegmentedIndex]
) -> tuple[Opened, Point]:
    """The snapshot in a folder, and the last point of the gallery's history of which it may hold something.

    Raises:
        SnapshotDamaged: it is not whole, or another gallery's, or another revision's.
        OSError: it cannot be read, though nothing is known to be wrong with it.
    """
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        for name, value in of.at(revision).items():
            if about.get(name) != value:
                raise SnapshotDamaged(f"its {name} is {about.get(name)!r}, not {value!r}")
        point = Point(revision, int(about.get("mark", 0)))  # none: from before marks were kept
        reach = Point(*map(int, about.get("reach", point)))
        content = read_whole(folder / _OWNERS)
        if hashlib.sha256(content.data).hexdigest() != about["owners_sha256"]:
            raise SnapshotDamaged(f"the digest of {_OWNERS} is not the one written down")
        ids, subjects = content.view("<i8").reshape(2, -1).astype(np.int64)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SnapshotDamaged):
            raise
        raise SnapshotDamaged(f"{type(error).__name__}: {error}") from error
    index = open_index(folder / INDEX)
    if not np.array_equal(index.ids(), ids):
        # Not damage: an index may be ahead of its owners by what came while it was written. Owners win.
        extra = np.setdiff1d(index.ids(), ids, assume_unique=True)
        index.remove(extra)
        missing = np.setdiff1d(ids, index.ids(), assume_unique=True)
        keep = ~np.isin(ids, missing)
        ids, subjects = ids[keep], subjects[keep]
    return (index, TemplateOwners(ids, subjects), point), reach
