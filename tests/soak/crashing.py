"""kill -9 at random moments under a mixed load, and what must hold after each: `python -m tests.soak.crashing`."""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.views.consistency import check_gallery
from app.telemetry import set_up_logging
from tests.postgresql import postgresql
from tests.soak.deployed import deployed
from tests.soak.people import BASE, DIMENSION, EXTRACTOR, GALLERY, templates_of

State = dict[str, int | None]
"""How many templates subjects have; none: no such subject."""


@dataclass
class Acknowledged:
    """What the journals say must be there, must be gone, and may be as it was before a call or as it was after it."""

    present: dict[str, int] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    doubts: list[tuple[State, State]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def read(self, journal: Path) -> None:
        """Take in one process's journal; its last line may be cut."""
        begun: dict[int, tuple[State, State]] = {}
        for line in journal.read_text().split("\n")[:-1]:
            entry = json.loads(line)
            if "broken" in entry:
                self.broken.append(entry["broken"])
            elif "after" in entry:
                begun[entry["thread"]] = (entry["before"], entry["after"])
                for key in entry["before"]:
                    self.present.pop(key, None)
            else:
                _, after = begun.pop(entry["thread"])
                self.present |= {key: count for key, count in after.items() if count is not None}
                self.gone |= {key for key, count in after.items() if count is None}
        self.doubts += begun.values()

    def check(self, stored: dict[str, int]) -> None:
        """Hold what is stored, templates by subject, against it.

        Raises:
            AssertionError: they differ.
        """
        assert self.broken == []
        lost = {key: count for key, count in self.present.items() if stored.get(key) != count}
        assert lost == {}, f"acknowledged and lost: {lost}"
        back = self.gone & stored.keys()
        assert back == set(), f"erased and back: {back}"
        for before, after in self.doubts:
            found = {key: stored.get(key) for key in before}
            assert found in (before, after), f"half done: {found} is neither {before} nor {after}"
        assert stored.keys() <= self.present.keys() | {key for before, _ in self.doubts for key in before}


@dataclass(frozen=True, slots=True)
class Survived:
    """How many kills fell into a start, and how many subjects were acknowledged in all."""

    in_start: int
    subjects: int


def crash_rounds(url: str, folder: Path, rounds: int, *, seed: int = 0, progress: Progress | None = None) -> Survived:
    """Start a process, kill it at a random moment, check; a third of them during their start.

    Raises:
        AssertionError: an acknowledged write was lost, or rows, index and snapshots differ.
    """
    set_up_logging(form="console", level="error")
    chance = random.Random(seed)
    engine = open_engine(url, timeout=30)
    migrate(engine)
    engine.dispose()
    known = Acknowledged()
    with deployed(url, folder) as parts:
        parts.store.create_gallery(GALLERY, extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
        for number in range(BASE):
            key, templates = f"base-{number}", templates_of(f"base-{number}", 100)
            parts.store.enroll(GALLERY, key, templates, metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
            known.present[key] = len(templates)
    task = progress.add_task("kills", total=rounds) if progress else None
    in_start, start_seconds = set(chance.sample(range(rounds), rounds // 3)), 0.5
    for turn in range(rounds):
        journal = folder / f"journal-{turn}"
        command = [sys.executable, "-m", "tests.soak.load", url, str(folder), str(journal), str(turn)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stdout.readline() == "starts\n"
                began = time.monotonic()
                if turn in in_start:
                    time.sleep(chance.uniform(0, start_seconds))
                else:
                    assert process.stdout.readline() == "loaded\n"
                    start_seconds = time.monotonic() - began
                    print("go", file=process.stdin, flush=True)
                    time.sleep(chance.uniform(0.05, 1.5))
            finally:
                process.kill()
        if turn not in in_start:
            known.read(journal)
        with deployed(url, folder) as parts:  # which removes what the killed process had open in memory
            stored = _templates_by_subject(parts.store)
            known.check(stored)
            consistency = check_gallery(parts.store.gallery(GALLERY), parts.history, parts.source)
        assert consistency.whole, consistency
        assert consistency.templates == sum(stored.values())
        if progress and task is not None:
            progress.advance(task)
    return Survived(len(in_start), len(known.present) + len(known.gone))


def _templates_by_subject(store: GalleryStore) -> dict[str, int]:
    stored, after = dict[str, int](), 0
    while True:
        page = store.subjects(GALLERY, after=after, limit=1000)
        stored.update({subject.key: subject.templates for subject in page.items})
        if page.next_cursor is None:
            return stored
        after = page.next_cursor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sqlite", type=int, default=200, help="kills on SQLite")
    parser.add_argument("--postgresql", type=int, default=50, help="kills on PostgreSQL")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with ExitStack() as stack, Progress() as progress:
        for kind, rounds in (("SQLite", arguments.sqlite), ("PostgreSQL", arguments.postgresql)):
            if not rounds:
                continue
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = f"sqlite:///{folder / 'gallery.db'}"
            if kind == "PostgreSQL":
                url = stack.enter_context(postgresql()).address
            done = crash_rounds(url, folder, rounds, seed=arguments.seed, progress=progress)
            kills = f"{rounds} kills, {done.in_start} of them during a start"
            progress.console.print(f"{kind}: {kills}, {done.subjects} subjects acknowledged, none lost, none back")


if __name__ == "__main__":
    main()
