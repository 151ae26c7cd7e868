"""What one process has acknowledged, every other finds on its next call, and what it erased none finds again."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.database import open_engine
from app.gallery.migrations import migrate
from app.gallery.records import NewTemplate
from app.gallery.store import GalleryStore

EXTRACTOR = "net@0123456789ab"
WRITES = {"sqlite": 1000, "postgresql": 1000}


class Follower:
    """One process that searches."""

    def __init__(self, url: str, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.processes.follower", url, str(folder), "people"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._read() == "ready"

    def nearest(self, embedding: NDArray[np.float32]) -> int | None:
        """The subject whose template this is."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(embedding.tolist()) + "\n")
        self.process.stdin.flush()
        found = json.loads(self._read())
        return found[0] if found is not None and found[1] < 1e-3 else None

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def following(url: str, folder: Path, count: int) -> Iterator[list[Follower]]:
    followers = [Follower(url, folder) for _ in range(count)]
    try:
        yield followers
        for follower in followers:
            follower.close()
    finally:
        for follower in followers:
            follower.process.kill()
            with follower.process:  # closes its pipes
                pass


@pytest.mark.parametrize(("kind", "processes"), [("sqlite", 2), ("postgresql", 3)])
def test_thousands_of_reads_after_writes_in_other_processes(
    request: pytest.FixtureRequest,
    kind: str,
    processes: int,
    tmp_path: Path,
    new_templates: Callable[[int], list[NewTemplate]],
) -> None:
    url = str(request.getfixturevalue(f"{kind}_url"))
    engine = open_engine(url, timeout=30)
    migrate(engine)
    store = GalleryStore(engine)
    store.create_gallery("people", extractor=EXTRACTOR, dimension=8, policy=None)
    chance = random.Random(3)
    there: dict[str, tuple[int, NewTemplate]] = {}
    with following(url, tmp_path / "index", processes) as followers:
        for number in range(WRITES[kind]):
            if there and chance.random() < 0.4:
                key = chance.choice(list(there))
                _, template = there.pop(key)
                store.delete_subject("people", key)
                wanted = None
            else:
                key, (template,) = f"subject {number}", new_templates(1)
                made = store.enroll("people", key, [template], metadata=None, extractor=EXTRACTOR, dimension=8)
                there[key] = (made.subject.id, template)
                wanted = made.subject.id
            assert [one.nearest(template.embedding) for one in followers] == [wanted] * processes
            if there:
                key = chance.choice(list(there))
                subject_id, template = there[key]
                assert chance.choice(followers).nearest(template.embedding) == subject_id
    engine.dispose()
