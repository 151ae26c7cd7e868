"""What stays of a removed embedding where its removal and a snapshot meet."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.index import SegmentedIndex
from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.parts import Segment
from app.gallery.index.rows import ERASED, Rows
from tests.app.gallery.index.test_snapshot import DIMENSION, LIMITS, VECTORS, holding, saved, saved_bytes, settle


class SeenLock:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.waited_for = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waited_for.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_row_that_is_marked_and_not_yet_written_over_is_known_to_be_left_in_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SegmentedIndex(DIMENSION, compress_from=None, limits=LIMITS)
    index.add(np.arange(3000), VECTORS[:3000])
    settle(index)
    lock, marked, erase = SeenLock(), threading.Event(), Rows.erase
    index._contents.writing = lock  # type: ignore[assignment]

    def erase_late(rows: Rows, own: NDArray[np.intp]) -> None:
        marked.set()
        assert lock.waited_for.wait(60)
        erase(rows, own)

    monkeypatch.setattr(Rows, "erase", erase_late)
    with ThreadPoolExecutor(1) as pool:
        removal = pool.submit(index.remove, np.array([5]))
        assert marked.wait(60)
        folder = saved(index, tmp_path / "first")
        assert removal.result() == 1
    assert holding(index) == saved_bytes(folder, VECTORS[5])


@pytest.mark.parametrize("written_over", [slice(0, -1), slice(1, None)])
def test_a_row_that_a_file_holds_a_part_of_is_written_over(written_over: slice) -> None:
    # The copying into the file overtakes the writing over, or is overtaken by it, within the row.
    rows = Rows(VECTORS[:10].copy(), np.arange(10), np.ones(10, np.bool_), None, size=10)
    file = VECTORS[:10].copy()
    file[4, written_over] = ERASED
    rows.kill(np.array([4]))
    rows.erase(np.array([4]))
    Segment(rows).move_to(file, np.arange(10))
    assert np.all(file[4] == ERASED)
    np.testing.assert_array_equal(file[5], VECTORS[5])


def test_a_segment_that_holds_nothing_of_what_was_removed_is_not_written_anew(tmp_path: Path) -> None:
    index = SegmentedIndex(DIMENSION, compress_from=None, limits=LIMITS)
    index.add(np.arange(3000), VECTORS[:3000])
    settle(index)
    before = index._contents.parts.segments
    index.remove(np.array([5]))
    assert not holding(index)  # no codes, no files
    folder = saved(index, tmp_path / "first")
    assert not holding(index)
    assert not saved_bytes(folder, VECTORS[5])
    index.rewrite_erased()
    assert index._contents.parts.segments == before
    index.remove(np.array([6]))
    index.rewrite_erased()
    assert index._contents.parts.segments != before


def test_codes_in_memory_hold_something_from_the_first_removed_row_on() -> None:
    index = SegmentedIndex(DIMENSION, compress_from=LEAST_TRAINING, limits=LIMITS)
    index.add(np.arange(3000), VECTORS[:3000])
    settle(index)
    assert not holding(index)
    index.remove(np.array([5]))
    assert holding(index) == 1
