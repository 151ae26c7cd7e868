"""Confidence intervals of error rates: people are drawn anew, with replacement, and all their photos with them.

Photos of one person are no independent trials, so people are drawn and not photos (Bolle, Ratha and Pankanti, Error
analysis of pattern recognition systems: the subsets bootstrap, CVIU 2004). No distance is computed again: a person who
is drawn w times counts w times, a non-mated pair of people drawn v and w times counts v·w times, and the photos of a
person are never a non-mated pair. Thresholds are found anew in each replicate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.training.error_rates import allowed
from model.training.identification import Search
from model.training.pair_distances import PairDistances

REPLICATES = 300
"""How often people are drawn."""

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Draws:
    """A figure, and what it is in each replicate, shape (R,)."""

    estimate: float
    replicates: NDArray[np.float64]

    @property
    def interval(self) -> tuple[float, float]:
        """The percentile interval at `CONFIDENCE`."""
        beyond = (1 - CONFIDENCE) / 2 * 100
        low, high = np.percentile(self.replicates, [beyond, 100 - beyond])
        return float(low), float(high)


def difference(one: Draws, other: Draws) -> Draws:
    """How much larger one figure is than another of the same people in the same draws."""
    return Draws(one.estimate - other.estimate, one.replicates - other.replicates)


def draw_people(people: int, replicates: int = REPLICATES) -> NDArray[np.int64]:
    """Return how often each person is drawn in each replicate, shape (R, P); the same every time."""
    return np.random.default_rng(0).multinomial(people, np.full(people, 1 / people), replicates)


def verification_draws(
    pairs: PairDistances, weights: NDArray[np.int64], rates: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return equal error rates, shape (R,), and true accept rates at false match rates, shape (R, len(rates)).

    Args:
        pairs: the distances.
        weights: how often each person is drawn, (R, P).
        rates: false match rates.
    """
    accepted_within = np.searchsorted(pairs.mated, pairs.non_mated, side="right")
    left, right = pairs.non_mated_people.T
    equal, accept = np.empty(len(weights)), np.empty((len(weights), len(rates)))
    for row, drawn in enumerate(weights):
        weight = drawn.astype(np.float32)
        mated = np.concatenate([[0.0], np.cumsum(weight[pairs.mated_people], dtype=np.float64)])
        non_mated = np.cumsum(weight[left] * weight[right] * pairs.weights, dtype=np.float64)
        mated_pairs, non_mated_pairs = _totals(pairs, drawn)
        for column, rate in enumerate(rates):
            place = int(np.searchsorted(non_mated, allowed(rate, non_mated_pairs) + 0.5))
            closest = pairs.non_mated[place] if place < len(non_mated) else np.inf
            accept[row, column] = mated[np.searchsorted(pairs.mated, closest, side="left")] / mated_pairs
        equal[row] = _equal_error_rate(non_mated / non_mated_pairs, 1 - mated / mated_pairs, accepted_within)
    return equal, accept


def identification_draws(
    searches: Sequence[Search], weights: NDArray[np.int64], rates: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rank-one rates, shape (R,), and FNIRs at false positive identification rates, shape (R, len(rates)).

    The galleries stay as they are; the people of the probes are drawn. Several searches give the mean of their rates.

    Args:
        searches: one for each division of the photos.
        weights: how often each person is drawn, (R, P).
        rates: false positive identification rates.
    """
    drawn = [_search_draws(found, weights, rates) for found in searches]
    return np.mean([rank_one for rank_one, _ in drawn], axis=0), np.mean([fnir for _, fnir in drawn], axis=0)


def _search_draws(
    found: Search, weights: NDArray[np.int64], rates: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    by_distance = np.argsort(found.hits, kind="stable")
    hits, hit_people = found.hits[by_distance], found.mated_people[by_distance]
    by_distance = np.argsort(found.alarms, kind="stable")
    alarms, strangers = found.alarms[by_distance], found.strangers[by_distance]
    rank_one, fnir = np.empty(len(weights)), np.empty((len(weights), len(rates)))
    for row, drawn in enumerate(weights):
        accepted = np.concatenate([[0], np.cumsum(drawn[hit_people])])
        raised = np.cumsum(drawn[strangers])
        probes = max(1, int(accepted[-1]))
        rank_one[row] = accepted[np.searchsorted(hits, np.inf)] / probes
        for column, rate in enumerate(rates):
            place = int(np.searchsorted(raised, allowed(rate, int(raised[-1])), side="right"))
            nearest = alarms[place] if place < len(alarms) else np.inf
            fnir[row, column] = 1 - accepted[np.searchsorted(hits, nearest, side="left")] / probes
    return rank_one, fnir


def _totals(pairs: PairDistances, drawn: NDArray[np.int64]) -> tuple[int, int]:
    """Return the numbers of mated and of non-mated pairs of the people that were drawn, no less than one each."""
    photos = drawn * pairs.photos
    mated = int((photos * (pairs.photos - 1)).sum()) * pairs.times // 2
    non_mated = int(photos.sum() ** 2 - (photos**2).sum()) * pairs.times // 2
    return max(1, mated), max(1, non_mated)


def _equal_error_rate(fmr: NDArray[np.float64], fnmr: NDArray[np.float64], accepted_within: NDArray[np.int64]) -> float:
    """Return the mean of both rates where they cross, at one of the non-mated distances.

    ``fmr`` is that at each non-mated distance, ``fnmr`` that with each number of mated pairs accepted, and
    ``accepted_within`` the number accepted at each non-mated distance.
    """
    low, high = 0, len(fmr)
    while low < high:
        middle = (low + high) // 2
        if fmr[middle] < fnmr[accepted_within[middle]]:
            low = middle + 1
        else:
            high = middle
    around = [place for place in (low - 1, low) if 0 <= place < len(fmr)]
    rates = [(float(fmr[place]), float(fnmr[accepted_within[place]])) for place in around]
    rates.append((0.0, float(fnmr[0])))  # nobody accepted
    nearest = min(rates, key=lambda pair: abs(pair[0] - pair[1]))
    return (nearest[0] + nearest[1]) / 2
