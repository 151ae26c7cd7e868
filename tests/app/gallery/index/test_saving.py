"""How the files of a snapshot are linked, copied and written in pieces."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.gallery import small_pieces
from app.gallery.index import SegmentedIndex, parts, upkeep
from app.gallery.index.parts import Segment
from tests.app.gallery.index.test_snapshot import (
    DIMENSION,
    LIMITS,
    VECTORS,
    assert_same,
    load,
    saved,
    settle,
    some_index,
)


def unchanging(folder: Path) -> list[Path]:
    return [path for path in folder.glob("segment-*") if path.suffix != ".alive"]


def test_files_of_a_folder_that_was_renamed_are_linked(tmp_path: Path) -> None:
    index = some_index()
    draft = saved(index, tmp_path / "draft")
    first = draft.rename(tmp_path / "first")
    index.moved(tmp_path / "other", tmp_path / "elsewhere")
    index.moved(draft, first)
    second = saved(index, tmp_path / "second")
    assert len(unchanging(second)) == 9
    assert all((first / path.name).samefile(path) for path in unchanging(second))


def test_nothing_half_linked_is_left_where_one_of_the_files_is_gone(tmp_path: Path) -> None:
    index = some_index()
    first = saved(index, tmp_path / "first")
    for path in first.glob("*.vectors"):
        path.unlink()
    second = saved(index, tmp_path / "second")
    assert len(unchanging(second)) == 9
    assert_same(load(second), index)


def test_files_are_copied_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    index = some_index()
    first = saved(index, tmp_path / "first")
    monkeypatch.setattr(os, "link", link)
    second = saved(index, tmp_path / "second")
    assert {path.name for path in unchanging(second)} == {path.name for path in unchanging(first)}
    for path in first.iterdir():
        path.unlink()
    assert_same(load(second), index)


def test_files_of_several_pieces_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_pieces, "_PIECE", 1000)
    index = some_index()
    assert_same(load(saved(index, tmp_path / "first")), index)


def test_what_is_due_is_done_before_it_is_written(tmp_path: Path) -> None:
    index = SegmentedIndex(DIMENSION, compress_from=None, limits=LIMITS)
    index.add(np.arange(3000), VECTORS[:3000])
    assert len(unchanging(saved(index, tmp_path / "first"))) == 2


def test_an_id_in_a_loaded_segment_takes_a_new_embedding(tmp_path: Path) -> None:
    index = SegmentedIndex(DIMENSION, compress_from=None, limits=LIMITS)
    index.add(np.arange(3000), VECTORS[:3000])
    loaded = load(saved(index, tmp_path / "first"))
    loaded.add(np.array([700]), VECTORS[5000:5001])
    assert len(loaded) == 3000
    np.testing.assert_array_equal(loaded.vectors(np.array([700])), VECTORS[5000:5001])
    settle(loaded)
    np.testing.assert_array_equal(loaded.ids(), np.arange(3000))


def test_writers_that_are_faster_than_building_hold_no_snapshot_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SegmentedIndex(DIMENSION, compress_from=None, limits=LIMITS)
    index.add(np.arange(500), VECTORS[:500])
    real, builds = upkeep.build, list[Segment | None]()

    def build(*arguments: Any, **options: Any) -> Segment | None:
        builds.append(real(*arguments, **options))
        assert len(builds) < 50
        index.add(500 * len(builds) + np.arange(500), VECTORS[:500])
        return builds[-1]

    monkeypatch.setattr("app.gallery.index.segmented.build", build)
    loaded = load(saved(index, tmp_path / "first"))
    np.testing.assert_array_equal(loaded.ids(), index.ids())


def test_no_search_of_a_loaded_index_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_CHUNK", 10)  # pages
    folder = saved(some_index(), tmp_path / "first")
    loaded = load(folder)
    mappings = re.findall(
        rf"{re.escape(str(folder))}/\S+\.vectors\nSize: +(\d+) kB\n(?:.*\n)*?Rss: +(\d+) kB",
        Path("/proc/self/smaps").read_text(),
    )
    assert len(mappings) >= len(loaded._contents.parts.segments) == 3
    assert all(size == in_memory for size, in_memory in mappings)
