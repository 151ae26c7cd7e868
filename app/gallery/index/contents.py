"""The rows of an index: written under a short lock, read without one."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from app.gallery.index.parts import Block, Segment
from app.gallery.index.rows import Rows

Found = TypeVar("Found")
_Located = list[tuple[Segment | Block, NDArray[np.intp]]]

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Parts:
    """What a search goes through, switched as one: segments, largest first, and blocks in the order they came."""

    segments: tuple[Segment, ...] = ()
    blocks: tuple[Block, ...] = ()

    @property
    def all(self) -> list[Segment | Block]:
        """Segments, then blocks."""
        return [*self.segments, *self.blocks]

    @property
    def rows(self) -> list[Rows]:
        """The rows of all of them."""
        return [part.rows for part in self.all]


class Contents:
    """Segments and blocks in which every id is alive at most once.

    Args:
        dimension: D.
        block: rows that a block takes.
    """

    def __init__(self, dimension: int, block: int) -> None:
        self.parts = Parts()
        self.size = 0
        self.writing = threading.Lock()
        self._dimension = dimension
        self._block = block
        self._largest_id = -1
        self._replacing = 0  # odd while an id has two rows
        self._removed: list[NDArray[np.int64]] | None = None  # since a segment is being built

    def add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Append rows; an id that is there already, or comes twice, keeps only its last row."""
        places = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
        if len(places) < len(ids):
            ids, vectors = ids[places], vectors[places]
        if not len(ids):
            return
        with self.writing:
            replaced = [] if ids.min() > self._largest_id else self._locate(ids)
            self._largest_id = max(self._largest_id, int(ids.max()))
            if not replaced:
                self._append(ids, vectors)
                return
            self._replacing += 1
            before = self.size
            try:
                self._append(ids, vectors)
            finally:  # where there was no memory for all: of those that have their new row
                there = ids[: self.size - before]
                self._kill([(part, rows[np.isin(part.rows.ids[rows], there)]) for part, rows in replaced])
                self._replacing += 1

    def remove(self, ids: NDArray[np.int64]) -> int:
        """Remove the rows of these ids and answer how many there were."""
        with self.writing:
            return self._kill(self._locate(np.unique(ids)))

    def consistently(self, read: Callable[[Parts], Found], complete: Callable[[Found], bool] = lambda _: True) -> Found:
        """What is read from the parts, without the lock unless writers keep getting in the way.

        Args:
            read: may run several times; the last answer counts.
            complete: whether an answer has everything that was there when the reading began, and nothing twice: who
                took the parts before an id was removed may still see its row beside the one with which it came again.
        """
        for _ in range(_ATTEMPTS):
            before = self._replacing
            found = read(self.parts)
            if not before % 2 and before == self._replacing and complete(found):
                return found
        with self.writing:
            return read(self.parts)

    @contextmanager
    def building(
        self, segments: Sequence[Segment], blocks: Sequence[Block]
    ) -> Iterator[Callable[[Segment | None], None]]:
        """Build a segment of some parts; gives the function that switches to it.

        The newest block is closed, and rows that are removed while the segment is built are removed from it before
        anybody sees it.
        """
        with self.writing:
            self._removed = []
            if blocks and blocks[-1] is self.parts.blocks[-1]:
                newest = Block.empty(self._block, self._dimension)
                self.parts = Parts(self.parts.segments, (*self.parts.blocks, newest))

        def switch(built: Segment | None) -> None:
            with self.writing:
                if built is not None:
                    for ids in self._removed or ():
                        rows = built.find(ids)
                        built.rows.kill(rows[rows >= 0])
                        built.rows.erase(rows[rows >= 0])
                kept = [one for one in self.parts.segments if one not in segments]
                kept += [] if built is None else [built]
                kept.sort(key=lambda one: one.rows.size, reverse=True)
                self.parts = Parts(tuple(kept), tuple(one for one in self.parts.blocks if one not in blocks))

        try:
            yield switch
        finally:
            with self.writing:
                self._removed = None

    def start_with(self, segments: Sequence[Segment]) -> None:
        """Take segments into contents that are empty."""
        ordered = sorted(segments, key=lambda one: one.rows.size, reverse=True)
        self.parts = Parts(tuple(ordered), ())
        self.size = sum(one.rows.living for one in ordered)
        self._largest_id = max((int(one.rows.ids[-1]) for one in ordered), default=-1)

    def _append(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        done = 0
        while done < len(ids):
            if not self.parts.blocks or not self.parts.blocks[-1].room:
                added = Block.empty(self._block, self._dimension)
                self.parts = Parts(self.parts.segments, (*self.parts.blocks, added))
            block = self.parts.blocks[-1]
            stop = done + min(block.room, len(ids) - done)
            block.append(ids[done:stop], vectors[done:stop])
            self.size += stop - done
            done = stop

    def _locate(self, ids: NDArray[np.int64]) -> _Located:
        """The parts that hold some of these ids, with the rows."""
        located: _Located = []
        for part in self.parts.all:
            rows = part.find(ids)
            rows = rows[rows >= 0]
            if len(rows):
                located.append((part, rows))
        return located

    def _kill(self, located: _Located) -> int:
        killed = 0
        for part, rows in located:
            ids = part.rows.ids[rows]
            part.rows.kill(rows)
            self.size -= len(rows)
            killed += len(rows)
            if self._removed is not None:
                self._removed.append(ids)
            if isinstance(part, Block):
                part.forget(rows)
            part.rows.erase(rows)
        return killed
