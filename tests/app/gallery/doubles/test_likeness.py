"""Doubles and outliers are those that comparing everything with everything finds."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.doubles import likeness, neighbours
from app.gallery.doubles.likeness import alike_pairs, find_places, outlying_templates
from app.gallery.doubles.neighbours import neighbours_of
from app.gallery.records import TemplateBlock


class Gallery:
    """Templates around 60 places, in an order that mixes the subjects; every seventh subject has one template."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        places = random.normal(size=(60, 16))
        places[30:36] = places[:6] + 0.2 * random.normal(size=(6, 16))  # doubles
        subjects = np.concatenate([np.full(1 if number % 7 == 0 else 4, number) for number in range(60)])
        random.shuffle(subjects)
        shown = subjects.copy()
        shown[random.choice(len(shown), 10, replace=False)] = random.integers(0, 60, 10)  # wrong names
        vectors = places[subjects] + 0.5 * random.normal(size=(len(subjects), 16))
        self.embeddings = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        self.subject_ids = shown.astype(np.int64) + 1000
        self.ids = np.arange(1, len(shown) + 1, dtype=np.int64)

    def blocks(self) -> Iterator[TemplateBlock]:
        for start in range(0, len(self.ids), 50):
            part = slice(start, start + 50)
            yield TemplateBlock(self.ids[part], self.subject_ids[part], self.embeddings[part])

    def mean(self, subject_id: int, without: int | None = None) -> NDArray[np.float64]:
        own = self.embeddings[(self.subject_ids == subject_id) & (self.ids != without)].astype(np.float64)
        mean: NDArray[np.float64] = own.sum(axis=0) / np.linalg.norm(own.sum(axis=0))
        return mean


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (likeness, neighbours):
        monkeypatch.setattr(module, "_BLOCK", 16)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_of_all_comparisons(seed: int) -> None:
    gallery = Gallery(seed)
    subjects = sorted(set(gallery.subject_ids.tolist()))
    wanted = sorted(
        (float(np.linalg.norm(gallery.mean(one) - gallery.mean(two))), {one, two})
        for one in subjects
        for two in subjects
        if one < two
    )
    places = find_places(gallery.blocks(), 16)
    for threshold, most in ((0.9, 1000), (0.9, 3), (0.0, 10), (2.0, 5000), (2.0, 7)):
        found = alike_pairs(places, neighbours_of(places.means), threshold, most=most)
        expected = [pair for pair in wanted if pair[0] <= threshold][:most]
        np.testing.assert_allclose([pair.distance for pair in found], [one for one, _ in expected], atol=1e-5)
        if most >= len(wanted):  # else two that are equally near may stand for each other
            assert {frozenset((pair.first, pair.second)) for pair in found} == {frozenset(one) for _, one in expected}


@pytest.mark.parametrize("seed", range(4))
def test_outliers_are_those_of_all_comparisons(seed: int) -> None:
    gallery, threshold = Gallery(seed), 0.95
    wanted = []
    for template_id, subject_id, vector in zip(
        gallery.ids.tolist(), gallery.subject_ids.tolist(), gallery.embeddings, strict=True
    ):
        if np.count_nonzero(gallery.subject_ids == subject_id) < 2:
            continue
        own = float(np.linalg.norm(gallery.mean(subject_id, without=template_id) - vector))
        distance, nearest = min(
            (float(np.linalg.norm(gallery.mean(one) - vector)), one)
            for one in set(gallery.subject_ids.tolist()) - {subject_id}
        )
        if own > threshold or distance < own:
            wanted.append((own, template_id, subject_id, nearest, distance))
    wanted.sort(reverse=True)
    places = find_places(gallery.blocks(), 16)
    found = outlying_templates(gallery.blocks(), places, neighbours_of(places.means), threshold, most=1000)
    assert {(one.template_id, one.subject_id, one.nearest_id) for one in found} == {row[1:4] for row in wanted}
    np.testing.assert_allclose([one.own_distance for one in found], [row[0] for row in wanted], atol=1e-5)
    distances = {row[1]: row[4] for row in wanted}
    assert {one.template_id: pytest.approx(one.nearest_distance, abs=1e-5) for one in found} == distances
    assert outlying_templates(gallery.blocks(), places, neighbours_of(places.means), threshold, most=4) == found[:4]


def test_what_is_nearer_to_a_listed_double_is_no_outlier() -> None:
    """Two subjects of one person, and a photo of somebody else under the name of one of them."""
    random = np.random.default_rng(0)
    person = random.normal(size=16)
    vectors = person + 0.3 * random.normal(size=(9, 16))
    vectors[8] = random.normal(size=16)
    embeddings = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    block = TemplateBlock(np.arange(9, dtype=np.int64), np.array([1, 2] * 4 + [1], np.int64), embeddings)
    places = find_places([block], 16)
    near = neighbours_of(places.means)
    pairs = alike_pairs(places, near, 0.9, most=10)
    assert [(pair.first, pair.second) for pair in pairs] == [(1, 2)]
    nearer = outlying_templates([block], places, near, 0.9, most=10)
    assert len(nearer) > 1
    assert [one.template_id for one in outlying_templates([block], places, near, 0.9, most=10, listed=pairs)] == [8]


def test_twins_are_found_at_distance_zero_and_opposites_have_no_place() -> None:
    one = np.eye(4, dtype=np.float32)
    ids, subject_ids = np.arange(4, dtype=np.int64), np.array([1, 2, 3, 3], np.int64)
    block = TemplateBlock(ids, subject_ids, np.stack([one[0], one[0], one[1], -one[1]]))
    places = find_places([block], 4)
    (pair,) = alike_pairs(places, neighbours_of(places.means), 0.5, most=10)
    assert (pair.first, pair.second, pair.distance) == (1, 2, 0.0)
    assert [
        found.own_distance for found in outlying_templates([block], places, neighbours_of(places.means), 1.0, most=10)
    ] == [2.0, 2.0]


def test_nobody_is_like_nobody() -> None:
    places = find_places([], 4)
    assert alike_pairs(places, neighbours_of(places.means), 2.0, most=10) == []
    assert outlying_templates([], places, neighbours_of(places.means), 2.0, most=10) == []


def test_who_came_between_the_two_readings_is_passed_over() -> None:
    gallery = Gallery(0)
    late = TemplateBlock(np.array([999], np.int64), np.array([7], np.int64), gallery.embeddings[:1])
    places = find_places(gallery.blocks(), 16)
    assert outlying_templates([late], places, neighbours_of(places.means), 0.1, most=10) == []


def test_a_photo_that_came_or_was_merged_between_the_two_readings_is_no_outlier() -> None:
    """Its subject's sum is without it: taken out of that, it would seem far from the others."""
    random = np.random.default_rng(0)
    vectors = np.repeat(random.normal(size=(2, 16)), 3, axis=0) + 0.6 * random.normal(size=(6, 16))
    embeddings = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    ids, subjects = np.arange(6, dtype=np.int64), np.repeat(np.array([1, 2], np.int64), 3)

    def outliers(first: TemplateBlock, second: TemplateBlock) -> list[int]:
        places = find_places([first], 16)
        found = outlying_templates([second], places, neighbours_of(places.means), 1.0, most=9)
        return [one.template_id for one in found]

    everybody = TemplateBlock(ids, subjects, embeddings)
    assert outliers(everybody, everybody) == []
    assert outliers(TemplateBlock(ids[1:], subjects[1:], embeddings[1:]), everybody) == []
    assert outliers(TemplateBlock(ids[:0], subjects[:0], embeddings[:0]), everybody) == []
    before = np.array([3, 1, 1, 2, 2, 2], np.int64)
    assert 0 not in outliers(TemplateBlock(ids, before, embeddings), everybody)
