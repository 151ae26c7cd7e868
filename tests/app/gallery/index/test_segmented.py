import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.index import SegmentedIndex, segmented, upkeep
from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.rows import ERASED, Rows
from app.gallery.index.upkeep import Limits

DIMENSION = 32
LIMITS = Limits(block=1000, tail=500, merged=4, largest=20_000, dead_share=0.2, least_dead=50)


def people(count: int, templates: int, *, seed: int, dimension: int = DIMENSION) -> NDArray[np.float32]:
    """Embeddings (count, templates, D) that lie about one length apart, those of two people about √2."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, 1, dimension)) + 0.6 * random.normal(size=(count, templates, dimension))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=2, keepdims=True), np.float32)


def strangers(count: int, *, seed: int, dimension: int = DIMENSION) -> NDArray[np.float32]:
    return people(count, 1, seed=seed, dimension=dimension)[:, 0]


def compressed(vectors: NDArray[np.float32], *, half: bool = False, limits: Limits = LIMITS) -> SegmentedIndex:
    index = SegmentedIndex(vectors.shape[1], compress_from=LEAST_TRAINING, half=half, limits=limits)
    index.add(np.arange(len(vectors)), vectors)
    settle(index)
    assert index.compressed
    return index


def settle(index: SegmentedIndex) -> int:
    done = 0
    while index.maintain():
        done += 1
    return done


def parts(index: SegmentedIndex) -> Any:
    return index._contents.parts


def test_a_search_scans_a_third_of_the_lists_and_all_of_them_where_it_must() -> None:
    faces = strangers(20_000, seed=0)
    index = compressed(faces, limits=replace(LIMITS, listed=4000))
    (segment,) = parts(index).segments
    codes, (probe,) = segment.rows.codes, strangers(1, seed=1)
    nearest = np.linalg.norm(faces - probe, axis=1).argsort()
    _, near = codes.quantizer.search(probe[None], codes.nprobe)
    scanned = sum(codes.invlists.list_size(int(number)) for number in near[0])
    assert 0.2 < scanned / len(faces) < 0.45
    # More than a sixteenth of all rows, and more than the lists that are near have once others are removed.
    found = index.search(probe[None], 4000)[0].ids
    assert len(np.intersect1d(found, nearest[:2000])) > 1990
    assert index.remove(np.setdiff1d(np.arange(20_000), nearest[-300:])) == 19_700
    np.testing.assert_array_equal(np.sort(index.search(probe[None], 300)[0].ids), np.sort(nearest[-300:]))


def test_half_precision_keeps_distances_to_a_thousandth_and_says_that_they_are_not_exact() -> None:
    vectors = strangers(3000, seed=0)
    index = compressed(vectors, half=True)
    assert not index.exact_vectors
    assert compressed(vectors).exact_vectors
    np.testing.assert_allclose(index.vectors(np.arange(3000)), vectors, atol=5e-4)
    for found, probe in zip(index.search(vectors[:3], 3000), vectors[:3], strict=True):
        np.testing.assert_allclose(found.distances, np.linalg.norm(vectors[found.ids] - probe, axis=1), atol=2e-3)


def test_memory_is_little_more_than_that_of_the_embeddings() -> None:
    vectors = strangers(20_000, seed=0, dimension=128)
    assert compressed(vectors, limits=Limits()).memory < 1.1 * vectors.nbytes
    assert compressed(vectors, half=True, limits=Limits()).memory < 0.65 * vectors.nbytes


def test_an_automatic_index_compresses_when_it_has_grown() -> None:
    vectors = strangers(3000, seed=0)
    index = SegmentedIndex(DIMENSION, compress_from=2000, limits=LIMITS)
    index.add(np.arange(1999), vectors[:1999])
    assert settle(index) > 0
    assert all(rows.codes is None for rows in parts(index).rows)
    index.add(np.arange(1999, 3000), vectors[1999:])
    settle(index)
    assert index.compressed
    assert all(segment.rows.codes is not None for segment in parts(index).segments)
    assert [found.ids[0] for found in index.search(vectors[::300], 1)] == list(range(0, 3000, 300))


@pytest.mark.parametrize(
    ("dimension", "codes"),
    [(1, True), (16, True), (17, False), (99, False), (131, False), (262, False), (35, True), (512, True)],
)
def test_embeddings_of_a_length_that_codes_do_not_fit_are_compared_one_by_one(dimension: int, codes: bool) -> None:
    vectors = strangers(4000, seed=0, dimension=dimension)
    index = SegmentedIndex(dimension, compress_from=LEAST_TRAINING, half=True, limits=LIMITS)
    index.add(np.arange(4000), vectors)
    settle(index)
    assert index.compressed == codes
    assert index.exact_vectors != codes
    assert all(ranked.distances[0] < 1e-2 for ranked in index.search(vectors[::100], 1))


def test_a_removed_crowd_around_a_probe_does_not_hide_who_is_behind_it() -> None:
    # A thousand removed templates beside the probe are more than the codes propose at first.
    random = np.random.default_rng(0)
    probe = strangers(1, seed=0)
    crowd = probe + 0.02 * random.normal(size=(1000, DIMENSION))
    crowd = np.asarray(crowd / np.linalg.norm(crowd, axis=1, keepdims=True), np.float32)
    index = compressed(np.concatenate([strangers(9000, seed=1), crowd]), limits=Limits(tail=500, least_dead=5000))
    wanted = index.search(probe, 1200)[0].ids
    wanted = wanted[wanted < 9000][:72]
    assert index.remove(np.arange(9000, 10_000)) == 1000
    assert settle(index) == 0  # the dead rows are still there
    np.testing.assert_array_equal(index.search(probe, 72)[0].ids, wanted)


def test_many_removed_rows_everywhere_do_not_lead_to_a_second_deeper_search() -> None:
    # Half of the rows are dead before the compaction is done; looked at four times as deep, they would be 864.
    index = compressed(strangers(16_000, seed=0), limits=Limits(least_dead=10_000))
    index.remove(np.arange(0, 16_000, 2))
    (segment,) = parts(index).segments
    rows, squared = segment.rows.nearest(strangers(1, seed=1), 72)
    assert 162 <= np.isfinite(squared).sum() <= rows.size == 432


def test_an_erased_embedding_does_not_stay_in_memory() -> None:
    vectors = strangers(2000, seed=0)
    index = compressed(vectors)
    index.add(np.arange(2000, 2010), strangers(10, seed=1))
    index.remove(np.array([3, 2003]))
    (segment,), *_, block = parts(index).segments, parts(index).blocks[-1]
    assert np.all(segment.rows.vectors[3] == ERASED)
    assert np.all(block.rows.vectors[3] == ERASED)
    np.testing.assert_array_equal(segment.rows.vectors[4], vectors[4])


def test_segments_stay_few_and_the_tail_short() -> None:
    vectors = strangers(30_000, seed=0)
    index = SegmentedIndex(DIMENSION, compress_from=LEAST_TRAINING, limits=LIMITS)
    for start in range(0, 30_000, 250):
        index.add(np.arange(start, start + 250), vectors[start : start + 250])
        settle(index)
        sizes = [segment.rows.size for segment in parts(index).segments]
        assert sum(block.rows.size for block in parts(index).blocks) < LEAST_TRAINING
        assert len(sizes) <= 6
        assert max(sizes, default=0) <= LIMITS.largest
    assert len(index) == 30_000


def test_removed_rows_are_compacted() -> None:
    index = compressed(strangers(3000, seed=0))
    index.remove(np.arange(0, 3000, 10))
    assert settle(index) == 0
    index.remove(np.arange(1, 3000, 5))
    assert settle(index) == 1
    (segment,) = parts(index).segments
    assert (segment.rows.size, segment.rows.dead) == (2100, 0)
    index.remove(index.ids())
    assert settle(index) == 1
    assert parts(index).segments == ()


def test_an_index_that_nobody_tends_is_neglected_by_its_tail_or_by_its_dead() -> None:
    index, vectors = SegmentedIndex(DIMENSION, compress_from=None, limits=LIMITS), strangers(8001, seed=0)
    index.add(np.arange(8000), vectors[:8000])
    seen = [index.neglected]
    index.add(np.array([8000]), vectors[8000:])
    seen.append(index.neglected)
    settle(index)
    seen.append(index.neglected)
    for gone in (np.arange(2200), np.arange(2200, 2400)):
        index.remove(gone)
        seen.append(index.neglected)
    assert seen == [False, True, False, False, True]


def test_a_small_gallery_that_comes_and_goes_takes_no_memory_for_the_gone() -> None:
    vectors = strangers(50, seed=0)
    index = SegmentedIndex(DIMENSION, compress_from=None, limits=LIMITS)
    for start in range(0, 20_000, 50):
        index.add(np.arange(start, start + 50), vectors)
        index.remove(np.arange(start - 50, start))
        settle(index)
    assert sum(rows.size for rows in parts(index).rows) < 1000
    np.testing.assert_array_equal(index.ids(), np.arange(19_950, 20_000))


def test_what_changes_while_a_segment_is_built_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, others = strangers(3000, seed=0), strangers(3, seed=1)
    index = SegmentedIndex(DIMENSION, compress_from=LEAST_TRAINING, limits=LIMITS)
    index.add(np.arange(3000), vectors)
    real_build = upkeep.build

    def build(*arguments: Any, **options: Any) -> Any:
        built = real_build(*arguments, **options)
        assert index.remove(np.array([5, 6, 4000])) == 2
        index.add(np.array([7, 3000]), others[:2])  # one takes a new embedding, one is new
        index.add(np.array([6]), others[2:])  # comes again
        found = index.search(vectors[5:8], 1)
        assert [one.ids[0] for one in found if one.distances[0] < 1e-3] == []
        return built

    monkeypatch.setattr(segmented, "build", build)
    index.maintain()  # trains
    index.maintain()
    monkeypatch.undo()
    settle(index)
    expected = vectors.copy()
    expected[[5]], expected[[7]], expected[[6]] = np.nan, others[0], others[2]
    np.testing.assert_array_equal(index.vectors(np.arange(3001)), [*expected, others[1]])
    np.testing.assert_array_equal(index.ids(), np.delete(np.arange(3001), 5))


def test_no_search_returns_what_was_removed_before_it_began() -> None:
    vectors, done = strangers(12_000, seed=0), threading.Event()
    index = SegmentedIndex(DIMENSION, compress_from=LEAST_TRAINING, limits=LIMITS)
    index.add(np.arange(4000), vectors[:4000])
    removed = np.zeros(12_000, np.bool_)  # set after a removal is acknowledged

    def write() -> None:
        random = np.random.default_rng(0)
        for start in range(4000, 12_000, 100):
            index.add(np.arange(start, start + 100), vectors[start : start + 100])
            gone = random.choice(index.ids(), 60, replace=False)
            assert index.remove(gone) == 60
            removed[gone] = True

    def search(seed: int) -> int:
        random, searches = np.random.default_rng(seed), 0
        while not done.is_set() or not searches:
            known = removed.copy()
            probes = vectors[random.integers(12_000, size=4)]
            for probe, found in zip(probes, index.search(probes, 72), strict=True):
                assert not known[found.ids].any()
                assert len(found.ids) == 72
                np.testing.assert_array_equal(found.distances, np.linalg.norm(vectors[found.ids] - probe, axis=1))
            looked_up = index.vectors(np.arange(12_000))
            assert np.isnan(looked_up[known]).all()
            searches += 1
        return searches

    def maintain() -> None:
        while not done.is_set():
            index.maintain()

    with ThreadPoolExecutor(4) as pool:
        searchers, maintainer = [pool.submit(search, seed) for seed in (1, 2)], pool.submit(maintain)
        try:
            pool.submit(write).result()
        finally:
            done.set()
        assert all(searcher.result() for searcher in searchers)
        maintainer.result()
    settle(index)
    np.testing.assert_array_equal(index.ids(), np.flatnonzero(~removed))


def test_rows_that_are_removed_while_the_living_are_listed_are_there_or_not() -> None:
    count = 1_000_000
    order = np.random.default_rng(0).permutation(count)
    for _ in range(10):
        rows = Rows(np.empty((count, 1), np.float32), np.arange(count), np.ones(count, np.bool_), None, size=count)

        def remove(rows: Rows = rows) -> None:
            for start in range(0, count // 2, 10):
                rows.kill(order[start : start + 10])

        remover = threading.Thread(target=remove)
        remover.start()
        try:
            while remover.is_alive():
                living = rows.living_rows()
                assert np.all(np.diff(living) > 0)
                assert 0 <= living[0] <= living[-1] < count
        finally:
            remover.join()
