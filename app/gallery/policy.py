"""From a threshold policy and the size of a gallery to a distance.

A search of N subjects is N one-to-one comparisons, so a fixed distance names more strangers as a gallery grows. A
policy with `fpir` moves the threshold with N: FMR = 1 - (1 - FPIR)^(1/N) (ISO/IEC 19795-1), read from the table of
FMR by distance on the extractor's card.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from app.gallery.errors import InvalidInput
from model.card import FmrThreshold

MAX_DISTANCE = 2.0
_LEAST_FMR = 1e-12


@dataclass(frozen=True, slots=True)
class FixedDistance:
    """Accept a candidate up to one distance (0 to 2), whatever the size of the gallery."""

    distance: float

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= MAX_DISTANCE:  # false for NaN as well
            raise InvalidInput("a threshold is a distance from 0 to 2", part="threshold")


@dataclass(frozen=True, slots=True)
class WantedRates:
    """Accept so that strangers are named at a wanted rate.

    Args:
        fpir: wanted false positive identification rate of a search, in (0, 1); none: no limit by size.
        fmr: false match rate of a single comparison that is never exceeded, in (0, 1); none: no such limit.
    """

    fpir: float | None = None
    fmr: float | None = None

    def __post_init__(self) -> None:
        if self.fpir is None and self.fmr is None:
            raise InvalidInput("a policy names fpir, fmr or both", part="policy")
        for name, rate in (("fpir", self.fpir), ("fmr", self.fmr)):
            if rate is not None and not 0 < rate < 1:
                raise InvalidInput(f"{name} is a rate between 0 and 1", part=f"policy.{name}")

    def false_match_rate(self, subjects: int) -> float:
        """FMR that keeps the wanted rates when `subjects` are searched."""
        limits = [] if self.fmr is None else [self.fmr]
        if self.fpir is not None:
            # expm1 and log1p: 1 - (1 - fpir)^(1/N) loses all digits at large N.
            limits.append(-math.expm1(math.log1p(-self.fpir) / max(subjects, 1)))
        return max(_LEAST_FMR, min(limits))


ThresholdPolicy = FixedDistance | WantedRates

DEFAULT_POLICY = WantedRates(fpir=0.01, fmr=0.0001)


def parse_policy(text: str) -> ThresholdPolicy:
    """Policy from JSON: a number is a distance, an object has `fpir`, `fmr` or both.

    Raises:
        InvalidInput: anything else.
    """
    try:
        return policy_from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InvalidInput('a policy is a distance or {"fpir": …, "fmr": …}', part="policy") from error


def policy_from_json(value: object) -> ThresholdPolicy:
    """Policy from a decoded JSON value; the inverse of `policy_to_json`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return FixedDistance(_to_float(value))
    if isinstance(value, dict) and set(value) <= {"fpir", "fmr"}:
        rates = {name: rate for name, rate in value.items() if rate is not None}
        if all(isinstance(rate, int | float) and not isinstance(rate, bool) for rate in rates.values()):
            return WantedRates(**{name: _to_float(rate) for name, rate in rates.items()})
    raise InvalidInput('a policy is a distance or {"fpir": …, "fmr": …}', part="policy")


def _to_float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:  # JSON's integers have no bounds; out of range they are all the same
        return math.inf


def policy_to_json(policy: ThresholdPolicy) -> float | dict[str, float]:
    """The policy as a JSON value."""
    if isinstance(policy, FixedDistance):
        return policy.distance
    return {name: rate for name, rate in asdict(policy).items() if rate is not None}


def threshold_for(policy: ThresholdPolicy, table: Sequence[FmrThreshold], subjects: int) -> float:
    """Largest distance at which a candidate is accepted.

    Args:
        policy: what is wanted.
        table: the card's distances by FMR, at least two rows, in any order.
        subjects: size of the gallery in subjects, not templates: templates of one person are not independent trials.

    Returns:
        Distance, 0 to 2. Between rows linear in log FMR; beyond the last row the last slope goes on, which is stricter
        than the true tail (log FMR falls faster than linearly in distance).
    """
    if isinstance(policy, FixedDistance):
        return policy.distance
    return distance_at(policy.false_match_rate(subjects), table)


def distance_at(fmr: float, table: Sequence[FmrThreshold]) -> float:
    """Distance with this false match rate, by the table (see `threshold_for`)."""
    rows = sorted(table, key=lambda row: row.fmr)
    log_rates = np.log([row.fmr for row in rows])
    distances = np.array([row.distance for row in rows])
    wanted = math.log(fmr)
    if wanted < log_rates[0]:
        # The slope of a whole decade: neighbouring rows of the tail are too noisy to be extended.
        decade = min(len(rows) - 1, int(np.searchsorted(log_rates, log_rates[0] + math.log(10))))
        slope = (distances[decade] - distances[0]) / (log_rates[decade] - log_rates[0])
        return float(max(0.0, distances[0] - slope * (log_rates[0] - wanted)))
    return float(np.interp(wanted, log_rates, distances))
