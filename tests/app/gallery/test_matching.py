from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.gallery.index import INDEX_KINDS, ExactIndex, IndexKind, RankedTemplates
from app.gallery.matching import Candidate, decide, distance_between, find_candidates, rank_candidates

DIMENSION = 8


def unit_vectors(count: int, *, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSION))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def ranked(*pairs: tuple[int, float]) -> RankedTemplates:
    return RankedTemplates(np.array([i for i, _ in pairs], np.int64), np.array([d for _, d in pairs], np.float32))


def test_a_subject_comes_once_with_its_best_template() -> None:
    found = rank_candidates(ranked((11, 0.25), (21, 0.5), (12, 0.75), (22, 1.0)), {11: 1, 12: 1, 21: 2, 22: 2})
    assert found == [Candidate(1, 11, 0.25), Candidate(2, 21, 0.5)]


def test_a_template_that_was_removed_a_moment_ago_is_passed_over() -> None:
    assert rank_candidates(ranked((11, 0.25), (21, 0.5)), {21: 2}) == [Candidate(2, 21, 0.5)]


def test_an_empty_ranking_has_no_candidates() -> None:
    assert rank_candidates(ranked(), {}) == []


def nearest_subjects_slowly(
    vectors: NDArray[np.float32], subjects: Sequence[int], probe: NDArray[np.float32], top_k: int
) -> list[tuple[float, int]]:
    best: dict[int, float] = {}
    for vector, subject in zip(vectors, subjects, strict=True):
        distance = float(np.linalg.norm(vector.astype(np.float64) - probe))
        best[subject] = min(best.get(subject, 2.1), distance)
    return sorted((distance, subject) for subject, distance in best.items())[:top_k]


@pytest.mark.parametrize("kind", list(INDEX_KINDS))
@given(
    subjects=st.lists(st.integers(0, 30) | st.just(0), max_size=150),
    probes=st.integers(0, 4),
    top_k=st.integers(1, 12) | st.just(10**9),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_candidates_are_the_nearest_subjects(
    kind: IndexKind, subjects: list[int], probes: int, top_k: int, seed: int
) -> None:
    vectors, searched = unit_vectors(len(subjects), seed=seed), unit_vectors(probes, seed=seed + 1)
    index = INDEX_KINDS[kind](DIMENSION)
    index.add(np.arange(len(subjects)), vectors)
    found = find_candidates(index, dict(enumerate(subjects)), searched, top_k=top_k)
    assert len(found) == probes
    for candidates, probe in zip(found, searched, strict=True):
        wanted = nearest_subjects_slowly(vectors, subjects, probe, top_k)
        assert [candidate.subject_id for candidate in candidates] == [subject for _, subject in wanted]
        assert [one.distance for one in candidates] == pytest.approx([distance for distance, _ in wanted], abs=1e-6)
        assert all(subjects[candidate.template_id] == candidate.subject_id for candidate in candidates)


def test_a_subject_with_many_near_templates_does_not_hide_the_others() -> None:
    probe, other = unit_vectors(2, seed=0)
    index = ExactIndex(DIMENSION)
    index.add(np.arange(500), np.repeat(probe[None], 500, axis=0))
    index.add(np.array([500, 501]), np.stack([other, -probe]))
    (found,) = find_candidates(index, {**dict.fromkeys(range(500), 1), 500: 2, 501: 3}, probe[None], top_k=3)
    assert [candidate.subject_id for candidate in found] == [1, 2, 3]


def test_removed_templates_do_not_hide_the_others() -> None:
    probe, other = unit_vectors(2, seed=0)
    index = ExactIndex(DIMENSION)
    index.add(np.arange(100), np.repeat(probe[None], 100, axis=0))
    index.add(np.array([100]), other[None])
    (found,) = find_candidates(index, {100: 2}, probe[None], top_k=1)
    assert [candidate.template_id for candidate in found] == [100]


def test_an_empty_gallery_has_no_candidates() -> None:
    assert find_candidates(ExactIndex(DIMENSION), {}, unit_vectors(2, seed=0), top_k=5) == [[], []]


def test_the_nearest_candidate_is_the_identity_up_to_and_at_the_threshold() -> None:
    candidates = [Candidate(1, 11, 0.5), Candidate(2, 21, 0.6)]
    assert decide(candidates, 0.5) == candidates[0]
    assert decide(candidates, 2.0) == candidates[0]


def test_a_probe_with_nobody_within_the_threshold_is_unknown() -> None:
    assert decide([Candidate(1, 11, 0.5)], 0.4999) is None
    assert decide([], 2.0) is None


def test_distances_of_known_angles() -> None:
    east, north = np.eye(2, dtype=np.float32)
    assert distance_between(east, east) == 0
    assert distance_between(east, north) == pytest.approx(2**0.5)
    assert distance_between(east, -east) == 2


@given(st.integers(0, 2**32 - 1))
def test_distance_follows_the_cosine(seed: int) -> None:
    first, second = unit_vectors(2, seed=seed)
    cosine = float(first.astype(np.float64) @ second)
    assert distance_between(first, second) == pytest.approx((2 - 2 * cosine) ** 0.5, abs=1e-6)
