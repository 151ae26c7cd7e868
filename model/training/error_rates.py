"""One-to-one error rates over all pairs of a set of photos: false match rate, true accept rate, equal error rate.

A threshold is an order statistic of *all* non-mated distances: exact among the `pair_distances.MOST_KEPT` closest, and
beyond them the lower edge of a bin 1/32,768 wide, so that the rate is kept in any case. A photo without an embedding (a
row of NaN: no face was found) matches nobody and stays in the denominators, so the rates are the generalized ones of
ISO/IEC 19795-1 (failures to acquire count as rejections).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from model.training.pair_distances import BINS, Moments, PairDistances, bin_of

FMR_GRID = tuple(float(f"{10 ** (-1 - step / 4):.3g}") for step in range(21))
"""False match rates from 1e-1 down to 1e-6, four a decade."""

MIN_SUPPORT = 50
"""A rate is given only if at least so many non-mated comparisons may lie below its threshold."""

MOST_COUNTED = 100_000
"""Up to so many non-mated pairs below a threshold, it is counted of how many different people they are."""


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
    """Error rates over all pairs of a set of photos, and how far apart photos of one and of two people are.

    ``points`` go from the loosest to the strictest rate.
    """

    mated_pairs: int
    non_mated_pairs: int
    equal_error_rate: float
    points: tuple[VerificationPoint, ...]
    mated_distance: Moments | None
    non_mated_distance: Moments | None


def verify(pairs: PairDistances, rates: Sequence[float] = FMR_GRID) -> Verification:
    """Return the error rates.

    Args:
        pairs: the distances.
        rates: false match rates; those with less than ``MIN_SUPPORT`` non-mated pairs behind them are left out.
    """
    mated_pairs, non_mated_pairs = pairs.mated_pairs, pairs.non_mated_pairs
    nearest = _nearest_by_people(pairs)
    points = []
    for rate in rates:
        if rate * non_mated_pairs < MIN_SUPPORT:
            continue
        rank = allowed(rate, non_mated_pairs)
        threshold = just_below(_order_statistic(pairs, rank))
        accepted = int(np.searchsorted(pairs.mated, np.float32(threshold), side="right"))
        countable = rank <= min(MOST_COUNTED, pairs.exact)
        people = int(np.searchsorted(nearest, np.float32(threshold), side="right")) if countable else None
        points.append(VerificationPoint(rate, threshold, accepted / mated_pairs if mated_pairs else nan, people))
    return Verification(
        mated_pairs,
        non_mated_pairs,
        _equal_error_rate(pairs),
        tuple(points),
        pairs.mated_moments,
        pairs.non_mated_moments,
    )


def allowed(rate: float, comparisons: int) -> int:
    """Return how many of ``comparisons`` may be false at ``rate``, rounded down (0.29 of 100 are 29, not 28)."""
    return int(rate * comparisons + 1e-9 * max(1.0, rate * comparisons))


def just_below(distance: float) -> float:
    """Return the largest float32 threshold, at most 2, that a pair at ``distance`` does not pass."""
    return min(float(np.nextafter(np.float32(distance), np.float32(-np.inf))), 2.0)


def _order_statistic(pairs: PairDistances, rank: int) -> float:
    """Return the non-mated distance at a rank from 0, or the lower edge of its bin; infinite for pairs without one."""
    if rank < pairs.exact:
        return float(pairs.non_mated[rank])
    place = int(np.searchsorted(np.cumsum(pairs.non_mated_histogram), rank, side="right"))
    return place * 2 / BINS if place < BINS else float("inf")


def _nearest_by_people(pairs: PairDistances) -> NDArray[np.float32]:
    """Return, ascending, the smallest distance of every two different people among the closest pairs."""
    counted = min(MOST_COUNTED + 1, pairs.exact)
    people = np.sort(pairs.non_mated_people[:counted], axis=1)
    _, first = np.unique(people, axis=0, return_index=True)
    return pairs.non_mated[np.sort(first)]


def _equal_error_rate(pairs: PairDistances) -> float:
    """Return the mean of both error rates at the threshold where they differ least."""
    if not pairs.mated_pairs or not pairs.non_mated_pairs:
        return nan
    near = pairs.non_mated[: pairs.exact]
    exact_bins = int(np.searchsorted(np.cumsum(pairs.non_mated_histogram), pairs.exact, side="right"))
    thresholds = np.concatenate([[-1.0], pairs.mated[bin_of(pairs.mated) < exact_bins], near])
    accepted = np.searchsorted(pairs.mated, thresholds, side="right")
    false = np.searchsorted(near, thresholds, side="right")
    # Beyond the pairs that are kept, both rates are known at the edges of the bins.
    accepted = np.concatenate([accepted, np.cumsum(pairs.mated_histogram)[max(0, exact_bins - 1) :]])
    false = np.concatenate([false, np.cumsum(pairs.non_mated_histogram)[max(0, exact_bins - 1) :]])
    fnmr, fmr = 1 - accepted / pairs.mated_pairs, false / pairs.non_mated_pairs
    nearest = int(np.argmin(np.abs(fmr - fnmr)))
    return float((fmr[nearest] + fnmr[nearest]) / 2)
