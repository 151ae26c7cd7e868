from itertools import combinations, permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from model.training import bootstrap, identification, pair_distances
from model.training.bootstrap import (
    Draws,
    difference,
    draw_people,
    identification_draws,
    verification_draws,
)
from model.training.error_rates import allowed, verify
from model.training.identification import Search, divide, identify, search
from model.training.pair_distances import compare_photos, distances_between
from model.training.template_rules import best_template

RATES = (0.3, 0.1, 0.02)


def people(seed: int, count: int, spread: float = 0.6) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One to five photos of each person, scattered around a direction."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(count), 1 + np.arange(count) % 5)
    vectors = rng.normal(size=(count, 8))[subjects] + spread * rng.normal(size=(len(subjects), 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), subjects


def pairs_one_by_one(
    table: NDArray[np.float32], subjects: NDArray[np.int64], drawn: NDArray[np.int64], *, copies: bool
) -> tuple[list[float], list[float]]:
    """Distances of mated and non-mated pairs where every drawn person stands there as often as drawn."""
    crowd = [person for person, times in enumerate(drawn) for _ in range(times)]
    choose = permutations if copies else combinations
    mated = [float(table[i, j]) for person in crowd for i, j in choose(np.flatnonzero(subjects == person).tolist(), 2)]
    non_mated = [
        float(table[i, j])
        for one, other in choose(crowd, 2)
        if one != other
        for i in np.flatnonzero(subjects == one)
        for j in np.flatnonzero(subjects == other)
    ]
    return mated, non_mated


@pytest.mark.parametrize("copies", [False, True])
def test_weighted_pairs_give_what_a_crowd_of_drawn_people_gives(copies: bool) -> None:
    embeddings, subjects = people(0, 14)
    probes = people(1, 14)[0] * 0.2 + embeddings if copies else embeddings
    probes = (probes / np.linalg.norm(probes, axis=1, keepdims=True)).astype(np.float32)
    pairs = compare_photos(embeddings, subjects, probes if copies else None)
    table = distances_between(embeddings, probes)
    weights = draw_people(14, replicates=12)

    equal, accept = verification_draws(pairs, weights, RATES)

    for row, drawn in enumerate(weights):
        mated, non_mated = pairs_one_by_one(table, subjects, drawn, copies=copies)
        for column, rate in enumerate(RATES):
            closest = sorted(non_mated)[allowed(rate, len(non_mated))]
            assert accept[row, column] == pytest.approx(
                sum(distance < closest - 1e-6 for distance in mated) / len(mated)
            )
        errors = [
            (sum(d <= t for d in non_mated) / len(non_mated), sum(d > t for d in mated) / len(mated)) for t in non_mated
        ]
        best = min(errors, key=lambda pair: abs(pair[0] - pair[1]))
        assert equal[row] == pytest.approx(sum(best) / 2, abs=0.02)  # one mated pair more or less


def test_everybody_once_is_the_estimate() -> None:
    embeddings, subjects = people(2, 60, 1.0)
    pairs = compare_photos(embeddings, subjects)
    estimate = verify(pairs, RATES)

    equal, accept = verification_draws(pairs, np.ones((1, 60), np.int64), RATES)

    assert accept[0] == pytest.approx([point.tar for point in estimate.points])
    assert equal[0] == pytest.approx(estimate.equal_error_rate, abs=0.002)


def test_a_thinned_sample_moves_the_draws_little(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, subjects = people(3, 100, 0.9)
    weights = draw_people(100, replicates=50)
    whole = verification_draws(compare_photos(embeddings, subjects), weights, RATES)

    monkeypatch.setattr(pair_distances, "MOST_KEPT", 1500)
    monkeypatch.setattr(pair_distances, "_MOST_SAMPLED", 10_000)
    thinned = verification_draws(compare_photos(embeddings, subjects), weights, RATES)

    assert thinned[0] == pytest.approx(whole[0], abs=0.02)
    assert thinned[1] == pytest.approx(whole[1], abs=0.08)
    assert thinned[1].mean(axis=0) == pytest.approx(whole[1].mean(axis=0), abs=0.01)
    assert thinned[1].std(axis=0) == pytest.approx(whole[1].std(axis=0), rel=0.1)


def search_drawn(found: Search, drawn: NDArray[np.int64], rate: float) -> tuple[float, float]:
    """Rank one and FNIR where every probe stands there as often as its person is drawn."""
    hits = np.repeat(found.hits, drawn[found.mated_people])
    alarms = np.sort(np.repeat(found.alarms, drawn[found.strangers]))
    rank = allowed(rate, len(alarms))
    nearest = alarms[rank] if rank < len(alarms) else np.inf
    return float(np.isfinite(hits).mean()), 1 - float((hits < nearest).mean())


def test_weighted_probes_give_what_repeated_probes_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "LEAST_STRANGERS", 10**6)
    embeddings, subjects = people(4, 30, 0.8)
    embeddings[5] = np.nan
    divisions = divide([str(photo) for photo in range(len(subjects))], subjects, 2)
    searches = [search(embeddings, embeddings, subjects, division, best_template) for division in divisions]
    found = [each for each in searches if each is not None]
    weights = draw_people(30, replicates=20)

    rank_one, fnir = identification_draws(found, weights, (0.1,))

    for row, drawn in enumerate(weights):
        expected = np.mean([search_drawn(each, drawn, 0.1) for each in found], axis=0)
        assert (rank_one[row], fnir[row, 0]) == pytest.approx(tuple(expected))
    once = identification_draws(found, np.ones((1, 30), np.int64), (0.1,))
    estimate = identify(found, enrolled=2, rule="best", rates=(0.1,))
    assert (once[0][0], once[1][0, 0]) == pytest.approx((estimate.rank_one, estimate.points[0].fnir))


def test_people_are_drawn_with_replacement_and_the_same_way_every_time() -> None:
    weights = draw_people(50, replicates=300)

    assert weights.shape == (300, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.3)
    assert np.array_equal(weights, draw_people(50, replicates=300))


def test_the_interval_of_a_mean_is_the_one_of_theory() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(2000) < 0.9
    weights = draw_people(2000, replicates=2000)

    low, high = Draws(float(right.mean()), weights @ right / 2000).interval

    error = 1.96 * np.sqrt(0.9 * 0.1 / 2000)
    assert low == pytest.approx(right.mean() - error, abs=0.002)
    assert high == pytest.approx(right.mean() + error, abs=0.002)
    assert bootstrap.CONFIDENCE == 0.95


def test_a_difference_is_paired() -> None:
    draws = np.linspace(0.4, 0.6, 101)

    paired = difference(Draws(0.52, draws + 0.02), Draws(0.5, draws))

    assert paired.estimate == pytest.approx(0.02)
    assert paired.interval == pytest.approx((0.02, 0.02))
