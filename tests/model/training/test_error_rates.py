from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.training import error_rates, pair_distances
from model.training.error_rates import (
    FMR_GRID,
    allowed,
    just_below,
    verify,
)
from model.training.pair_distances import BINS, compare_photos, distances_between

RATES = (0.5, 0.2, 0.1, 0.01)


def unit(rng: np.random.Generator, count: int, dimension: int) -> NDArray[np.float32]:
    vectors = rng.normal(size=(count, dimension))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


def corners(choices: list[int]) -> NDArray[np.float32]:
    """Unit vectors along the axes: every distance is exactly 0, √2 or 2, so ties are everywhere."""
    axes = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)
    return axes[choices]


def every_pair(embeddings: NDArray[np.float32], subjects: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Distances of the mated and the non-mated pairs, one at a time; infinite where there is no face."""
    mated: list[float] = []
    non_mated: list[float] = []
    table = distances_between(embeddings, embeddings)
    for i, j in combinations(range(len(subjects)), 2):
        distance = float("inf") if np.isnan(table[i, j]) else float(table[i, j])
        (mated if subjects[i] == subjects[j] else non_mated).append(distance)
    return mated, non_mated


@pytest.fixture(autouse=True)
def small_sets_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_rates, "MIN_SUPPORT", 0)
    monkeypatch.setattr(pair_distances, "_BLOCK_CELLS", 100)


@st.composite
def photos(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    count = draw(st.integers(4, 24))
    subjects = np.array(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)), np.int64)
    if draw(st.booleans()):
        embeddings = corners(draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    else:
        embeddings = unit(np.random.default_rng(draw(st.integers(0, 10_000))), count, 3)
    embeddings[draw(st.lists(st.integers(0, count - 1), max_size=3))] = np.nan
    return embeddings, subjects


@settings(deadline=None, max_examples=150)
@given(photos())
def test_thresholds_are_the_loosest_that_keep_the_rate(
    photos: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> None:
    mated, non_mated = every_pair(*photos)

    measured = verify(compare_photos(*photos), RATES)

    assert (measured.mated_pairs, measured.non_mated_pairs) == (len(mated), len(non_mated))
    for point in measured.points:
        # The squares of the distances agree to float32 precision, whatever the shape of the matrix product.
        surely, perhaps = point.distance**2 - 1e-6, point.distance**2 + 1e-6
        assert sum(distance**2 <= surely for distance in non_mated) <= allowed(point.fmr, len(non_mated))
        assert sum(distance**2 <= perhaps for distance in non_mated) > allowed(point.fmr, len(non_mated)) or (
            point.distance == 2.0
        )
        if mated:
            assert sum(distance**2 <= surely for distance in mated) / len(mated) <= point.tar
            assert sum(distance**2 <= perhaps for distance in mated) / len(mated) >= point.tar


@settings(deadline=None, max_examples=150)
@given(photos())
def test_equal_error_rate_is_where_the_rates_differ_least(
    photos: tuple[NDArray[np.float32], NDArray[np.int64]],
) -> None:
    mated, non_mated = every_pair(*photos)
    measured = verify(compare_photos(*photos), RATES).equal_error_rate
    if not mated or not non_mated:
        assert np.isnan(measured)
        return

    candidates = []
    for threshold in [-1.0, *(d for d in mated + non_mated if np.isfinite(d))]:
        fmr = sum(distance <= threshold for distance in non_mated) / len(non_mated)
        fnmr = sum(distance > threshold for distance in mated) / len(mated)
        candidates.append((abs(fmr - fnmr), (fmr + fnmr) / 2))

    nearest = min(difference for difference, _ in candidates)
    assert any(measured == pytest.approx(rate) for difference, rate in candidates if difference < nearest + 1e-9)


def test_a_hand_computed_case() -> None:
    angles = np.deg2rad([0, 10, 90, 100, 180])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    subjects = np.array([0, 0, 1, 1, 2])

    measured = verify(compare_photos(embeddings, subjects), (0.25, 0.5))

    # Non-mated, in degrees: 80 80 90 90 90 100 170 180 (of 0-90, 0-100, 10-90, 10-100, 0-180, 10-180, 90-180, 100-180).
    assert (measured.mated_pairs, measured.non_mated_pairs) == (2, 8)
    assert [point.tar for point in measured.points] == [1.0, 1.0]
    assert [point.distance for point in measured.points] == pytest.approx(
        [2 * np.sin(np.deg2rad(90) / 2), 2 * np.sin(np.deg2rad(90) / 2)], abs=1e-5
    )
    assert measured.equal_error_rate == 0.0


def test_a_photo_without_a_face_matches_nobody_and_still_counts() -> None:
    embeddings = np.array([[1, 0], [np.nan, np.nan], [0, 1], [0, -1]], np.float32)

    measured = verify(compare_photos(embeddings, np.array([0, 0, 1, 2])), (0.2,))

    assert (measured.mated_pairs, measured.non_mated_pairs) == (1, 5)
    assert measured.points[0].tar == 0.0


def test_support_counts_pairs_of_people_and_not_of_photos() -> None:
    angles = np.deg2rad([0, 1, 2, 3, 90, 94, 180])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    subjects = np.array([0, 0, 1, 1, 2, 3, 4])

    points = verify(compare_photos(embeddings, subjects), (4 / 19, 5 / 19)).points

    # Four pairs of photos within 3° are of the same two people; the fifth, at 4°, is of two others.
    assert [point.people_pairs for point in points] == [1, 2]


def test_too_many_pairs_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_rates, "MOST_COUNTED", 10)
    embeddings = unit(np.random.default_rng(3), 30, 4)

    points = verify(compare_photos(embeddings, np.arange(30)), (0.1, 0.01)).points

    assert [point.people_pairs for point in points] == [None, 4]


def test_rates_that_the_pairs_cannot_support_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_rates, "MIN_SUPPORT", 50)
    embeddings = unit(np.random.default_rng(0), 100, 8)

    measured = verify(compare_photos(embeddings, np.arange(100)), FMR_GRID)

    assert [point.fmr for point in measured.points] == [0.1, 0.0562, 0.0316, 0.0178]
    assert np.isnan(measured.points[0].tar)


def test_thresholds_tighten_with_the_rate() -> None:
    embeddings = unit(np.random.default_rng(1), 300, 16)

    points = verify(compare_photos(embeddings, np.arange(300) // 3)).points

    assert all(a.distance >= b.distance and a.tar >= b.tar for a, b in pairwise(points))


def test_beyond_the_pairs_that_are_kept_a_threshold_is_the_edge_of_its_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, subjects = unit(np.random.default_rng(2), 120, 8), np.arange(120) // 3
    exact = verify(compare_photos(embeddings, subjects), RATES)

    monkeypatch.setattr(pair_distances, "MOST_KEPT", 1000)
    pairs = compare_photos(embeddings, subjects)
    binned = verify(pairs, RATES)

    assert 900 < pairs.exact <= 1000
    assert binned.points[-1] == exact.points[-1]  # 70 pairs
    for one, other in zip(binned.points[:-1], exact.points[:-1], strict=True):
        assert 0 <= other.distance - one.distance < 2.1 / BINS
        assert one.tar == pytest.approx(other.tar, abs=0.01)
    assert binned.equal_error_rate == pytest.approx(exact.equal_error_rate, abs=0.001)


def test_the_grid_has_every_decade_and_four_points_in_each() -> None:
    assert len(FMR_GRID) == 21
    assert set(FMR_GRID) >= {1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6}


@pytest.mark.parametrize(("rate", "comparisons", "expected"), [(0.29, 100, 29), (0.01, 99, 0), (1e-6, 87_000_000, 87)])
def test_what_a_rate_allows_is_rounded_down_but_not_by_float_error(
    rate: float, comparisons: int, expected: int
) -> None:
    assert allowed(rate, comparisons) == expected


def test_just_below_is_below_and_never_above_two() -> None:
    assert just_below(1.0) < 1.0
    assert just_below(float("inf")) == 2.0
