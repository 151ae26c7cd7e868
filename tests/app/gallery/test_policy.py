import json
import math
from decimal import Decimal, localcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import model
from app.gallery.errors import InvalidInput
from app.gallery.policy import (
    DEFAULT_POLICY,
    FixedDistance,
    ThresholdPolicy,
    WantedRates,
    distance_at,
    parse_policy,
    policy_from_json,
    policy_to_json,
    threshold_for,
)
from model.card import FmrThreshold, read_card

rates = st.floats(1e-6, 0.5)
sizes = st.integers(0, 10**8)
distances = st.floats(0, 2)
policies = st.one_of(
    st.builds(FixedDistance, distances),
    st.builds(WantedRates, fpir=rates),
    st.builds(WantedRates, fmr=rates),
    st.builds(WantedRates, fpir=rates, fmr=rates),
)


@st.composite
def tables(draw: st.DrawFn) -> list[FmrThreshold]:
    exponents = draw(st.lists(st.integers(1, 80), min_size=2, max_size=12, unique=True))
    found = sorted(draw(st.lists(distances, min_size=len(exponents), max_size=len(exponents))), reverse=True)
    rows = [FmrThreshold(10 ** (-e / 10), d) for e, d in zip(sorted(exponents), found, strict=True)]
    return draw(st.permutations(rows))


# -- simulation: non-mated comparisons whose distances have the distribution F(d) = (d / 2)^20 on 0 to 2, so that
# FMR 1e-3 is 1.42 and FMR 1e-6 is 1.00, much as with real extractors

SIZES = (100, 1_000, 10_000, 100_000)
SEARCHES = 200_000


def distance_of(fmr: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return 2 * np.asarray(fmr, np.float64) ** (1 / 20)


def table_of(*, rows_per_decade: int, last: float) -> list[FmrThreshold]:
    count = round(-math.log10(last)) * rows_per_decade
    fmrs = [10 ** (-row / rows_per_decade) for row in range(rows_per_decade, count + 1)]
    return [FmrThreshold(fmr, float(distance_of(fmr))) for fmr in fmrs]


def nearest_strangers(subjects: int, searches: int, *, seed: int) -> NDArray[np.float64]:
    """Distance of the best of `subjects` in every search: the minimum of N draws has the CDF 1 − (1 − F)^N."""
    drawn = np.random.default_rng(seed).random(searches)
    return distance_of(-np.expm1(np.log1p(-drawn) / subjects))


def false_positive_rate(nearest: NDArray[np.float64], threshold: float) -> float:
    return float((nearest <= threshold).mean())


def sampling_error(rate: float, searches: int) -> float:
    """Four standard deviations."""
    return 4 * math.sqrt(rate * (1 - rate) / searches)


@pytest.mark.parametrize("fpir", [0.001, 0.01, 0.05])
def test_the_wanted_fpir_stays_as_a_gallery_grows(fpir: float) -> None:
    table = table_of(rows_per_decade=10, last=1e-9)
    measured = [
        false_positive_rate(
            nearest_strangers(size, SEARCHES, seed=size), threshold_for(WantedRates(fpir=fpir), table, size)
        )
        for size in SIZES
    ]
    assert measured == pytest.approx([fpir] * len(SIZES), abs=sampling_error(fpir, SEARCHES))


def test_the_fpir_of_a_fixed_distance_rises_as_a_gallery_grows() -> None:
    fixed = FixedDistance(float(distance_of(1e-4)))
    measured = [
        false_positive_rate(
            nearest_strangers(size, SEARCHES, seed=size),
            threshold_for(fixed, table_of(rows_per_decade=1, last=1e-6), 0),
        )
        for size in SIZES
    ]
    assert measured == pytest.approx([0.00995, 0.0952, 0.632, 1.0], abs=0.005)


@pytest.mark.parametrize("size", [100, 1_000])
def test_the_wanted_fpir_stays_where_every_comparison_is_drawn(size: int) -> None:
    threshold = threshold_for(WantedRates(fpir=0.01), table_of(rows_per_decade=10, last=1e-9), size)
    random, searches = np.random.default_rng(size), 20_000
    nearest = np.concatenate([distance_of(random.random((1_000, size)).min(axis=1)) for _ in range(searches // 1_000)])
    assert false_positive_rate(nearest, threshold) == pytest.approx(0.01, abs=sampling_error(0.01, searches))


@pytest.mark.parametrize("size", [1, 30, *SIZES, 10**6, 10**7])
def test_a_table_by_decades_gives_hardly_more_than_the_wanted_fpir(size: int) -> None:
    threshold = threshold_for(WantedRates(fpir=0.01), table_of(rows_per_decade=1, last=1e-6), size)
    fmr = (threshold / 2) ** 20
    assert 0 <= -math.expm1(size * math.log1p(-fmr)) < 0.0105


# -- rates


@given(fpir=st.floats(1e-6, 0.999), subjects=st.integers(1, 10**6))
def test_fmr_of_a_wanted_fpir_follows_the_formula(fpir: float, subjects: int) -> None:
    with localcontext() as context:
        context.prec = 60
        exact = 1 - (1 - Decimal(fpir)) ** (1 / Decimal(subjects))
    assert WantedRates(fpir=fpir).false_match_rate(subjects) == pytest.approx(max(float(exact), 1e-12), rel=1e-9)


@given(fpir=rates, fmr=rates, subjects=sizes)
def test_the_stricter_of_both_rates_counts(fpir: float, fmr: float, subjects: int) -> None:
    both = WantedRates(fpir=fpir, fmr=fmr).false_match_rate(subjects)
    alone = [WantedRates(fpir=fpir).false_match_rate(subjects), WantedRates(fmr=fmr).false_match_rate(subjects)]
    assert both == min(alone)


def test_an_empty_gallery_counts_as_one_subject() -> None:
    assert (
        WantedRates(fpir=0.01).false_match_rate(0) == WantedRates(fpir=0.01).false_match_rate(1) == pytest.approx(0.01)
    )


# -- thresholds


@given(policy=policies, table=tables(), smaller=sizes, larger=sizes)
def test_a_larger_gallery_never_has_a_looser_threshold(
    policy: ThresholdPolicy, table: list[FmrThreshold], smaller: int, larger: int
) -> None:
    smaller, larger = sorted((smaller, larger))
    assert 0 <= threshold_for(policy, table, larger) <= threshold_for(policy, table, smaller) + 1e-12 <= 2 + 1e-12


@given(table=tables(), subjects=sizes, one=rates, other=rates)
def test_a_smaller_fpir_never_has_a_looser_threshold(
    table: list[FmrThreshold], subjects: int, one: float, other: float
) -> None:
    strict, loose = (threshold_for(WantedRates(fpir=fpir), table, subjects) for fpir in sorted((one, other)))
    assert strict <= loose + 1e-12


@given(distance=distances, table=tables(), subjects=sizes)
def test_a_fixed_distance_is_the_threshold_at_any_size(
    distance: float, table: list[FmrThreshold], subjects: int
) -> None:
    assert threshold_for(FixedDistance(distance), table, subjects) == distance


def interpolated_slowly(fmr: float, table: list[FmrThreshold]) -> float:
    rows = sorted(table, key=lambda row: row.fmr)
    if fmr >= rows[-1].fmr:
        return rows[-1].distance
    below, above = next((low, high) for low, high in pairwise(rows) if low.fmr <= fmr < high.fmr)
    share = (math.log(fmr) - math.log(below.fmr)) / (math.log(above.fmr) - math.log(below.fmr))
    return below.distance + share * (above.distance - below.distance)


@given(table=tables(), share=st.floats(0, 1))
def test_between_rows_the_distance_is_linear_in_log_fmr(table: list[FmrThreshold], share: float) -> None:
    least = min(row.fmr for row in table)
    fmr = max(least, least ** (1 - share))
    assert distance_at(fmr, table) == pytest.approx(interpolated_slowly(fmr, table), abs=1e-9)


@given(table=tables())
def test_a_row_gives_its_own_distance(table: list[FmrThreshold]) -> None:
    assert [distance_at(row.fmr, table) for row in table] == pytest.approx([row.distance for row in table], abs=1e-9)


@given(table=tables(), decades=st.floats(0, 6))
def test_beyond_the_table_the_distance_is_never_looser(table: list[FmrThreshold], decades: float) -> None:
    last = min(table, key=lambda row: row.fmr)
    assert 0 <= distance_at(last.fmr * 10**-decades, table) <= last.distance + 1e-12


@pytest.mark.parametrize("rows_per_decade", [1, 3, 10])
@pytest.mark.parametrize("fmr", [1e-7, 1e-8, 1e-10])
def test_beyond_the_table_the_distance_is_stricter_than_the_true_tail(rows_per_decade: int, fmr: float) -> None:
    assert distance_at(fmr, table_of(rows_per_decade=rows_per_decade, last=1e-6)) < distance_of(fmr)


def test_beyond_the_table_the_slope_of_its_last_decade_goes_on() -> None:
    rows = [(1e-6, 0.8), (2e-6, 0.99), (1.05e-5, 1.0), (1e-3, 1.1)]  # the second is far off the line of its neighbours
    slope = (1.0 - 0.8) / math.log10(10.5)
    assert distance_at(1e-8, [FmrThreshold(*row) for row in rows]) == pytest.approx(0.8 - 2 * slope)


def test_the_shipped_card_gives_a_usable_threshold_at_any_size() -> None:
    table = read_card(Path(model.__file__).parent / "weights" / "sface").thresholds
    found = [threshold_for(WantedRates(fpir=0.01), table, 10**exponent) for exponent in range(2, 8)]
    assert all(0 < later < earlier < 2 for earlier, later in pairwise(found))
    assert (
        threshold_for(DEFAULT_POLICY, table, 1) == threshold_for(DEFAULT_POLICY, table, 100) == distance_at(1e-4, table)
    )


# -- form


@given(policies)
def test_a_policy_survives_json(policy: ThresholdPolicy) -> None:
    assert parse_policy(json.dumps(policy_to_json(policy))) == policy


def test_a_policy_is_read_in_both_forms() -> None:
    assert parse_policy(" 1 ") == FixedDistance(1.0)
    assert parse_policy('{"fpir": 0.01, "fmr": 0.0001}') == DEFAULT_POLICY
    assert parse_policy('{"fpir": 0.01, "fmr": null}') == WantedRates(fpir=0.01)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "true",
        '"1"',
        "[]",
        "[1]",
        "{}",
        "1 2",
        '{"fpir": 0.01',
        '{"fpir": "0.01"}',
        '{"fpir": true}',
        '{"fpir": [0.01]}',
        '{"fpir": 0.01, "tar": 0.9}',
        '{"fpir": null}',
        pytest.param("[" * 100_000, id="deep"),
        pytest.param("1" + "0" * 400, id="no float is so large"),
        pytest.param('{"fpir": 1' + "0" * 400 + "}", id="no rate is so large"),
        pytest.param("1" + "0" * 5_000, id="very long"),
    ],
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_policy(text)


@pytest.mark.parametrize("distance", [0, 2])
def test_the_ends_of_the_range_are_distances(distance: int) -> None:
    assert parse_policy(str(distance)) == FixedDistance(distance)


@pytest.mark.parametrize("value", ["-0.1", "2.001", "1e9", "NaN", "Infinity", "-Infinity"])
def test_a_distance_out_of_range_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput, match=r"^a threshold is a distance from 0 to 2$") as refused:
        parse_policy(value)
    assert refused.value.part == "threshold"


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "1.5", "NaN", "Infinity"])
@pytest.mark.parametrize("name", ["fpir", "fmr"])
def test_a_rate_out_of_range_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{name} is a rate between 0 and 1$") as refused:
        parse_policy(f'{{"{name}": {value}}}')
    assert refused.value.part == f"policy.{name}"


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["fpir", "fmr", "x"]), inner),
    )
)
def test_any_json_is_a_policy_or_refused(value: object) -> None:
    try:
        policy = policy_from_json(value)
    except InvalidInput:
        return
    assert policy_from_json(policy_to_json(policy)) == policy
