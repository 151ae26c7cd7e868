"""What an index is made of: segments, which never change but for removals, and blocks, which take what is new."""

import mmap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.gallery.index.rows import ERASED, Rows

_PAGE = mmap.PAGESIZE
_CHUNK = 16_384


@dataclass(frozen=True, slots=True)
class SavedFile:
    """Size in bytes and SHA-256 of a file as it was written."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SavedSegment:
    """Where the unchanging files of a segment were saved last, by their ending.

    Args:
        folder: that holds them.
        name: without ending.
        precision: of the embeddings, as numpy writes it.
        files: `ids`, `vectors` and, if there are any, `codes`.
        erased: number of removed rows whose embeddings the files do not hold any more.
    """

    folder: Path
    name: str
    precision: str
    files: dict[str, SavedFile]
    erased: int

    def path(self, ending: str) -> Path:
        """The file of that ending."""
        return self.folder / f"{self.name}.{ending}"


@dataclass(slots=True, eq=False)
class Segment:
    """Rows in the ascending order of their ids; `saved` tells their files, if they have any."""

    rows: Rows
    saved: SavedSegment | None = None

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.intp]:
        """The living row of each id, or -1."""
        places = self.rows.ids.searchsorted(ids)
        there = self.rows.ids.take(places, mode="clip") == ids
        if self.rows.dead:
            there &= self.rows.alive.take(places, mode="clip")
        return np.where(there, places, -1)

    def move_to(self, vectors: NDArray[np.float32] | NDArray[np.float16], ids: NDArray[np.int64]) -> None:
        """Search the same rows in other memory, while no writer is at work."""
        dead = np.flatnonzero(~self.rows.alive)
        # Both ends: a file may hold half of a row that was written over while it was copied.
        late = dead[(vectors[dead, 0] != ERASED) | (vectors[dead, -1] != ERASED)]
        self.rows.vectors, self.rows.ids = vectors, ids
        self.rows.erase(late)

    @property
    def left_on_disk(self) -> bool:
        """Whether a saved file still holds the embedding, or the codes, of a removed row, or would if it were saved."""
        if self.saved is None:
            return self.rows.codes is not None and self.rows.dead > 0
        return self.rows.dead > self.saved.erased


@dataclass(slots=True, eq=False)
class Block:
    """Rows in the order they came, with room for more.

    The memory of the room is not taken before it is used, and what is there is never copied to make room.
    """

    rows: Rows
    _row_of: dict[int, int] = field(default_factory=dict)

    @classmethod
    def empty(cls, capacity: int, dimension: int) -> "Block":
        """A block for so many rows."""
        alive = np.ones(capacity, np.bool_)
        vectors, ids = np.empty((capacity, dimension), np.float32), np.empty(capacity, np.int64)
        return cls(Rows(vectors, ids, alive, None, size=0))

    @property
    def room(self) -> int:
        """Number of rows that it can still take."""
        return len(self.rows.ids) - self.rows.size

    def append(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Take rows, no more than there is room for; readers see them when they are whole."""
        first, last = self.rows.size, self.rows.size + len(ids)
        self.rows.vectors[first:last] = vectors
        self.rows.ids[first:last] = ids
        self.rows.size = last
        self._row_of.update(zip(ids.tolist(), range(first, last), strict=True))

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.intp]:
        """The living row of each id, or -1."""
        if not self._row_of:
            return np.full(len(ids), -1, np.intp)
        found = (self._row_of.get(template_id, -1) for template_id in ids.tolist())
        return np.fromiter(found, np.intp, len(ids))

    def forget(self, rows: NDArray[np.intp]) -> None:
        """Find removed rows no more."""
        for row, template_id in zip(rows.tolist(), self.rows.ids[rows].tolist(), strict=True):
            if self._row_of.get(template_id) == row:
                del self._row_of[template_id]


def read_through(vectors: NDArray[np.float32] | NDArray[np.float16]) -> None:
    """Touch every page of a mapped file, so that no search waits for the disk."""
    flat = vectors.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _CHUNK * _PAGE):
        flat[start : start + _CHUNK * _PAGE : _PAGE].max()
