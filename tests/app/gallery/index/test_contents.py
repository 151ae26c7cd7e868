"""What readers see without a lock beside writers and upkeep; each interleaving is forced at its point."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from app.gallery.index import SegmentedIndex, segmented
from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.parts import Block
from app.gallery.index.rows import Rows
from app.gallery.index.search import rank as ranked_as_ever
from app.gallery.index.upkeep import training_sample
from tests.app.gallery.index.test_segmented import DIMENSION, LIMITS, parts, settle, strangers

VECTORS = strangers(4000, seed=0)
Change = Callable[[], Any]


@pytest.fixture(params=[None, LEAST_TRAINING], ids=["flat", "compressed"])
def index(request: pytest.FixtureRequest) -> SegmentedIndex:
    """A segment of 3000 templates, and 100 after it."""
    index = SegmentedIndex(DIMENSION, compress_from=request.param, limits=LIMITS)
    index.add(np.arange(3000), VECTORS[:3000])
    settle(index)
    index.add(np.arange(3000, 3100), VECTORS[3000:3100])
    return index


def meanwhile(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, change: Change, *, first: bool = False) -> None:
    """Have something happen once, after (or before) a function is called the first time."""
    real, left = getattr(owner, name), [change]

    def call(*arguments: Any, **named: Any) -> Any:
        now = left.pop() if left else lambda: None
        if first:
            now()
        result = real(*arguments, **named)
        if not first:
            now()
        return result

    monkeypatch.setattr(owner, name, call)


def fail(*_: Any, **__: Any) -> None:
    raise MemoryError


def put(index: SegmentedIndex, template_id: int, vector: int) -> None:
    index.add(np.array([template_id]), VECTORS[vector : vector + 1])


def test_an_id_that_is_removed_and_comes_again_while_ids_are_listed_is_listed_once(
    index: SegmentedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def come_again() -> None:
        assert index.remove(np.array([5])) == 1
        put(index, 5, 3500)

    meanwhile(monkeypatch, Rows, "living_rows", come_again)
    np.testing.assert_array_equal(index.ids(), np.arange(3100))


def test_an_id_that_comes_again_after_its_segment_was_switched_is_found_once(
    index: SegmentedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, changed = threading.Event(), threading.Event()

    def rank(*arguments: Any, **how: Any) -> Any:
        taken.set()
        assert changed.wait(60)
        return ranked_as_ever(*arguments, **how)

    def search() -> list[int]:
        (found,) = index.search(VECTORS[5:6], 4000)
        ids: list[int] = found.ids.tolist()
        return ids

    index.add(np.arange(3100, 3500), VECTORS[3100:3500])  # the tail is long enough to be sealed
    monkeypatch.setattr(segmented, "rank", rank)
    with ThreadPoolExecutor(1) as pool:
        searches = list[Any]()

        def begin() -> None:
            searches.append(pool.submit(search))
            assert taken.wait(60)

        meanwhile(monkeypatch, segmented, "build", begin, first=True)
        index.maintain()
        assert index.remove(np.array([3001])) == 1
        put(index, 3001, 3600)
        changed.set()
        found = searches[0].result()
    assert sorted(found) == list(range(3500))


def replaced_while_looked_at(index: SegmentedIndex, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    meanwhile(monkeypatch, Rows, point, lambda: put(index, 7, 3500), first=True)


def test_a_template_whose_embedding_is_replaced_meanwhile_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    index = SegmentedIndex(DIMENSION, compress_from=None, limits=LIMITS)
    index.add(np.arange(100), VECTORS[:100])
    with monkeypatch.context() as patched:
        replaced_while_looked_at(index, patched, "_ranked")
        (found,) = index.search(VECTORS[3500:3501], 1)
    assert (found.ids.tolist(), found.distances.tolist()) == ([7], [0])
    put(index, 7, 3501)
    with monkeypatch.context() as patched:
        replaced_while_looked_at(index, patched, "gather")
        np.testing.assert_array_equal(index.vectors(np.array([7])), VECTORS[3500:3501])


def test_a_search_whose_finds_are_removed_meanwhile_looks_again(
    index: SegmentedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = index.search(VECTORS[:1], 10)[0].ids
    meanwhile(monkeypatch, Rows, "nearest", lambda: index.remove(gone))
    found = index.search(VECTORS[:1], 10)[0]
    assert len(found.ids) == 10
    assert not np.isin(found.ids, gone).any()
    assert found.distances[-1] < 2


def test_an_embedding_that_is_removed_while_it_is_looked_up_is_unknown(
    index: SegmentedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, Rows, "gather", lambda: index.remove(np.array([6])), first=True)
    found = index.vectors(np.array([5, 6]))
    np.testing.assert_array_equal(found[0], VECTORS[5])
    assert np.isnan(found[1]).all()


def test_readers_do_not_wait_for_a_writer(index: SegmentedIndex) -> None:
    put(index, 5, 3500)
    with ThreadPoolExecutor(1) as pool, index._contents.writing:
        reads = pool.submit(lambda: (index.search(VECTORS[:1], 5), index.vectors(np.arange(3)), index.ids()))
        found, vectors, ids = reads.result(timeout=60)
    assert (len(found[0].ids), len(vectors), len(ids)) == (5, 3, 3100)


def test_who_is_disturbed_again_and_again_reads_while_no_writer_is_at_work(index: SegmentedIndex) -> None:
    contents, alone = index._contents, list[bool]()

    def read(present: Any) -> Any:
        alone.append(contents.writing.locked())
        if not alone[-1]:
            put(index, 5, 3500)
        return present

    assert contents.consistently(read) is contents.parts
    assert alone == [False, False, False, True]


def test_who_reads_is_not_disturbed_by_what_is_new_whatever_its_id(index: SegmentedIndex) -> None:
    contents, alone = index._contents, list[bool]()
    index.remove(np.array([5]))
    put(index, 9000, 3500)

    def read(present: Any) -> Any:
        alone.append(contents.writing.locked())
        if not alone[-1]:
            put(index, 5, 3501)
            put(index, 8000, 3502)
            index.remove(np.array([5, 8000]))
        return present

    assert contents.consistently(read) is contents.parts
    assert alone == [False]


def test_what_is_removed_while_a_segment_is_built_does_not_stay_in_its_memory(
    index: SegmentedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.remove(np.arange(1000, 2000))
    meanwhile(monkeypatch, segmented, "build", lambda: index.remove(np.array([5, 6])))
    assert index.maintain()
    (segment,) = parts(index).segments
    assert (segment.rows.size, segment.rows.dead) == (2000, 2)
    assert np.all(segment.rows.vectors[5:7] == 4)
    np.testing.assert_array_equal(segment.rows.vectors[7], VECTORS[7])
    assert index._contents._removed is None  # nobody collects ids for ever


def test_segments_lie_largest_first(index: SegmentedIndex) -> None:
    index.add(np.arange(3100, 3700), VECTORS[3100:3700])
    settle(index)
    index.remove(np.arange(700))
    settle(index)
    assert [segment.rows.size for segment in parts(index).segments] == [2300, 700]


def test_building_that_fails_again_and_again_leaves_no_empty_blocks(
    index: SegmentedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(np.arange(3100, 3500), VECTORS[3100:3500])
    with monkeypatch.context() as patched:
        patched.setattr(segmented, "build", fail)
        for _ in range(3):
            with pytest.raises(MemoryError):
                index.maintain()
    assert len(parts(index).blocks) <= 3
    settle(index)
    np.testing.assert_array_equal(index.ids(), np.arange(3500))


def test_no_id_has_two_rows_where_there_is_no_room_for_all_that_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    index = SegmentedIndex(DIMENSION, compress_from=None, limits=LIMITS)
    index.add(np.arange(999), VECTORS[:999])
    with monkeypatch.context() as patched:
        patched.setattr(Block, "empty", fail)
        with pytest.raises(MemoryError):
            index.add(np.arange(10), VECTORS[3000:3010])
    np.testing.assert_array_equal(index.ids(), np.arange(999))
    np.testing.assert_array_equal(index.vectors(np.arange(2)), VECTORS[[3000, 1]])
    index.add(np.arange(10), VECTORS[3000:3010])
    np.testing.assert_array_equal(index.ids(), np.arange(999))
    assert index.remove(np.arange(10)) == 10
    np.testing.assert_array_equal(index.ids(), np.arange(10, 999))


def test_codes_are_not_trained_with_what_is_removed_while_they_are(
    index: SegmentedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, Rows, "gather", lambda: index.remove(np.arange(100, 2000)), first=True)
    sample = training_sample(parts(index).rows)
    assert len(sample) == 1200
    np.testing.assert_allclose(np.linalg.norm(sample, axis=1), 1, atol=1e-6)
