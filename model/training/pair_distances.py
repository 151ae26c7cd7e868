"""Distances of photos against photos: as much of them as error rates need, in bounded memory.

All mated distances are kept, and the closest non-mated ones, which decide false match rates. Of the other non-mated
ones there is a histogram with fine bins, and a thinned sample for the bootstrap.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_KEPT = 300_000
"""So many of the closest non-mated pairs are kept, each with whom it is of."""

BINS = 1 << 16
"""Bins of equal width from distance 0 to 2."""

_MOST_SAMPLED = 200_000
_BLOCK_CELLS = 8_000_000


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of distances."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class PairDistances:
    """The distances of all pairs of photos.

    Args:
        photos: how many photos each person has, shape (P,), those without a face included.
        times: how often two photos are compared: 1, or 2 if each is once in the gallery and once a probe.
        mated: distances of the mated pairs, ascending, float32, (M,).
        mated_people: who is on both photos, (M,).
        mated_histogram: counts, (BINS,).
        non_mated: distances of non-mated pairs, ascending, float32, (K,).
        non_mated_people: who is on the two photos, (K, 2).
        weights: how many pairs each of them stands for, float32, (K,).
        exact: of so many of the closest non-mated pairs none is missing.
        non_mated_histogram: counts of all of them, (BINS,).
        mated_moments: of all mated distances, None if there are none.
        non_mated_moments: of all non-mated distances.
    """

    photos: NDArray[np.int64]
    times: int
    mated: NDArray[np.float32]
    mated_people: NDArray[np.int32]
    mated_histogram: NDArray[np.int64]
    non_mated: NDArray[np.float32]
    non_mated_people: NDArray[np.int32]
    weights: NDArray[np.float32]
    exact: int
    non_mated_histogram: NDArray[np.int64]
    mated_moments: Moments | None
    non_mated_moments: Moments | None

    @property
    def mated_pairs(self) -> int:
        """How many mated pairs there are, those with a photo without a face included."""
        return int((self.photos * (self.photos - 1)).sum()) * self.times // 2

    @property
    def non_mated_pairs(self) -> int:
        """How many non-mated pairs there are, those with a photo without a face included."""
        return int(self.photos.sum() ** 2 - (self.photos**2).sum()) * self.times // 2


def distances_between(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Euclidean distances (0 to 2), shape (L, R), of normalised embeddings of shapes (L, D) and (R, D)."""
    squared: NDArray[np.float32] = left @ right.T
    squared *= -2
    squared += 2
    np.maximum(squared, 0, out=squared)
    np.sqrt(squared, out=squared)
    return squared


def bin_of(distances: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return the bins of distances; that of bin b lie from 2·b/BINS up to the next."""
    bins: NDArray[np.int32] = np.minimum(distances * np.float32(BINS / 2), np.float32(BINS - 1)).astype(np.int32)
    return bins


def compare_photos(
    embeddings: NDArray[np.float32], subjects: NDArray[np.int64], probes: NDArray[np.float32] | None = None
) -> PairDistances:
    """Compare every photo with every other one.

    Args:
        embeddings: L2-normalised, shape (N, D); a row of NaN is a photo without a face.
        subjects: who is on each photo, shape (N,), from 0.
        probes: embeddings of other copies of the same photos, shape (N, D): every embedding is compared with the copies
            of all other photos. None: every pair is compared once.
    """
    sweep = _Sweep(embeddings, subjects, embeddings if probes is None else probes, once=probes is None)
    mated, mated_people = [np.empty(0, np.float32)], [np.empty(0, np.int32)]
    histogram = np.zeros(BINS, np.int64)
    total = square = 0.0
    for block in sweep.blocks():
        mated.append(block.distances[block.mated])
        mated_people.append(block.left[np.nonzero(block.mated)[0]])
        values = block.distances[block.non_mated]
        histogram += np.bincount(bin_of(values), minlength=BINS)
        total += float(values.sum(dtype=np.float64))
        square += float(np.vdot(values, values))
    all_mated, all_mated_people = np.concatenate(mated), np.concatenate(mated_people)
    order = np.argsort(all_mated, kind="stable")

    cumulated = np.cumsum(histogram)
    exact_bins = int(np.searchsorted(cumulated, MOST_KEPT, side="right"))
    exact = int(cumulated[exact_bins - 1]) if exact_bins else 0
    non_mated, people, weights = _non_mated(sweep, exact_bins, int(cumulated[-1]) - exact)
    return PairDistances(
        photos=np.bincount(subjects),
        times=1 if probes is None else 2,
        mated=all_mated[order],
        mated_people=all_mated_people[order],
        mated_histogram=np.bincount(bin_of(all_mated), minlength=BINS),
        non_mated=non_mated,
        non_mated_people=people,
        weights=weights,
        exact=exact,
        non_mated_histogram=histogram,
        mated_moments=_moments(len(all_mated), float(all_mated.sum(dtype=np.float64)), float((all_mated**2).sum())),
        non_mated_moments=_moments(int(cumulated[-1]), total, square),
    )


def _non_mated(
    sweep: "_Sweep", exact_bins: int, rest: int
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Return the non-mated pairs of the first bins, and every so many-th of the rest, ascending."""
    step = max(1, -(-rest // _MOST_SAMPLED))
    distances, people, sampled = [np.empty(0, np.float32)], [np.empty((0, 2), np.int32)], [np.empty(0, np.bool_)]
    skip = 0
    for block in sweep.blocks():
        near = block.non_mated & (bin_of(block.distances) < exact_bins)
        further = np.flatnonzero(block.non_mated & ~near)
        chosen = further[skip::step]
        skip = (skip - len(further)) % step
        cells = np.concatenate([np.flatnonzero(near), chosen])
        rows, columns = np.divmod(cells, block.distances.shape[1])
        distances.append(block.distances.ravel()[cells])
        people.append(np.stack([block.left[rows], block.right[columns]], axis=1))
        sampled.append(np.arange(len(cells)) >= len(cells) - len(chosen))
    far = np.concatenate(sampled)
    weights = np.where(far, np.float32(rest / max(1, int(far.sum()))), np.float32(1)).astype(np.float32)
    values = np.concatenate(distances)
    order = np.argsort(values, kind="stable")
    return values[order], np.concatenate(people)[order], weights[order]


@dataclass(frozen=True, slots=True)
class _Block:
    """Distances (L, R), who is on the photos of each row (L,) and column (R,), and which cells count as what."""

    distances: NDArray[np.float32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    mated: NDArray[np.bool_]
    non_mated: NDArray[np.bool_]


class _Sweep:
    """All pairs of photos with a face, block by block, the same ones every time."""

    def __init__(
        self, gallery: NDArray[np.float32], subjects: NDArray[np.int64], probes: NDArray[np.float32], *, once: bool
    ) -> None:
        rows = np.flatnonzero(np.isfinite(gallery).all(axis=1))
        columns = np.flatnonzero(np.isfinite(probes).all(axis=1))
        self._gallery, self._probes = gallery[rows], probes[columns]
        self._rows, self._columns = rows, columns
        self._left, self._right = subjects[rows].astype(np.int32), subjects[columns].astype(np.int32)
        self._once = once

    def blocks(self) -> Iterator[_Block]:
        height = max(1, _BLOCK_CELLS // max(1, len(self._probes)))
        for start in range(0, len(self._gallery), height):
            stop = start + height
            first = start if self._once else 0
            left, right = self._left[start:stop], self._right[first:]
            rows, columns = self._rows[start:stop, None], self._columns[None, first:]
            same = left[:, None] == right[None, :]
            counted = columns > rows if self._once else columns != rows
            distances = distances_between(self._gallery[start:stop], self._probes[first:])
            yield _Block(distances, left, right, same & counted, ~same & counted)


def _moments(count: int, total: float, square: float) -> Moments | None:
    if not count:
        return None
    mean = total / count
    return Moments(mean, max(0.0, square / count - mean * mean) ** 0.5)
