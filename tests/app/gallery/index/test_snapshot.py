import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.index import SegmentedIndex, SnapshotDamaged, snapshot, upkeep
from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.upkeep import Limits

DIMENSION = 16
LIMITS = Limits(block=3000, tail=500, merged=4, largest=4000, dead_share=0.2, least_dead=50)


def unit_vectors(count: int, *, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSION))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


VECTORS = unit_vectors(9100, seed=0)


def some_index(*, half: bool = False) -> SegmentedIndex:
    """Three segments and a tail, with removed rows in all of them."""
    index = SegmentedIndex(DIMENSION, compress_from=LEAST_TRAINING, half=half, limits=LIMITS)
    index.add(np.arange(9000), VECTORS[:9000])
    settle(index)
    index.add(np.arange(9000, 9100), VECTORS[9000:])
    index.remove(np.arange(0, 9100, 50))
    assert len(index._contents.parts.segments) == 3
    return index


def settle(index: SegmentedIndex) -> None:
    while index.maintain():
        pass


def saved(index: SegmentedIndex, folder: Path) -> Path:
    folder.mkdir()
    index.save(folder)
    return folder


def load(folder: Path, *, dimension: int = DIMENSION, half: bool = False) -> SegmentedIndex:
    return SegmentedIndex.load(folder, dimension, compress_from=LEAST_TRAINING, half=half, limits=LIMITS)


def assert_same(first: SegmentedIndex, second: SegmentedIndex) -> None:
    np.testing.assert_array_equal(first.ids(), second.ids())
    np.testing.assert_array_equal(first.vectors(np.arange(9100)), second.vectors(np.arange(9100)))
    probes = unit_vectors(20, seed=1)
    for one, other in zip(first.search(probes, 20), second.search(probes, 20), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.distances, other.distances)


@pytest.mark.parametrize("half", [False, True])
def test_a_loaded_index_answers_as_the_saved_one(tmp_path: Path, half: bool) -> None:
    index = some_index(half=half)
    loaded = load(saved(index, tmp_path / "first"), half=half)
    assert loaded.compressed
    assert_same(index, loaded)
    for changed in (index, loaded):
        changed.remove(np.arange(1, 9100, 50))
        changed.add(np.array([1, 20_000]), VECTORS[:2])
        settle(changed)
    assert_same(index, loaded)


def test_an_empty_index_is_saved_and_loaded(tmp_path: Path) -> None:
    index = SegmentedIndex(DIMENSION, compress_from=None)
    loaded = load(saved(index, tmp_path / "first"))
    assert len(loaded) == 0
    loaded.add(np.arange(10), VECTORS[:10])
    assert len(loaded) == 10


def test_changes_of_a_loaded_index_stay_in_the_process(tmp_path: Path) -> None:
    folder = saved(some_index(), tmp_path / "first")
    first = load(folder)
    first.remove(np.arange(4000))
    assert_same(load(folder), some_index())


def test_what_was_saved_before_is_linked(tmp_path: Path) -> None:
    index = some_index()
    first = saved(index, tmp_path / "first")
    index.remove(np.arange(2, 1000))
    index.add(np.arange(20_000, 20_600), unit_vectors(600, seed=2))
    second = saved(index, tmp_path / "second")
    shared = {path.name for path in first.iterdir()} & {path.name for path in second.glob("segment-*.*")}
    unchanging = {name for name in shared if not name.endswith(".alive")}
    assert len(unchanging) == 6  # two of three segments; one was compacted
    assert all((first / name).samefile(second / name) for name in unchanging)
    for path in first.iterdir():
        path.unlink()
    assert_same(load(second), index)
    assert_same(load(saved(index, tmp_path / "third")), index)


def test_files_that_are_gone_are_written_anew(tmp_path: Path) -> None:
    index = some_index()
    first = saved(index, tmp_path / "first")
    for path in first.iterdir():
        path.unlink()
    assert_same(load(saved(index, tmp_path / "second")), index)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Any] = {
    "flipped bit": _flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("pattern", ["*.vectors", "*.ids", "*.codes", "*.alive", "codebook", "tail.*"])
def test_a_damaged_file_is_noticed(tmp_path: Path, pattern: str, damage: str) -> None:
    folder = saved(some_index(), tmp_path / "first")
    DAMAGE[damage](min(folder.glob(pattern)))
    with pytest.raises(SnapshotDamaged):
        load(folder)


@pytest.mark.parametrize("table", [b"", b"{}", b"[]", b"\xff", b'{"format": 2}', b'{"format": 1, "dimension": 16}'])
def test_a_damaged_table_is_noticed(tmp_path: Path, table: bytes) -> None:
    folder = saved(some_index(), tmp_path / "first")
    (folder / snapshot.TABLE).write_bytes(table)
    with pytest.raises(SnapshotDamaged):
        load(folder)


@pytest.mark.parametrize(
    ("written", "damaged"),
    [
        ('"<f4"', '">f4"'),
        ('"<f4"', '",f4"'),
        ('"files": {', '"files": [], "others": {'),
        ('"size": ', '"size": 999999999999'),
    ],
)
def test_a_damaged_word_in_the_table_is_noticed(tmp_path: Path, written: str, damaged: str) -> None:
    table = saved(some_index(), tmp_path / "first") / snapshot.TABLE
    assert written in table.read_text()
    table.write_text(table.read_text().replace(written, damaged))
    with pytest.raises(SnapshotDamaged):
        load(table.parent)


def test_a_snapshot_of_another_kind_is_not_taken(tmp_path: Path) -> None:
    exact, half = saved(some_index(), tmp_path / "exact"), saved(some_index(half=True), tmp_path / "half")
    with pytest.raises(SnapshotDamaged, match="dimension"):
        load(exact, dimension=8)
    with pytest.raises(SnapshotDamaged, match="half precision"):
        load(half)
    with pytest.raises(SnapshotDamaged, match="cannot be read"):
        load(tmp_path / "nowhere")


def test_a_snapshot_serves_a_setting_that_changed(tmp_path: Path) -> None:
    index = some_index()
    flat = SegmentedIndex.load(saved(index, tmp_path / "first"), DIMENSION, compress_from=None, limits=LIMITS)
    assert not flat.compressed
    assert_same(flat, index)
    again = load(saved(flat, tmp_path / "second"))
    settle(again)
    assert again.compressed
    assert_same(again, index)


def test_an_erased_embedding_leaves_the_disk(tmp_path: Path) -> None:
    index = some_index()
    assert holding(index)  # codes say something of a row whose embedding was written over
    assert not saved_bytes(saved(some_index(), tmp_path / "zero"), VECTORS[50])
    assert holding(load(tmp_path / "zero"))
    index.rewrite_erased()
    assert not any(segment.rows.dead for segment in index._contents.parts.segments)
    assert not saved_bytes(saved(index, tmp_path / "first"), VECTORS[50])
    assert not holding(index)
    index.remove(np.array([51, 9001]))
    assert holding(index) == 1
    second = saved(index, tmp_path / "second")
    assert saved_bytes(second, VECTORS[51])  # linked
    assert not saved_bytes(second, VECTORS[9001])
    assert holding(index) == holding(load(second)) == 1
    index.rewrite_erased()
    third = saved(index, tmp_path / "third")
    assert not holding(index)
    assert not saved_bytes(third, VECTORS[51])
    assert_same(load(third), index)


def test_rewriting_what_was_erased_ends_while_more_is_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    index, gone = some_index(), iter(range(1, 9000, 50))
    before = index._contents.parts.segments

    def build(*arguments: Any, **named: Any) -> Any:
        built = upkeep.build(*arguments, **named)
        index.remove(np.array([next(gone)]))
        return built

    monkeypatch.setattr("app.gallery.index.segmented.build", build)
    index.rewrite_erased()
    after = index._contents.parts.segments
    assert len(after) == len(before)
    assert not set(map(id, after)) & set(map(id, before))  # each was written anew, and once


def holding(index: SegmentedIndex) -> int:
    """How many segments hold something of a removed row in their codes or their saved files."""
    return sum(segment.left_on_disk for segment in index._contents.parts.segments)


def saved_bytes(folder: Path, vector: NDArray[np.float32]) -> bool:
    return any(vector.tobytes() in path.read_bytes() for path in folder.iterdir())


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [100, 30_000, 190_000])
def test_a_snapshot_that_cannot_be_written_leaves_the_index_as_it_was(tmp_path: Path, size: int) -> None:
    index = some_index()
    (tmp_path / "full").mkdir()
    with files_no_larger_than(size), pytest.raises(OSError, match="File too large"):
        index.save(tmp_path / "full")
    assert not any(segment.saved for segment in index._contents.parts.segments)
    with pytest.raises(SnapshotDamaged):
        load(tmp_path / "full")
    assert_same(index, some_index())
    assert_same(load(saved(index, tmp_path / "first")), index)


def test_what_changes_while_a_snapshot_is_written_is_in_it_or_not_but_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, others = some_index(), unit_vectors(2, seed=3)
    real = snapshot.write_segment, snapshot.write_state

    def write_segment(*arguments: Any) -> Any:
        written = real[0](*arguments)
        index.remove(np.array([71, 72, 9072]))
        index.add(np.array([73, 30_000]), others)
        return written

    def write_state(*arguments: Any) -> None:
        index.remove(np.array([74, 9074, 30_000]))
        index.add(np.array([75]), others[:1])
        real[1](*arguments)

    monkeypatch.setattr(snapshot, "write_segment", write_segment)
    monkeypatch.setattr(snapshot, "write_state", write_state)
    folder = saved(index, tmp_path / "first")
    loaded = load(folder)
    before = np.setdiff1d(np.append(np.arange(9100), 30_000), [*range(0, 9100, 50), 71, 72, 9072])
    np.testing.assert_array_equal(loaded.ids(), before)
    np.testing.assert_array_equal(
        loaded.vectors(np.array([73, 74, 75, 9074, 30_000])), [others[0], *VECTORS[[74, 75, 9074]], others[1]]
    )
    np.testing.assert_array_equal(index.ids(), np.setdiff1d(before, [74, 9074, 30_000]))
    np.testing.assert_array_equal(index.vectors(np.array([73, 75])), others[[0, 0]])
    for segment in index._contents.parts.segments:
        assert np.all(segment.rows.vectors[~segment.rows.alive] == 4)
    assert holding(index)


def test_rows_erased_between_their_digest_and_their_writing_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, gone, sha256 = some_index(), iter(range(1, 9000, 50)), hashlib.sha256

    class Digest:
        """SHA-256 beside which somebody removes a template."""

        def __init__(self) -> None:
            self._real = sha256()

        def update(self, data: Any) -> None:
            self._real.update(data)
            index.remove(np.array([next(gone)]))

        def hexdigest(self) -> str:
            return self._real.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Digest)
    folder = saved(index, tmp_path / "first")
    monkeypatch.undo()

    removed = list(range(1, next(gone), 50))
    assert len(removed) > 3
    assert not np.isin(removed[:3], load(folder).ids()).any()
