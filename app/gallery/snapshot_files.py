"""The files of one snapshot: how a view of a gallery is written into a folder, and read back."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.gallery.index import SegmentedIndex, SnapshotDamaged
from app.gallery.owners import TemplateOwners
from model.replaced_file import flush_folder

_FORMAT = 1
_ABOUT = "snapshot.json"
_OWNERS = "owners.i64"

Opened = tuple[SegmentedIndex, TemplateOwners, int]
"""Index, owners, and the revision that both have, or are ahead of."""


@dataclass(frozen=True, slots=True)
class SnapshotsOfGallery:
    """Which gallery a snapshot is of."""

    gallery: int
    extractor: str
    dimension: int

    def at(self, revision: int) -> dict[str, object]:
        """What the snapshot of a revision says of itself."""
        return {
            "format": _FORMAT,
            "gallery": self.gallery,
            "extractor": self.extractor,
            "dimension": self.dimension,
            "revision": revision,
        }


def write_files(
    folder: Path, of: SnapshotsOfGallery, index: SegmentedIndex, owners: TemplateOwners, revision: int
) -> int:
    """Write a snapshot into an empty folder, down to the disk; answers its templates.

    Raises:
        OSError: the disk is full or not writable.
    """
    part = folder / "index"
    part.mkdir()
    index.save(part)
    pairs = np.stack(owners.pairs()).astype("<i8")
    _write(folder / _OWNERS, pairs.tobytes())
    about = of.at(revision) | {
        "templates": pairs.shape[1],
        "owners_sha256": hashlib.sha256(pairs.tobytes()).hexdigest(),
    }
    _write(folder / _ABOUT, json.dumps(about, indent=1).encode())
    flush_folder(folder)
    return int(pairs.shape[1])


def read_files(
    folder: Path, of: SnapshotsOfGallery, revision: int, open_index: Callable[[Path], SegmentedIndex]
) -> Opened:
    """The snapshot in a folder.

    Raises:
        SnapshotDamaged: it is not whole, or another gallery's, or another revision's.
    """
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        for name, value in of.at(revision).items():
            if about.get(name) != value:
                raise SnapshotDamaged(f"its {name} is {about.get(name)!r}, not {value!r}")
        content = (folder / _OWNERS).read_bytes()
        if hashlib.sha256(content).hexdigest() != about["owners_sha256"]:
            raise SnapshotDamaged(f"the digest of {_OWNERS} is not the one written down")
        ids, subjects = np.frombuffer(content, "<i8").reshape(2, -1).astype(np.int64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SnapshotDamaged):
            raise
        raise SnapshotDamaged(f"{type(error).__name__}: {error}") from error
    index = open_index(folder / "index")
    if not np.array_equal(index.ids(), ids):
        # Not damage: an index may be ahead of its owners by what came while it was written. Owners win.
        extra = np.setdiff1d(index.ids(), ids, assume_unique=True)
        index.remove(extra)
        missing = np.setdiff1d(ids, index.ids(), assume_unique=True)
        keep = ~np.isin(ids, missing)
        ids, subjects = ids[keep], subjects[keep]
    return index, TemplateOwners(ids, subjects), revision


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
