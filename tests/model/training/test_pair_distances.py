from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.training import pair_distances
from model.training.pair_distances import BINS, bin_of, compare_photos


def unit(seed: int, count: int, dimension: int = 4) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_distances, "_BLOCK_CELLS", 50)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=5, max_size=20), st.booleans(), st.lists(st.integers(0, 4), max_size=2))
def test_pairs_are_those_of_a_loop(people: list[int], copies: bool, lost: list[int]) -> None:
    subjects = np.array(people, np.int64)
    gallery = unit(1, len(people))
    gallery[lost] = np.nan
    probes = unit(2, len(people)) if copies else gallery
    mated, non_mated = [], []
    for i, j in (permutations if copies else combinations)(range(len(people)), 2):
        distance = float(np.linalg.norm(gallery[i].astype(float) - probes[j]))
        if np.isnan(distance):
            continue
        if people[i] == people[j]:
            mated.append((distance, people[i]))
        else:
            non_mated.append((distance, people[i], people[j]))

    pairs = compare_photos(gallery, subjects, probes if copies else None)

    assert pairs.mated == pytest.approx(sorted(distance for distance, _ in mated), abs=1e-3)
    assert sorted(pairs.mated_people) == sorted(person for _, person in mated)
    assert pairs.non_mated == pytest.approx(sorted(distance for distance, *_ in non_mated), abs=1e-3)
    assert sorted(map(tuple, pairs.non_mated_people.tolist())) == sorted((a, b) for _, a, b in non_mated)
    assert pairs.exact == len(non_mated)
    assert (pairs.mated_histogram.sum(), pairs.non_mated_histogram.sum()) == (len(mated), len(non_mated))
    together = len(people) * (len(people) - 1) // (1 if copies else 2)
    assert pairs.mated_pairs + pairs.non_mated_pairs == together
    assert (pairs.mated_moments is None) == (not mated)
    if pairs.mated_moments is not None:
        assert pairs.mated_moments.mean == pytest.approx(np.mean([d for d, _ in mated]), abs=1e-3)
        assert pairs.mated_moments.deviation == pytest.approx(np.std([d for d, _ in mated]), abs=1e-3)
    if pairs.non_mated_moments is not None:
        assert pairs.non_mated_moments.mean == pytest.approx(np.mean([d for d, *_ in non_mated]), abs=1e-3)


def test_of_many_pairs_the_closest_are_kept_and_the_others_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, subjects = unit(0, 300), np.arange(300)
    whole = compare_photos(embeddings, subjects)

    monkeypatch.setattr(pair_distances, "MOST_KEPT", 4000)
    monkeypatch.setattr(pair_distances, "_MOST_SAMPLED", 2000)
    pairs = compare_photos(embeddings, subjects)

    assert 3900 < pairs.exact <= 4000
    assert np.array_equal(pairs.non_mated[: pairs.exact], whole.non_mated[: pairs.exact])
    assert (pairs.weights[: pairs.exact] == 1).all()
    assert 1900 < len(pairs.non_mated) - pairs.exact <= 2000
    assert pairs.weights.sum(dtype=float) == pytest.approx(300 * 299 / 2, rel=1e-5)
    assert np.average(pairs.non_mated, weights=pairs.weights) == pytest.approx(whole.non_mated.mean(), abs=0.02)
    assert np.array_equal(pairs.non_mated_histogram, whole.non_mated_histogram)


def test_bins_are_of_equal_width_and_hold_their_lower_edge() -> None:
    edges = np.arange(BINS, dtype=np.float32) * np.float32(2 / BINS)

    assert np.array_equal(bin_of(edges), np.arange(BINS))
    assert bin_of(np.array([2.0, 2.0000002], np.float32)).tolist() == [BINS - 1, BINS - 1]
