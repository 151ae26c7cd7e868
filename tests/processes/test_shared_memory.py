"""Processes of one machine that serve one snapshot have its embeddings in memory once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app.gallery.index import SegmentedIndex
from app.gallery.points import Point
from app.gallery.views.owners import TemplateOwners
from tests.deployed import deployed, made_database
from tests.processes.following import following

DIMENSION, TEMPLATES = 128, 30_000


def write_snapshot(url: str, folder: str) -> None:
    """A snapshot of many templates, which SQL need not have."""
    made_database(url)
    with deployed(url, Path(folder)) as parts:
        parts.store.create_gallery("people", extractor="net@0123456789ab", dimension=DIMENSION, policy=None)
        gallery = parts.store.gallery("people")
        assert parts.history.point(gallery.id) == Point(0, gallery.mark)
        index, snapshots = parts.source.make(gallery), parts.source.snapshots_of(gallery)
        assert isinstance(index, SegmentedIndex)
        assert snapshots is not None
        embeddings = np.random.default_rng(1).normal(size=(TEMPLATES, DIMENSION)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        ids = np.arange(1, TEMPLATES + 1)
        index.add(ids, embeddings)
        while index.maintain():
            pass
        snapshots.write(index, TemplateOwners(ids, ids), gallery.point, reach=lambda: gallery.point)
        np.save(Path(folder, "probe.npy"), embeddings[1000])


def memory_of(process: int, ending: str) -> dict[str, int]:
    """Bytes that a process has of files of that name, by kind: Rss, Pss, Private_Dirty, …"""
    sums: dict[str, int] = {}
    counts = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            counts = line.endswith(ending)
        elif counts and rest[-1:] == ["kB"]:
            sums[first[:-1]] = sums.get(first[:-1], 0) + int(rest[0]) * 1024
    return sums


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells whose memory is shared")
def test_two_processes_share_the_embeddings_of_a_snapshot(sqlite_url: str, tmp_path: Path) -> None:
    code = "import sys; from tests.processes.test_shared_memory import write_snapshot; write_snapshot(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, sqlite_url, str(tmp_path)], check=True)
    probe = np.load(tmp_path / "probe.npy")
    with following(sqlite_url, tmp_path, 2) as followers:
        for follower in followers:
            assert follower.nearest(probe) == 1001
            assert follower.compressed()
        for follower in followers:
            memory = memory_of(follower.process.pid, ".vectors")
            assert memory["Rss"] >= TEMPLATES * DIMENSION * 4 * 0.99
            assert memory["Pss"] <= memory["Rss"] * 0.55  # half of what both have
            assert memory["Private_Dirty"] == 0
