"""Which subjects lie near each other, or near a template: by comparing all, or by what inverted lists propose."""

from collections.abc import Callable
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from app.gallery.index.codebook import BITS, code_length

EXACT_UP_TO = 50_000
"""Subjects that are all compared with each other, in seconds; beyond, that time would grow with their square."""

_BLOCK = 2048  # vectors of one side of a product: 16 MiB of cosines
_BESIDE_LISTS = 512  # vectors that inverted lists are asked for together
_RANKED = 96  # subjects that codes propose for each vector
_LOOKED_INTO = 128  # lists in which neighbours are looked for
_TRAINED_BY = 50  # places for each list
_ROUNDS = 8  # of k-means

Vectors = NDArray[np.float32]
Rows = NDArray[np.intp]
Progress = Callable[[int], None]


def _untold(_rows: int) -> None:
    """Tell nobody."""


class Neighbours(Protocol):
    """Unit vectors (S, D) that are asked for their neighbours."""

    def pairs(self, least: float, most: int, progress: Progress = _untold) -> tuple[Rows, Rows]:
        """Pairs whose cosine is at least such, the `most` nearest ones, in no order: first rows, second rows.

        `progress` is told of how many rows all pairs were seen.
        """

    def nearest_other(self, vectors: Vectors, own: Rows) -> Rows:
        """For vectors (Q, D) the nearest rows but for each one's own; -1 where there is none."""


def neighbours_of(means: Vectors, *, exact_up_to: int = EXACT_UP_TO) -> Neighbours:
    """Those of unit vectors (S, D): exact for so many, by inverted lists for more."""
    return _All(means) if len(means) <= exact_up_to else _ByLists(means)


class _Nearest:
    """The nearest pairs of those that are offered, in bounded memory."""

    def __init__(self, least: float, most: int) -> None:
        self._least, self._most = least, most
        self.first, self.second = np.empty(0, np.intp), np.empty(0, np.intp)
        self._cosines = np.empty(0, np.float32)

    @property
    def least(self) -> float:
        """A smaller cosine cannot be among the nearest any more."""
        return self._least if len(self._cosines) < self._most else max(self._least, float(self._cosines.min()))

    def offer(self, first: Rows, second: Rows, cosines: Vectors) -> None:
        self.first, self.second = np.concatenate([self.first, first]), np.concatenate([self.second, second])
        self._cosines = np.concatenate([self._cosines, cosines])
        if len(self._cosines) > self._most:
            nearest = np.argpartition(-self._cosines, self._most)[: self._most]
            self.first, self.second, self._cosines = self.first[nearest], self.second[nearest], self._cosines[nearest]


class _All:
    """By blocks of matrix products, so that memory is bounded by two blocks."""

    def __init__(self, means: Vectors) -> None:
        self._means = means

    def pairs(self, least: float, most: int, progress: Progress = _untold) -> tuple[Rows, Rows]:
        nearest, means = _Nearest(least, most), self._means
        for row in range(0, len(means), _BLOCK):
            for column in range(row, len(means), _BLOCK):
                product = means[row : row + _BLOCK] @ means[column : column + _BLOCK].T
                rows, columns = np.nonzero(product >= nearest.least)
                later = columns + column > rows + row
                rows, columns = rows[later], columns[later]
                nearest.offer(rows + row, columns + column, product[rows, columns])
            progress(min(_BLOCK, len(means) - row))
        return nearest.first, nearest.second

    def nearest_other(self, vectors: Vectors, own: Rows) -> Rows:
        cosines, nearest = np.full(len(own), -np.inf, np.float32), np.full(len(own), -1, np.intp)
        for column in range(0, len(self._means), _BLOCK):
            product = vectors @ self._means[column : column + _BLOCK].T
            mine = np.flatnonzero((own >= column) & (own < column + _BLOCK))
            product[mine, own[mine] - column] = -np.inf
            best = product.argmax(axis=1)
            values = product[np.arange(len(own)), best]
            better = values > cosines
            cosines[better], nearest[better] = values[better], best[better] + column
        return nearest


class _ByLists:
    """By four-bit codes in inverted lists, of which the nearest are scanned, and exact cosines of the best.

    There are 4√S lists of √S/4 subjects, so that the time grows with the power 1.5 of the subjects.

    Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011, as FAISS has it
    (`IndexIVFPQFastScan`). What the lists miss is measured in docs/moving.md.
    """

    def __init__(self, means: Vectors) -> None:
        dimension, lists = means.shape[1], 4 * int(len(means) ** 0.5)
        self._means = means
        self._coarse = faiss.IndexFlatIP(dimension)  # held: the index below does not own it
        self._index = faiss.IndexIVFPQFastScan(
            self._coarse, dimension, lists, code_length(dimension), BITS, faiss.METRIC_INNER_PRODUCT
        )
        self._index.cp.niter = _ROUNDS
        self._index.nprobe = min(lists, _LOOKED_INTO)
        step = max(1, len(means) // (_TRAINED_BY * lists))
        self._index.train(np.ascontiguousarray(means[::step]))
        self._index.add(means)

    def pairs(self, least: float, most: int, progress: Progress = _untold) -> tuple[Rows, Rows]:
        nearest, means = _Nearest(least, most), self._means
        for start in range(0, len(means), _BESIDE_LISTS):
            mine = np.arange(start, min(start + _BESIDE_LISTS, len(means)))
            found, cosines = self._found(means[mine])
            places, columns = np.nonzero((cosines >= nearest.least) & (found != mine[:, None]))
            one, other = mine[places], found[places, columns]
            # A pair comes from either side, or from one alone: the smaller row of the two names it, once.
            both = np.unique(np.stack([np.minimum(one, other), np.maximum(one, other)]), axis=1)
            known = set(zip(nearest.first.tolist(), nearest.second.tolist(), strict=True))
            new = np.array([pair not in known for pair in zip(*both.tolist(), strict=True)], np.bool_)
            first, second = both[:, new]
            nearest.offer(first, second, np.einsum("ij,ij->i", means[first], means[second]))
            progress(len(mine))
        return nearest.first, nearest.second

    def nearest_other(self, vectors: Vectors, own: Rows) -> Rows:
        found, cosines = self._found(vectors)
        cosines[found == own[:, None]] = -np.inf
        best = cosines.argmax(axis=1)
        every = np.arange(len(own))
        return np.where(cosines[every, best] > -np.inf, found[every, best], -1)

    def _found(self, vectors: Vectors) -> tuple[Rows, Vectors]:
        """Rows (Q, K) near vectors with their cosines (Q, K), -inf where there is none."""
        found = np.empty((len(vectors), min(_RANKED, len(self._means))), np.intp)
        cosines = np.empty(found.shape, np.float32)
        for start in range(0, len(vectors), _BESIDE_LISTS):
            part = slice(start, start + _BESIDE_LISTS)
            found[part] = self._index.search(np.ascontiguousarray(vectors[part]), found.shape[1])[1]
            cosines[part] = np.einsum("qd,qkd->qk", vectors[part], self._means[found[part]])
        cosines[found < 0] = -np.inf
        return found, cosines
