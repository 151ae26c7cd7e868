"""What a loss of power leaves: a snapshot is on the disk, down to its folders, before it has its name."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from app.gallery.index import SegmentedIndex
from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.upkeep import Limits
from app.gallery.points import Point
from app.gallery.records import Gallery
from app.gallery.sealing.vault import Vault
from app.gallery.snapshots.kept import Snapshots
from app.gallery.views.owners import TemplateOwners
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR

Written = tuple[int, int]  # the number of a file or folder, and when it was changed last


class Disk:
    """A folder of which it is noted what was flushed, and what was not when a snapshot came or went."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.came: list[str] = []
        self.went: list[str] = []
        self.unflushed: list[Path] = []
        self._flushed: set[Written] = set()
        self._fsync, self._rename = os.fsync, os.rename
        monkeypatch.setattr(os, "fsync", self._flush)
        monkeypatch.setattr(os, "rename", self._move)

    def _flush(self, handle: int) -> None:
        self._fsync(handle)
        self._flushed.add(_written(os.fstat(handle)))

    def _move(self, source: Path, target: Path) -> None:
        if source.is_relative_to(self.folder):
            if source.name.startswith("writing-"):
                self.came.append(target.name)
                self._look_at([source, *source.rglob("*")])
            else:
                self.went.append(source.name)
                self._look_at([source.parent])  # with the name of the one that takes its place
        self._rename(source, target)

    def _look_at(self, paths: list[Path]) -> None:
        self.unflushed += [path for path in paths if _written(path.stat()) not in self._flushed]


def _written(status: os.stat_result) -> Written:
    return status.st_ino, status.st_mtime_ns


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    with monkeypatch.context() as patched:
        yield Disk(tmp_path / "disk", patched)


@pytest.mark.parametrize("sealed", [False, True])
def test_every_file_and_folder_is_flushed_before_a_snapshot_takes_anothers_place(
    disk: Disk, tmp_path: Path, vault: Vault, sealed: bool
) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    people = Gallery(1, "people", EXTRACTOR, DIMENSION, revision=2, policy=None, created_at=moment)
    load = partial(SegmentedIndex.load, dimension=DIMENSION, compress_from=LEAST_TRAINING)
    kept = Snapshots(
        tmp_path / "memory" if sealed else disk.folder, people, load, (disk.folder, vault) if sealed else None
    )
    index = SegmentedIndex(DIMENSION, compress_from=LEAST_TRAINING, limits=Limits(tail=64))
    vectors = np.random.default_rng(0).normal(size=(2 * LEAST_TRAINING, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(len(vectors))
    for revision, some in enumerate(np.split(ids, 2)):
        index.add(some, vectors[some])
        while index.maintain():
            pass
        owners, point = TemplateOwners(index.ids(), index.ids()), Point(revision, 1)
        kept.write(index, owners, point, reach=partial(Point, revision, 1), key=kept.take_key(anew=False))

    ending = ".sealed" if sealed else ""
    assert disk.came == [f"{0:020d}{ending}", f"{1:020d}{ending}"]
    assert disk.went == [f"{0:020d}{ending}"]
    assert disk.unflushed == []
    files = {path.name.split(".")[-1] for path in disk.folder.rglob("*") if path.is_file()}
    assert files >= {"alive", "codebook", "codes", "i64", "ids", "json", "vectors", *(["key"] if sealed else [])}
