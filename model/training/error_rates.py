"""One-to-one error rates over all pairs of a set of photos: false match rate, true accept rate, equal error rate.

Everything is exact: a threshold is an order statistic of *all* non-mated distances, not an edge of a histogram, and
memory stays bounded however many pairs there are. A photo without an embedding (a row of NaN: no face was found)
matches nobody and stays in the denominators, so the rates are the generalized ones of ISO/IEC 19795-1 (failures to
acquire count as rejections).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

FMR_GRID = tuple(float(f"{10 ** (-1 - step / 4):.3g}") for step in range(21))
"""False match rates from 1e-1 down to 1e-6, four a decade."""

MIN_SUPPORT = 50
"""A rate is given only if at least so many non-mated comparisons may lie below its threshold."""

MOST_COUNTED = 100_000
"""Up to so many non-mated pairs below a threshold, it is counted of how many different people they are."""

_BINS = 1 << 16
_BLOCK_CELLS = 8_000_000


@dataclass(frozen=True, slots=True)
class VerificationPoint:
    """The threshold that keeps the false match rate, and what it accepts.

    A pair matches if its distance is at most ``distance``; no more than ``fmr`` of the non-mated pairs do, and
    ``tar`` of the mated ones. ``people_pairs`` says of how many different pairs of people these non-mated pairs are:
    photos of the same two people are no independent trials (two thirds of LFW's closest pairs are of two brothers).
    It is None where more than ``MOST_COUNTED`` pairs match, too many to count.
    """

    fmr: float
    distance: float
    tar: float
    people_pairs: int | None


@dataclass(frozen=True, slots=True)
class Verification:
    """Error rates over all pairs of a set of photos; ``points`` go from the loosest to the strictest rate."""

    mated_pairs: int
    non_mated_pairs: int
    equal_error_rate: float
    points: tuple[VerificationPoint, ...]


def distances_between(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the Euclidean distances (0 to 2), shape (L, R), of normalised embeddings of shapes (L, D) and (R, D)."""
    squared: NDArray[np.float32] = left @ right.T
    squared *= -2
    squared += 2
    np.maximum(squared, 0, out=squared)
    np.sqrt(squared, out=squared)
    return squared


def verify_all_pairs(
    embeddings: NDArray[np.float32], subjects: NDArray[np.int64], rates: Sequence[float] = FMR_GRID
) -> Verification:
    """Compare every photo with every other one.

    Args:
        embeddings: L2-normalised, shape (N, D); a row of NaN is a photo without a face.
        subjects: who is on each photo, shape (N,).
        rates: false match rates; those with less than ``MIN_SUPPORT`` non-mated pairs behind them are left out.

    Returns:
        The rates over all N·(N−1)/2 pairs.
    """
    sizes = np.unique(subjects, return_counts=True)[1].astype(np.int64)
    mated_pairs = int((sizes * (sizes - 1) // 2).sum())
    non_mated_pairs = len(subjects) * (len(subjects) - 1) // 2 - mated_pairs
    found = np.isfinite(embeddings).all(axis=1)
    embeddings, subjects = embeddings[found], subjects[found]

    # Two passes over the same blocks: the first counts non-mated distances in fine bins, which says in what bin each
    # wanted order statistic lies; the second keeps just the distances of those bins.
    mated_blocks = []
    histogram = np.zeros(_BINS, np.int64)
    for mated_block, non_mated_block in _pair_blocks(embeddings, subjects):
        mated_blocks.append(mated_block)
        histogram += np.bincount(_bin_of(non_mated_block), minlength=_BINS)
    mated = np.sort(np.concatenate(mated_blocks)) if mated_blocks else np.empty(0, np.float32)

    supported = [rate for rate in rates if rate * non_mated_pairs >= MIN_SUPPORT]
    ranks = [allowed(rate, non_mated_pairs) for rate in supported]
    cumulated = np.cumsum(histogram)
    crossing = _crossing_bin(mated, mated_pairs, cumulated, non_mated_pairs)
    wanted = np.zeros(_BINS, np.bool_)
    wanted[crossing] = True
    wanted[[_bin_of_rank(cumulated, rank) for rank in ranks if rank < cumulated[-1]]] = True
    kept = []
    for _, non_mated_block in _pair_blocks(embeddings, subjects):
        kept.append(non_mated_block[wanted[_bin_of(non_mated_block)]])
    tail = np.sort(np.concatenate(kept)) if kept else np.empty(0, np.float32)
    tail_bins = _bin_of(tail)

    def order_statistic(rank: int) -> float:
        if rank >= cumulated[-1]:
            return float("inf")
        place = _bin_of_rank(cumulated, rank)
        before = int(cumulated[place - 1]) if place else 0
        return float(tail[np.searchsorted(tail_bins, place) + rank - before])

    thresholds = [just_below(order_statistic(rank)) for rank in ranks]
    countable = [threshold for threshold, rank in zip(thresholds, ranks, strict=True) if rank <= MOST_COUNTED]
    nearest = _nearest_by_people(embeddings, subjects, max(countable, default=0.0))
    points = tuple(
        VerificationPoint(
            rate,
            threshold,
            int(np.searchsorted(mated, np.float32(threshold), side="right")) / mated_pairs if mated_pairs else nan,
            int(np.searchsorted(nearest, np.float32(threshold), side="right")) if rank <= MOST_COUNTED else None,
        )
        for rate, rank, threshold in zip(supported, ranks, thresholds, strict=True)
    )
    error_rate = _equal_error_rate(
        mated_in_bin=mated[_bin_of(mated) == crossing],
        mated_before=int((_bin_of(mated) < crossing).sum()),
        mated_pairs=mated_pairs,
        non_mated_in_bin=tail[tail_bins == crossing],
        non_mated_before=int(cumulated[crossing - 1]) if crossing else 0,
        non_mated_pairs=non_mated_pairs,
    )
    return Verification(mated_pairs, non_mated_pairs, error_rate, points)


def allowed(rate: float, comparisons: int) -> int:
    """Return how many of ``comparisons`` may be false at ``rate``, rounded down (0.29 of 100 are 29, not 28)."""
    return int(rate * comparisons + 1e-9 * max(1.0, rate * comparisons))


def just_below(distance: float) -> float:
    """Return the largest float32 threshold, at most 2, that a pair at ``distance`` does not pass."""
    return min(float(np.nextafter(np.float32(distance), np.float32(-np.inf))), 2.0)


def _pair_blocks(
    embeddings: NDArray[np.float32], subjects: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield the mated and the non-mated distances of all pairs, block by block, each pair once."""
    for start, distances in _blocks(embeddings):
        stop = start + len(distances)
        once = np.arange(start, len(embeddings))[None, :] > np.arange(start, stop)[:, None]
        same = subjects[start:stop, None] == subjects[None, start:]
        yield distances[once & same], distances[once & ~same]


def _nearest_by_people(
    embeddings: NDArray[np.float32], subjects: NDArray[np.int64], within: float
) -> NDArray[np.float32]:
    """Return, sorted, the smallest distance of every two different people who have photos within a distance."""
    people, found = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for start, distances in _blocks(embeddings):
        rows, columns = np.nonzero(distances <= np.float32(within))
        pairs = np.stack([subjects[start + rows], subjects[start + columns]], axis=1)
        different = pairs[:, 0] != pairs[:, 1]
        people.append(np.sort(pairs[different], axis=1))
        found.append(distances[rows, columns][different])
    order = np.argsort(np.concatenate(found), kind="stable")
    _, first = np.unique(np.concatenate(people)[order], axis=0, return_index=True)
    return np.sort(np.concatenate(found)[order][first])


def _blocks(embeddings: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the first row of each block and its distances to all rows from that one on."""
    rows = max(1, _BLOCK_CELLS // max(1, len(embeddings)))
    for start in range(0, len(embeddings), rows):
        yield start, distances_between(embeddings[start : start + rows], embeddings[start:])


def _bin_of(distances: NDArray[np.float32]) -> NDArray[np.int32]:
    bins: NDArray[np.int32] = np.minimum(distances * np.float32(_BINS / 2), np.float32(_BINS - 1)).astype(np.int32)
    return bins


def _bin_of_rank(cumulated: NDArray[np.int64], rank: int) -> int:
    return int(np.searchsorted(cumulated, rank, side="right"))


def _crossing_bin(
    mated: NDArray[np.float32], mated_pairs: int, cumulated: NDArray[np.int64], non_mated_pairs: int
) -> int:
    """Return the first bin at whose end the false match rate is no longer below the false non-match rate."""
    accepted = np.cumsum(np.bincount(_bin_of(mated), minlength=_BINS))
    fnmr = 1 - accepted / max(1, mated_pairs)
    fmr = cumulated / max(1, non_mated_pairs)
    crossed = np.flatnonzero(fmr >= fnmr)
    return int(crossed[0]) if len(crossed) else _BINS - 1


def _equal_error_rate(
    *,
    mated_in_bin: NDArray[np.float32],
    mated_before: int,
    mated_pairs: int,
    non_mated_in_bin: NDArray[np.float32],
    non_mated_before: int,
    non_mated_pairs: int,
) -> float:
    """Return the mean of both error rates where they differ least, given the distances of the bin where they cross."""
    if not mated_pairs or not non_mated_pairs:
        return nan
    thresholds = np.unique(np.concatenate([[-1.0], mated_in_bin, non_mated_in_bin]))
    accepted = mated_before + np.searchsorted(np.sort(mated_in_bin), thresholds, side="right")
    false = non_mated_before + np.searchsorted(np.sort(non_mated_in_bin), thresholds, side="right")
    fnmr, fmr = 1 - accepted / mated_pairs, false / non_mated_pairs
    nearest = int(np.argmin(np.abs(fmr - fnmr)))
    return float((fmr[nearest] + fnmr[nearest]) / 2)
