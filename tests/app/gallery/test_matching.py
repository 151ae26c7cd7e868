import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.gallery.index import INDEX_KINDS, ExactIndex, IndexKind, RankedTemplates
from app.gallery.matching import (
    DEFAULT_RULE,
    Candidate,
    MatchingRule,
    decide,
    distance_between,
    find_candidates,
    rank_candidates,
    subject_distances,
)
from app.gallery.views.owners import TemplateOwners
from model.training import template_rules

DIMENSION = 8
RULES: tuple[MatchingRule, ...] = get_args(MatchingRule)


def unit_vectors(count: int, *, seed: int, dimension: int = DIMENSION) -> NDArray[np.float32]:
    return normalised(np.random.default_rng(seed).normal(size=(count, dimension)))


def normalised(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def at_cosine(*cosines: float) -> NDArray[np.float32]:
    """Embeddings at these cosines from the first axis, each turned aside to an axis of its own."""
    vectors = np.zeros((len(cosines), 1 + len(cosines)))
    vectors[:, 0] = cosines
    vectors[np.arange(len(cosines)), 1 + np.arange(len(cosines))] = np.sqrt(1 - np.square(cosines))
    return vectors.astype(np.float32)


def owners_of(subject_of: Mapping[int, int]) -> TemplateOwners:
    owners = TemplateOwners()
    owners.add(subject_of.items())
    return owners


def ranked(*pairs: tuple[int, float]) -> RankedTemplates:
    return RankedTemplates(np.array([i for i, _ in pairs], np.int64), np.array([d for _, d in pairs], np.float32))


def test_a_subject_comes_once_with_its_best_template() -> None:
    owners = owners_of({11: 1, 12: 1, 21: 2, 22: 2})
    found = rank_candidates(ranked((11, 0.25), (21, 0.5), (12, 0.75), (22, 1.0)), owners)
    assert found == [Candidate(1, 11, 0.25), Candidate(2, 21, 0.5)]


def test_a_template_that_was_removed_a_moment_ago_is_passed_over() -> None:
    assert rank_candidates(ranked((11, 0.25), (21, 0.5)), owners_of({21: 2})) == [Candidate(2, 21, 0.5)]


def test_an_empty_ranking_has_no_candidates() -> None:
    assert rank_candidates(ranked(), TemplateOwners()) == []


# -- several templates, one distance


def distance_slowly(probe: NDArray[np.float32], templates: NDArray[np.float32], rule: MatchingRule) -> float:
    """By the cosines, in double precision."""
    cosines = [float(template.astype(np.float64) @ probe) for template in templates]
    sum_of_all = templates.astype(np.float64).sum(axis=0)
    mean = float(sum_of_all @ probe) / math.sqrt(float(sum_of_all @ sum_of_all))
    cosine = {"best": max(cosines), "mean": mean, "both": (max(cosines) + mean) / 2}[rule]
    return math.sqrt(max(0.0, 2 - 2 * cosine))


@pytest.mark.parametrize("rule", RULES)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_distances_of_subjects_are_those_of_a_slow_loop(rule: MatchingRule, sizes: list[int], seed: int) -> None:
    (probe, *_), starts = unit_vectors(1, seed=seed), np.cumsum([0, *sizes[:-1]])
    templates = normalised(unit_vectors(sum(sizes), seed=seed + 1) + 0.5 * probe.astype(np.float64))
    found = subject_distances(probe, templates, starts, rule)
    wanted = [distance_slowly(probe, own, rule) for own in np.split(templates, starts[1:])]
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(wanted, abs=2e-6)


def test_distances_of_a_right_angle_and_its_middle() -> None:
    templates = np.eye(2, dtype=np.float32)
    probe = normalised(np.ones(2))  # at 45 degrees to both templates, and their mean itself
    near = math.sqrt(2 - math.sqrt(2))
    for rule, wanted in {"best": near, "mean": 0.0, "both": near / math.sqrt(2)}.items():
        (found,) = subject_distances(probe, templates, np.zeros(1, np.intp), rule)  # type: ignore[arg-type]
        assert found == pytest.approx(wanted, abs=1e-6)


def test_a_photo_that_is_enrolled_many_times_is_at_no_distance() -> None:
    templates = np.repeat(unit_vectors(1, seed=0), 5, axis=0)
    for rule in RULES:
        assert subject_distances(templates[0], templates, np.zeros(1, np.intp), rule) == pytest.approx([0], abs=1e-6)


def test_templates_that_cancel_each_other_leave_the_nearest() -> None:
    probe, other = unit_vectors(2, seed=0)
    templates = np.stack([other, -other])
    best = min(distance_between(probe, template) for template in templates)
    for rule in RULES:
        assert subject_distances(probe, templates, np.zeros(1, np.intp), rule) == pytest.approx([best])


@given(count=st.integers(1, 6), spread=st.floats(0, 3), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_rule_gains_no_more_than_the_templates_disagree(count: int, spread: float, seed: int) -> None:
    # The bound in the documentation of find_candidates.
    (probe, centre), noise = unit_vectors(2, seed=seed), unit_vectors(count, seed=seed + 1)
    templates = normalised(centre.astype(np.float64) + spread * noise)
    best = float((templates @ probe).max())
    agreement = float(np.linalg.norm(templates.mean(axis=0)))
    if agreement < 1e-3:
        return
    bounds = {"mean": max(best, best / agreement), "both": max(best, best * (1 + 1 / agreement) / 2)}
    for rule, bound in bounds.items():
        distance = distance_slowly(probe, templates, rule)  # type: ignore[arg-type]
        assert 1 - distance**2 / 2 <= bound + 1e-5 / agreement


# -- search


def nearest_subjects_slowly(
    vectors: NDArray[np.float32],
    subjects: Sequence[int],
    probe: NDArray[np.float32],
    top_k: int,
    rule: MatchingRule = "best",
) -> list[tuple[float, int]]:
    owned: dict[int, list[NDArray[np.float32]]] = {}
    for vector, subject in zip(vectors, subjects, strict=True):
        owned.setdefault(subject, []).append(vector)
    return sorted((distance_slowly(probe, np.stack(own), rule), subject) for subject, own in owned.items())[:top_k]


@pytest.mark.parametrize("kind", list(INDEX_KINDS))
@given(
    subjects=st.lists(st.integers(0, 30) | st.just(0), max_size=150),
    probes=st.integers(0, 4),
    top_k=st.integers(1, 12) | st.just(10**9),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_candidates_are_the_nearest_subjects(
    kind: IndexKind, subjects: list[int], probes: int, top_k: int, rule: MatchingRule, seed: int
) -> None:
    vectors, searched = unit_vectors(len(subjects), seed=seed), unit_vectors(probes, seed=seed + 1)
    index = INDEX_KINDS[kind](DIMENSION)
    index.add(np.arange(len(subjects)), vectors)
    found = find_candidates(index, owners_of(dict(enumerate(subjects))), searched, top_k=top_k, rule=rule)
    assert len(found) == probes
    for candidates, probe in zip(found, searched, strict=True):
        wanted = nearest_subjects_slowly(vectors, subjects, probe, top_k, rule)
        assert [candidate.subject_id for candidate in candidates] == [subject for _, subject in wanted]
        assert [one.distance for one in candidates] == pytest.approx([distance for distance, _ in wanted], abs=1e-5)
        for candidate in candidates:
            own = [row for row, subject in enumerate(subjects) if subject == candidate.subject_id]
            nearest = min(distance_between(probe, vectors[row]) for row in own)
            assert candidate.template_id in own
            assert distance_between(probe, vectors[candidate.template_id]) == pytest.approx(nearest, abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(2))
def test_decisions_in_a_crowd_are_those_of_a_slow_loop(rule: MatchingRule, seed: int) -> None:
    # Subjects with one to five photos, of agreement as in Labeled Faces in the Wild, in clusters of look-alikes.
    random = np.random.default_rng(seed)
    dimension, people, probes = 24, 300, 60
    families = random.normal(size=(40, dimension))
    centres = normalised(families[random.integers(40, size=people)] + random.normal(size=(people, dimension)))
    subjects = np.repeat(np.arange(people), random.integers(1, 6, size=people))
    vectors = normalised(centres[subjects] + random.normal(size=(len(subjects), dimension)) * 0.7 / dimension**0.5)
    chosen = random.integers(people, size=probes)
    mated = normalised(centres[chosen] + random.normal(size=(probes, dimension)) * 0.8 / dimension**0.5)
    strangers = normalised(families[random.integers(40, size=probes)] + random.normal(size=(probes, dimension)))

    index, owners = INDEX_KINDS["flat"](dimension), owners_of(dict(enumerate(subjects.tolist())))
    index.add(np.arange(len(subjects)), vectors)
    searched = np.concatenate([mated, strangers])
    named = 0
    for candidates, probe in zip(find_candidates(index, owners, searched, top_k=5, rule=rule), searched, strict=True):
        wanted = [Candidate(*pair) for pair in slow_candidates(vectors, subjects.tolist(), probe, rule)]
        for threshold in (0.6, 0.8, 1.0, 1.2):
            decision, wanted_decision = decide(candidates, threshold), decide(wanted, threshold)
            assert (decision and decision.subject_id) == (wanted_decision and wanted_decision.subject_id)
            named += decision is not None
    assert named > 3 * probes


def slow_candidates(
    vectors: NDArray[np.float32], subjects: list[int], probe: NDArray[np.float32], rule: MatchingRule
) -> list[tuple[int, int, float]]:
    return [(subject, -1, distance) for distance, subject in nearest_subjects_slowly(vectors, subjects, probe, 5, rule)]


@pytest.mark.parametrize(("others", "first"), [(31, "unlike photos"), (32, "others")])
def test_a_subject_of_unlike_photos_is_ranked_by_the_rule_if_no_32_others_are_nearer(others: int, first: str) -> None:
    # Two templates on both sides of the probe: their mean is the probe itself, and each is at cosine 0.3.
    vectors = at_cosine(1.0, 0.3, *[0.5] * others)
    left, right = vectors[1], 2 * 0.3 * vectors[0] - vectors[1]
    index = ExactIndex(vectors.shape[1])
    index.add(np.arange(others + 2), np.stack([left, right, *vectors[2:]]))
    owners = owners_of({0: 0, 1: 0} | {row: row for row in range(2, others + 2)})
    (found,) = find_candidates(index, owners, vectors[:1], top_k=1, rule="both")
    cosine = {"unlike photos": 0.65, "others": 0.5}[first]
    assert found[0].distance == pytest.approx(math.sqrt(2 - 2 * cosine), abs=1e-6)
    assert (found[0].subject_id == 0) == (first == "unlike photos")


@pytest.mark.parametrize("kind", list(INDEX_KINDS))
def test_who_has_one_template_is_at_the_same_distance_by_any_rule(kind: IndexKind) -> None:
    vectors, probes = unit_vectors(60, seed=0), unit_vectors(5, seed=1)
    index, owners = INDEX_KINDS[kind](DIMENSION), owners_of({row: row // 2 if row < 20 else row for row in range(60)})
    index.add(np.arange(60), vectors)
    alone = set(range(20, 60))
    by_rule = [find_candidates(index, owners, probes, top_k=60, rule=rule) for rule in RULES]
    for candidates in zip(*by_rule, strict=True):
        best, *others = ([one for one in found if one.subject_id in alone] for found in candidates)
        assert len(best) == 40
        assert others == [best, best]


@pytest.mark.parametrize("kind", list(INDEX_KINDS))
@pytest.mark.parametrize("rule", RULES)
def test_a_search_and_a_comparison_give_one_number(kind: IndexKind, rule: MatchingRule) -> None:
    vectors, (probe,) = unit_vectors(60, seed=0), unit_vectors(1, seed=1)
    index, owners = INDEX_KINDS[kind](DIMENSION), owners_of({row: row % 25 for row in range(60)})
    index.add(np.arange(60), vectors)
    (found,) = find_candidates(index, owners, probe[None], top_k=25, rule=rule)
    compared = {
        subject: subject_distances(probe, vectors[subject::25], np.zeros(1, np.intp), rule).item()
        for subject in range(25)
    }
    assert {one.subject_id: one.distance for one in found} == compared  # to the last bit: a threshold may lie there


@pytest.mark.parametrize("rule", ["mean", "both"])
def test_the_mean_is_that_of_the_templates_that_are_there(rule: MatchingRule) -> None:
    vectors, (probe,) = unit_vectors(3, seed=0), unit_vectors(1, seed=1)
    index, owners = ExactIndex(DIMENSION), owners_of({0: 7, 1: 7, 2: 7})
    index.add(np.arange(3), vectors)
    index.remove(np.array([1]))  # the owners hear of it a moment later
    (found,) = find_candidates(index, owners, probe[None], top_k=1, rule=rule)
    assert found[0].distance == pytest.approx(distance_slowly(probe, vectors[[0, 2]], rule), abs=1e-6)
    owners.remove([1])
    assert find_candidates(index, owners, probe[None], top_k=1, rule=rule) == [found]


@pytest.mark.parametrize("half", [False, True])
def test_a_subject_whose_templates_went_during_the_search_keeps_its_place(half: bool) -> None:
    class Emptied(ExactIndex):
        def search(self, *asked: Any, **how: Any) -> list[RankedTemplates]:
            found = super().search(*asked, **how)
            self.remove(np.arange(3))
            return found

    vectors = np.eye(1, DIMENSION, dtype=np.float32).repeat(3, axis=0)
    index, owners = Emptied(DIMENSION), owners_of({0: 7, 1: 7, 2: 7})
    index.add(np.arange(3), vectors)
    (found,) = find_candidates(index, owners, vectors[:1], top_k=1, exact_vectors=kept_if(half, vectors))
    assert found == [Candidate(7, 0, 0.0)]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("templates", [1, 2])
def test_a_subject_who_is_merged_during_the_search_keeps_its_place(templates: int, half: bool) -> None:
    """So that who names it finds it gone, and looks again: the other one is not among those that were found."""

    class Merging(TemplateOwners):
        def subjects_of(self, template_ids: NDArray[np.int64]) -> NDArray[np.int64]:
            found = super().subjects_of(template_ids)
            self.move([(template_id, 1) for template_id in range(templates)])
            return found

    vectors = at_cosine(*[0.6] * templates, *[0.4] * 40, 0.1)
    owners = Merging(np.arange(templates + 41), np.array([0] * templates + list(range(2, 42)) + [1]))
    probe = np.eye(1, vectors.shape[1], dtype=np.float32)
    near = distance_between(probe[0], vectors[0])
    for limit in (None, near - 0.1):  # by the mean two templates may be nearer than either
        (found,) = find_candidates(
            index_of(vectors), owners, probe, top_k=1, limit=limit, exact_vectors=kept_if(half, vectors)
        )
        assert found == [Candidate(0, 0, near)]
        owners.move([(template_id, 0) for template_id in range(templates)])


def test_both_is_the_default() -> None:
    assert DEFAULT_RULE == "both"


def test_a_subject_with_many_near_templates_does_not_hide_the_others() -> None:
    probe, other = unit_vectors(2, seed=0)
    index = ExactIndex(DIMENSION)
    index.add(np.arange(500), np.repeat(probe[None], 500, axis=0))
    index.add(np.array([500, 501]), np.stack([other, -probe]))
    owners = owners_of({**dict.fromkeys(range(500), 1), 500: 2, 501: 3})
    for rule in RULES:
        (found,) = find_candidates(index, owners, probe[None], top_k=3, rule=rule)
        assert [candidate.subject_id for candidate in found] == [1, 2, 3]


def test_a_search_that_has_found_everybody_goes_no_deeper() -> None:
    depths = list[int]()

    class Watched(ExactIndex):
        def search(self, probes: NDArray[np.float32], count: int, **how: Any) -> list[RankedTemplates]:
            depths.append(count)
            return super().search(probes, count, **how)

    vectors = unit_vectors(2000, seed=0)
    vectors[:100] = vectors[0]
    index = Watched(DIMENSION)
    index.add(np.arange(2000), vectors)
    owners = owners_of({one: 1 if one < 100 else 2 + one % 2 for one in range(2000)})
    (found,) = find_candidates(index, owners, vectors[:1], top_k=5)
    assert sorted(candidate.subject_id for candidate in found) == [1, 2, 3]
    assert depths == [72, 288]


def test_removed_templates_do_not_hide_the_others() -> None:
    probe, other = unit_vectors(2, seed=0)
    index = ExactIndex(DIMENSION)
    index.add(np.arange(100), np.repeat(probe[None], 100, axis=0))
    index.add(np.array([100]), other[None])
    (found,) = find_candidates(index, owners_of({100: 2}), probe[None], top_k=1)
    assert [candidate.template_id for candidate in found] == [100]


def test_an_empty_gallery_has_no_candidates() -> None:
    assert find_candidates(ExactIndex(DIMENSION), TemplateOwners(), unit_vectors(2, seed=0), top_k=5) == [[], []]


# -- an index of half precision, and exact embeddings beside it


class Kept:
    """Exact embeddings of templates, of which it notes whose were asked for."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors.copy()
        self.asked: list[int] = []

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        self.asked += ids.tolist()
        return self.vectors[ids]


def kept_if(half: bool, vectors: NDArray[np.float32]) -> Kept | None:
    return Kept(vectors) if half else None


def index_of(vectors: NDArray[np.float32]) -> ExactIndex:
    index = ExactIndex(vectors.shape[1])
    index.add(np.arange(len(vectors)), vectors)
    return index


def in_half_precision(vectors: NDArray[np.float32]) -> ExactIndex:
    return index_of(vectors.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("rule", RULES)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    spread=st.floats(0, 5),
    top_k=st.integers(1, 6),
    limit=st.none() | st.floats(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_half_precision_ranks_as_float32(
    rule: MatchingRule, sizes: list[int], spread: float, top_k: int, limit: float | None, seed: int
) -> None:
    subjects = np.repeat(np.arange(len(sizes)), sizes)
    centres, noise = unit_vectors(len(sizes), seed=seed), unit_vectors(len(subjects), seed=seed + 1)
    vectors = normalised(centres[subjects] + spread * noise.astype(np.float64))
    probe, owners = (
        normalised(centres[:1] + 0.5 * unit_vectors(1, seed=seed + 2)),
        owners_of(dict(enumerate(subjects.tolist()))),
    )
    (wanted,) = find_candidates(index_of(vectors), owners, probe, top_k=top_k, rule=rule)
    (found,) = find_candidates(
        in_half_precision(vectors), owners, probe, top_k=top_k, rule=rule, limit=limit, exact_vectors=Kept(vectors)
    )
    if limit is not None:
        wanted, found = ([one for one in ranking if one.distance <= limit] for ranking in (wanted, found))
    assert [one.subject_id for one in found] == [one.subject_id for one in wanted]
    assert [one.distance for one in found] == pytest.approx([one.distance for one in wanted], abs=1e-6)


def test_of_half_precision_only_those_are_compared_anew_who_are_in_doubt() -> None:
    vectors = np.repeat(at_cosine(*np.linspace(0.9, 0.1, 20)), 2, axis=0)
    index, owners = in_half_precision(vectors), owners_of({row: row // 2 for row in range(40)})
    probe = np.eye(1, vectors.shape[1], dtype=np.float32)
    for limit, asked in ((None, range(10)), (1.0, range(10)), (0.6, range(4)), (0.3, ())):
        kept = Kept(vectors)
        find_candidates(index, owners, probe, top_k=5, limit=limit, exact_vectors=kept)
        assert kept.asked == list(asked)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("templates", [1, 2, 3])
def test_whom_half_precision_cannot_tell_apart_are_told_apart_by_float32(rule: MatchingRule, templates: int) -> None:
    owners = owners_of({row: row // templates for row in range(20 * templates)})
    swapped = 0
    for seed in range(40):
        (probe, *aside), near = unit_vectors(1 + 20 * templates, seed=seed), np.random.default_rng(seed)
        across = normalised(np.array(aside) - np.outer(np.array(aside) @ probe, probe))
        cosines = 0.8 + near.uniform(0, 1e-4, (len(aside), 1))
        vectors = normalised(cosines * probe + np.sqrt(1 - cosines * cosines) * across)
        if rule != "best":  # templates of one subject that are much unlike each other, as alike for each subject
            vectors[:] = np.concatenate([np.tile(vectors[:templates], (19, 1)), vectors[-templates:]])
            vectors += near.uniform(0, 1e-4, vectors.shape).astype(np.float32)
            vectors = normalised(vectors.astype(np.float64))
        index, kept = in_half_precision(vectors), Kept(vectors)
        ((wanted,),) = find_candidates(index_of(vectors), owners, probe[None], top_k=1, rule=rule)
        ((found,),) = find_candidates(index, owners, probe[None], top_k=1, rule=rule, exact_vectors=kept)
        ((rough,),) = find_candidates(index, owners, probe[None], top_k=1, rule=rule)
        assert found.subject_id == wanted.subject_id
        swapped += rough.subject_id != wanted.subject_id
    assert swapped  # else the rounded embeddings would do


def test_who_is_gone_from_the_exact_embeddings_leaves_the_place_to_the_next() -> None:
    vectors = at_cosine(0.9, 0.8, 0.7, 0.6)
    index, kept = in_half_precision(vectors), Kept(vectors)
    kept.vectors[:2] = np.nan
    probe = np.eye(1, vectors.shape[1], dtype=np.float32)
    owners = owners_of({row: 10 + row for row in range(4)})
    (found,) = find_candidates(index, owners, probe, top_k=1, exact_vectors=kept)
    assert [one.subject_id for one in found] == [12]
    kept.vectors[:] = np.nan
    assert find_candidates(index, owners, probe, top_k=1, exact_vectors=kept) == [[]]


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


@pytest.mark.parametrize("rule", RULES)
def test_the_service_decides_by_the_rules_that_are_evaluated(rule: MatchingRule) -> None:
    probe, templates, starts = unit_vectors(1, seed=1), unit_vectors(12, seed=2), np.array([0, 1, 4, 9])

    served = subject_distances(probe[0], templates, starts, rule)

    np.testing.assert_allclose(served, template_rules.RULES[rule](probe, templates, starts)[0], atol=1e-5)


def test_the_rule_that_is_reported_first_is_the_default_one() -> None:
    assert template_rules.DEFAULT_RULE == DEFAULT_RULE
