"""Rows of embeddings that are searched as one, with a mark on those that were removed."""

import math
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from app.gallery.index.codebook import Codes, bytes_of, scan

ERASED = 4.0
"""Every component of an erased row, which is further from every unit vector than two unit vectors can be."""

HALF_PRECISION = 1e-3
"""Distance that an embedding's copy in half precision keeps within, twice what rounding comes to for a unit vector."""

_DEPTH_FACTOR, _LEAST_DEPTH = 3, 200  # enough for whom the default policy names, see docs/searching.md
THOROUGH_FACTOR = 40
"""Rows that are compared for each template asked for, where those count that are further away."""
_DEEPER = 4
_MOST_DEAD = 0.5  # share of removed rows that the first look allows for; upkeep lets no more gather
_CHUNK = 16_384


@dataclass(slots=True, eq=False)
class Rows:
    """Embeddings (N, D), float32 or float16, with their ids (N,), int64; only the first `size` rows are in use.

    A writer marks a row dead before it writes over it, and a reader looks at the marks after it has read the rows: so
    whoever reads without a lock never takes a row that was half written over for an embedding. The interpreter's lock
    orders the two on every processor, as both hold it when they touch the marks.

    Args:
        vectors: the embeddings.
        ids: ids of the templates.
        alive: bool, (N,); false for a removed row.
        codes: product-quantised codes of all rows, in the same order; none: every row is compared.
        size: number of rows in use.
        dead: number of removed rows among them.
    """

    vectors: NDArray[np.float32] | NDArray[np.float16]
    ids: NDArray[np.int64]
    alive: NDArray[np.bool_]
    codes: Codes | None
    size: int
    dead: int = 0

    @property
    def living(self) -> int:
        """Number of rows that were not removed."""
        return self.size - self.dead

    @property
    def memory(self) -> int:
        """Bytes that the rows take."""
        own = self.vectors.itemsize * self.vectors.shape[1] + self.ids.itemsize + self.alive.itemsize
        return int(own * self.size) + (0 if self.codes is None else bytes_of(self.codes))

    def kill(self, rows: NDArray[np.intp]) -> None:
        """Mark distinct living rows as removed."""
        self.alive[rows] = False
        self.dead += len(rows)

    def erase(self, rows: NDArray[np.intp]) -> None:
        """Write over removed rows: an erased embedding does not stay in memory."""
        self.vectors[rows] = ERASED

    def living_rows(self) -> NDArray[np.intp]:
        """The rows that were not removed, ascending."""
        # Of a copy: numpy counts the marks first and then notes their places, and lets a writer in between. Where that
        # one has marked more rows dead, the last places would be whatever was in that memory.
        return np.flatnonzero(self.alive[: self.size].copy())

    def nearest(
        self, probes: NDArray[np.float32], count: int, *, thorough: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest living rows of each probe and more, found by codes where there are any.

        Args:
            probes: embeddings (Q, D), float32, contiguous.
            count: how many of them must be certain to be living.
            thorough: see `TemplateIndex.search`.

        Returns:
            Rows (Q, K) in no order and their squared distances (Q, K), infinite where a row is dead.
        """
        size = self.size
        factor = THOROUGH_FACTOR if thorough else _DEPTH_FACTOR
        depth = count if self.codes is None else max(factor * count, _LEAST_DEPTH)
        enough = max(count, depth * 3 // 4)
        if self.dead:  # to look again, deeper, takes longer than to look deep enough
            depth = math.ceil(4 / 3 * enough / (1 - min(self.dead / size, _MOST_DEAD)))
        while True:
            depth = min(depth, size)
            rows = self._ranked(probes, depth, size, all_lists=thorough)
            squared = self._squared_distances(probes, rows)
            if not self.dead:
                return rows, squared
            alive = self.alive.take(rows)
            # Removed templates that lie near a probe must not crowd out the living ones behind them.
            if depth == size or int(alive.sum(axis=1).min()) >= min(enough, self.living):
                squared[~alive] = np.inf
                return rows, squared
            depth *= _DEEPER

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings (K, D) of some rows, as float32."""
        return self.vectors.take(rows, axis=0, mode="clip").astype(np.float32, copy=False)

    def _ranked(
        self, probes: NDArray[np.float32], depth: int, size: int, *, all_lists: bool = False
    ) -> NDArray[np.int64]:
        """Probable nearest rows (Q, depth), each row once."""
        if depth == size:
            return np.broadcast_to(np.arange(size), (len(probes), size)).copy()
        if self.codes is not None:
            rows = scan(self.codes, probes, depth, all_lists=all_lists)
            return self._ranked(probes, size, size) if rows[:, -1].min() < 0 else rows
        ranked, rows = np.empty((len(probes), depth), np.float32), np.empty((len(probes), depth), np.int64)
        vectors = self.vectors  # held: it may be replaced by a mapped file meanwhile
        compared = faiss.swig_ptr(probes), faiss.swig_ptr(vectors)
        faiss.knn_L2sqr(
            *compared, probes.shape[1], len(probes), size, depth, faiss.swig_ptr(ranked), faiss.swig_ptr(rows)
        )
        return rows

    def _squared_distances(self, probes: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Squared distances (Q, K) by differences, which keep their digits where squares that are expanded do not."""
        squared, vectors = np.empty(rows.shape, np.float32), self.vectors
        if vectors.dtype == np.float32:
            arrays = [faiss.swig_ptr(array) for array in (squared, probes, vectors, rows)]
            faiss.fvec_L2sqr_by_idx(*arrays, probes.shape[1], *rows.shape)  # type: ignore[attr-defined]
            return squared
        for number, probe in enumerate(probes):
            for start in range(0, rows.shape[1], _CHUNK):
                difference = self.gather(rows[number, start : start + _CHUNK])
                difference -= probe
                np.einsum("ij,ij->i", difference, difference, out=squared[number, start : start + _CHUNK])
        return squared
