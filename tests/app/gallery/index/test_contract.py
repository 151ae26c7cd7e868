"""What every kind of index does, by comparison with a dictionary."""

import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from app.gallery.index import RankedTemplates, SegmentedIndex, TemplateIndex

MakeIndex = Callable[[int], TemplateIndex]
Reload = Callable[[Path], TemplateIndex]
DIMENSION = 8
# Squared distances of a large batch may come from |x|² + |y|² − 2xy in float32.
SQUARED_ERROR = 4e-6


def unit_vectors(count: int, *, seed: int, dimension: int = DIMENSION) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def true_distances(stored: NDArray[np.float32], probe: NDArray[np.float32]) -> NDArray[np.float64]:
    difference = stored.astype(np.float64) - probe.astype(np.float64)
    return np.asarray(np.sqrt((difference**2).sum(axis=-1)))


def assert_nearest(
    results: list[RankedTemplates], reference: dict[int, NDArray[np.float32]], probes: NDArray[np.float32], count: int
) -> None:
    """The results rank `count` nearest templates; which of several at the same distance are cut off is left open."""
    ids = np.array(list(reference), np.int64)
    stored = np.array(list(reference.values()), np.float32).reshape(-1, DIMENSION)
    wanted = min(count, len(ids))
    assert len(results) == len(probes)
    for found, probe in zip(results, probes, strict=True):
        assert found.ids.dtype == np.int64
        assert found.distances.dtype == np.float32
        assert found.ids.shape == found.distances.shape == (wanted,)
        assert len(set(found.ids.tolist())) == wanted
        pairs = list(zip(found.distances.tolist(), found.ids.tolist(), strict=True))
        assert pairs == sorted(pairs)
        if not wanted:
            continue
        own = true_distances(np.stack([reference[template_id] for template_id in found.ids.tolist()]), probe)
        np.testing.assert_allclose(found.distances, own, rtol=0, atol=1e-6)
        squared = true_distances(stored, probe) ** 2
        nearest = np.sort(squared)[:wanted]
        np.testing.assert_allclose(found.distances.astype(np.float64) ** 2, nearest, rtol=0, atol=SQUARED_ERROR)
        surely_in = ids[squared < nearest[-1] - SQUARED_ERROR]
        assert set(surely_in.tolist()) <= set(found.ids.tolist())


# Few ids and few embeddings, so that both come again; and some of everywhere.
ids = st.one_of(st.integers(0, 12), st.integers(0, 2**63 - 1))
seeds = st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1))
entries = st.lists(st.tuples(ids, seeds), max_size=8)


class IndexMachine(RuleBasedStateMachine):
    """Every step is done to an index and to a dictionary."""

    def __init__(self, make_index: MakeIndex, reload: Reload | None) -> None:
        super().__init__()
        self.make_index, self.reload = make_index, reload
        self.folder = tempfile.TemporaryDirectory()
        self.index: TemplateIndex
        self.reference: dict[int, NDArray[np.float32]]

    @initialize()
    def start_empty(self) -> None:
        self.index = self.make_index(DIMENSION)
        self.reference = {}

    @rule(added=entries)
    def add(self, added: list[tuple[int, int]]) -> None:
        vectors = np.array([unit_vectors(1, seed=seed)[0] for _, seed in added], np.float32).reshape(-1, DIMENSION)
        self.index.add(np.array([template_id for template_id, _ in added], np.int64), vectors)
        self.reference.update(zip([template_id for template_id, _ in added], vectors.copy(), strict=True))
        vectors[:] = np.nan  # the index must have its own copy

    @rule(first=st.sampled_from([100, 2000, 4000]), count=st.integers(500, 1500), seed=seeds)
    def add_many(self, first: int, count: int, seed: int) -> None:
        vectors, added = unit_vectors(count, seed=seed), np.arange(first, first + count)
        self.index.add(added, vectors)
        self.reference.update(zip(added.tolist(), vectors, strict=True))

    @rule(removed=st.lists(ids, max_size=8))
    def remove(self, removed: list[int]) -> None:
        there = sum(self.reference.pop(template_id, None) is not None for template_id in removed)
        assert self.index.remove(np.array(removed, np.int64)) == there

    @precondition(lambda self: self.reference)
    @rule(step=st.integers(1, 5), seed=seeds)
    def remove_many(self, step: int, seed: int) -> None:
        removed = np.random.default_rng(seed).permutation(np.array(list(self.reference), np.int64))[::step]
        assert self.index.remove(removed) == len(removed)
        for template_id in removed.tolist():
            del self.reference[template_id]

    @rule(probe_seeds=st.lists(seeds, max_size=3), count=st.one_of(st.integers(0, 20), st.just(10**9)))
    def search(self, probe_seeds: list[int], count: int) -> None:
        probes = np.array([unit_vectors(1, seed=seed)[0] for seed in probe_seeds], np.float32).reshape(-1, DIMENSION)
        assert_nearest(self.index.search(probes, count), self.reference, probes, count)

    @rule(seed=seeds, batch=st.integers(20, 40), count=st.integers(1, 8))
    def search_large_batch(self, seed: int, batch: int, count: int) -> None:
        probes = unit_vectors(batch, seed=seed)
        assert_nearest(self.index.search(probes, count), self.reference, probes, count)

    @rule(wanted=st.lists(ids, max_size=8), step=st.integers(1, 300))
    def look_up(self, wanted: list[int], step: int) -> None:
        wanted = [*wanted, *list(self.reference)[::step]]
        found = self.index.vectors(np.array(wanted, np.int64))
        assert found.dtype == np.float32
        assert found.shape == (len(wanted), DIMENSION)
        unknown = np.full(DIMENSION, np.nan, np.float32)
        rows = np.array([self.reference.get(template_id, unknown) for template_id in wanted], np.float32)
        np.testing.assert_array_equal(found, rows.reshape(-1, DIMENSION))
        found[:] = np.nan  # the caller has its own copy

    @rule(erase=st.booleans())
    def maintain(self, erase: bool) -> None:
        if isinstance(self.index, SegmentedIndex):
            self.index.rewrite_erased() if erase else self.index.maintain()

    @rule()
    def save_and_load(self) -> None:
        if not isinstance(self.index, SegmentedIndex) or self.reload is None:
            return
        folder = Path(tempfile.mkdtemp(dir=self.folder.name))
        self.index.save(folder)
        self.index = self.reload(folder)
        assert isinstance(self.index, SegmentedIndex)
        np.testing.assert_array_equal(self.index.ids(), sorted(self.reference))

    def teardown(self) -> None:
        self.folder.cleanup()

    @invariant()
    def same_size(self) -> None:
        assert len(self.index) == len(self.reference)
        assert self.index.dimension == DIMENSION


@pytest.fixture
def index(make_index: MakeIndex) -> TemplateIndex:
    return make_index(DIMENSION)


def test_an_index_does_what_a_dictionary_does(make_index: MakeIndex, reload: Reload | None, examples: int) -> None:
    class Machine(IndexMachine):
        def __init__(self) -> None:
            super().__init__(make_index, reload)

    run_state_machine_as_test(Machine, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None))


def test_an_empty_index_finds_nothing(index: TemplateIndex) -> None:
    (found,) = index.search(unit_vectors(1, seed=0), 5)
    assert (found.ids.tolist(), found.distances.tolist()) == ([], [])


def test_no_probes_find_nothing(index: TemplateIndex) -> None:
    index.add(np.array([1]), unit_vectors(1, seed=0))
    assert index.search(np.empty((0, DIMENSION), np.float32), 5) == []


def test_equal_embeddings_are_ranked_by_id(index: TemplateIndex) -> None:
    same = np.repeat(unit_vectors(1, seed=0), 4, axis=0)
    index.add(np.array([30, 10, 2**62, 20]), same)
    (found,) = index.search(same[:1], 4)
    assert found.ids.tolist() == [10, 20, 30, 2**62]
    assert found.distances.tolist() == [0, 0, 0, 0]


def test_an_id_that_comes_again_takes_the_new_embedding(index: TemplateIndex) -> None:
    old, new = unit_vectors(2, seed=0)
    index.add(np.array([1]), old[None])
    index.add(np.array([1]), new[None])
    (found,) = index.search(new[None], 5)
    assert (found.ids.tolist(), found.distances.tolist()) == ([1], [0])


def test_opposite_embeddings_are_two_apart(index: TemplateIndex) -> None:
    vector = unit_vectors(1, seed=0)
    index.add(np.array([1]), -vector)
    (found,) = index.search(vector, 1)
    assert found.distances.tolist() == pytest.approx([2], abs=1e-6)


@pytest.mark.parametrize(
    "refused",
    [
        np.ones((1, DIMENSION), np.float32),
        np.zeros((1, DIMENSION), np.float32),
        np.full((1, DIMENSION), np.nan, np.float32),
        np.full((1, DIMENSION), np.inf, np.float32),
        unit_vectors(1, seed=0, dimension=DIMENSION + 1),
        unit_vectors(1, seed=0)[0],
    ],
    ids=["too long", "zeros", "nan", "infinite", "other dimension", "no rows"],
)
def test_other_vectors_are_refused_and_change_nothing(index: TemplateIndex, refused: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="embeddings"):
        index.add(np.array([1]), refused)
    with pytest.raises(ValueError, match="embeddings"):
        index.search(refused, 1)
    assert len(index) == 0


@pytest.mark.parametrize("ids_given", [1, 3])
def test_ids_and_embeddings_of_different_number_are_refused_and_change_nothing(
    index: TemplateIndex, ids_given: int
) -> None:
    with pytest.raises(ValueError, match=f"^expected {ids_given} embeddings, one for each id, got 2$"):
        index.add(np.arange(ids_given), unit_vectors(2, seed=0))
    assert len(index) == 0


def test_searches_beside_writes_see_whole_templates(make_index: MakeIndex) -> None:
    # An id's embedding is always the same one, so a torn row or a mixed-up id shows in the distance.
    vectors, index = unit_vectors(4000, seed=1), make_index(DIMENSION)
    probes = vectors[:3]
    index.add(np.arange(600), vectors[:600])
    done = threading.Event()

    def write(first: int) -> None:
        random = np.random.default_rng(first)
        for _ in range(60):
            chosen = random.choice(1500, 200, replace=False) + first
            index.add(chosen, vectors[chosen])
            assert index.remove(chosen[::2]) == 100
            assert index.remove(random.permutation(chosen[1::2])) == 100

    def search() -> int:
        searches = 0
        while not done.is_set():
            for probe, found in zip(probes, index.search(probes, 50), strict=True):
                assert len(set(found.ids.tolist())) == len(found.ids) == 50
                assert np.all(np.diff(found.distances) >= 0)
                np.testing.assert_allclose(
                    found.distances, true_distances(vectors[found.ids], probe), rtol=0, atol=1e-6
                )
                assert found.distances[0] == 0
            looked_up = index.vectors(np.arange(4000))
            there = ~np.isnan(looked_up).any(axis=1)
            assert there.sum() >= 600
            np.testing.assert_array_equal(looked_up[there], vectors[there])
            searches += 1
        return searches

    def maintain() -> None:
        while isinstance(index, SegmentedIndex) and not done.is_set():
            index.maintain()

    with ThreadPoolExecutor(5) as pool:
        searchers, maintainer = [pool.submit(search) for _ in range(2)], pool.submit(maintain)
        try:
            for writer in [pool.submit(write, 1000), pool.submit(write, 2500)]:
                writer.result()
        finally:
            done.set()
        assert all(searcher.result() for searcher in searchers)
        maintainer.result()
    assert len(index) == 600
    assert_nearest(index.search(probes, 600), dict(enumerate(vectors[:600])), probes, 600)
