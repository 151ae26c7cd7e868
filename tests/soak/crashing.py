"""kill -9 at random moments under a mixed load, and what must hold after each: `python -m tests.soak.crashing`."""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress
from sqlalchemy import text

from app.gallery.sql.database import open_engine
from app.gallery.store import GalleryStore
from app.gallery.views.consistency import check_gallery
from app.gallery.views.replica import GalleryReplica
from app.telemetry import set_up_logging
from tests.deployed import Deployed, deployed, made_database
from tests.postgresql import postgresql
from tests.soak.people import BASE, DIMENSION, EXTRACTOR, GALLERY, SAME, SOURCE, embedding_of, templates_of

State = dict[str, list[str] | None]
"""The names of the templates that subjects have, sorted; none: no such subject."""


@dataclass
class Acknowledged:
    """What the journals say must be there, must be gone, and may be as it was before a call or as it was after it."""

    present: dict[str, list[str]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    doubts: list[tuple[State, State]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

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
                self.calls[entry["done"]] += 1
                _, after = begun.pop(entry["thread"])
                self._seen(after)
        self.doubts += begun.values()

    def check(self, stored: dict[str, list[str]]) -> None:
        """Hold what is stored, names of templates by subject, against it; what was in doubt stays as it is found now.

        Raises:
            AssertionError: they differ.
        """
        assert self.broken == [], f"what must not be: {self.broken}"
        lost = {key: names for key, names in self.present.items() if stored.get(key) != names}
        assert lost == {}, f"acknowledged and lost: {lost}"
        back = self.gone & stored.keys()
        assert back == set(), f"erased and back: {back}"
        for before, after in self.doubts:
            found = {key: stored.get(key) for key in before}
            assert found in (before, after), f"half done: {found} is neither {before} nor {after}"
            self._seen(found)
        self.doubts.clear()
        assert stored.keys() <= self.present.keys()

    def _seen(self, state: State) -> None:
        self.present |= {key: names for key, names in state.items() if names is not None}
        self.gone |= {key for key, names in state.items() if names is None}


@dataclass(frozen=True, slots=True)
class Survived:
    """What the kills met.

    Args:
        in_start: kills before the process had loaded.
        calls: acknowledged ones, by what they were.
        snapshots: other snapshots that were found after kills.
    """

    in_start: int
    calls: Mapping[str, int]
    snapshots: int


def crash_rounds(url: str, folder: Path, rounds: int, *, seed: int = 0, progress: Progress | None = None) -> Survived:
    """Start a process, kill it at a random moment, check; a third of them during their start.

    Raises:
        AssertionError: an acknowledged write was lost, or rows, index and snapshots differ.
    """
    set_up_logging(form="console", level="error")
    chance = random.Random(seed)
    made_database(url)
    known = Acknowledged()
    with deployed(url, folder, SOURCE) as parts:
        parts.store.create_gallery(GALLERY, extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
        for number in range(BASE):
            key, templates = f"base-{number}", templates_of(f"base-{number}", 100)
            parts.store.enroll(GALLERY, key, templates, metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
            known.present[key] = sorted(one.crop_sha256 for one in templates)
    task = progress.add_task("kills", total=rounds) if progress else None
    early, start_seconds = set(chance.sample(range(1, rounds), rounds // 3)), 0.0  # known from the first round on
    in_start, snapshots = 0, set[int]()
    for turn in range(rounds):
        journal = folder / f"journal-{turn}"
        command = [sys.executable, "-m", "tests.soak.load", url, str(folder), str(journal), str(turn)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stdout.readline() == "starts\n"
                began = time.monotonic()
                if turn in early:
                    time.sleep(chance.uniform(0, start_seconds))
                else:
                    assert process.stdout.readline() == "loaded\n"
                    start_seconds = time.monotonic() - began
                    print("go", file=process.stdin, flush=True)
                    time.sleep(chance.uniform(0.05, 1.5))
                ended = process.poll()
            finally:
                process.kill()
            in_start += turn in early and process.stdout.read() == ""
        if turn not in early:
            known.read(journal)
        _wait_for_commits(url)
        with deployed(url, folder, SOURCE) as parts:  # which removes what the killed process had open in memory
            stored = _templates_by_subject(parts.store)
            known.check(stored)
            assert ended is None, f"it ended by itself, with {ended}"
            consistency = check_gallery(parts.store.gallery(GALLERY), parts.history, parts.source)
            assert consistency.whole, consistency
            kept = parts.source.snapshots_of(parts.store.gallery(GALLERY))
            assert kept is not None
            snapshots.update(kept.revisions)
            assert consistency.templates == sum(len(names) for names in stored.values())
            assert _not_found(parts, stored) == {}
        if progress and task is not None:
            progress.advance(task)
    return Survived(in_start, known.calls, len(snapshots))


def _wait_for_commits(url: str) -> None:
    """Until PostgreSQL has ended the sessions of who was killed, which it may have been committing for."""
    engine = open_engine(url, timeout=30)
    if engine.dialect.name == "postgresql":
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        until = time.monotonic() + 30
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while connection.scalar(text(f"{others} AND backend_type = 'client backend'")):
                assert time.monotonic() < until, "sessions of a killed process do not end"
                time.sleep(0.01)
    engine.dispose()


def _templates_by_subject(store: GalleryStore) -> dict[str, list[str]]:
    stored, after = dict[str, list[str]](), 0
    while True:
        subjects = store.subjects(GALLERY, after=after, limit=1000)
        stored |= {subject.key: [] for subject in subjects.items}
        if subjects.next_cursor is None:
            break
        after = subjects.next_cursor
    after = 0
    while True:
        templates = store.templates(GALLERY, subject=None, after=after, limit=1000)
        for template in templates.items:
            stored[template.subject].append(template.crop_sha256)
        if templates.next_cursor is None:
            return {key: sorted(names) for key, names in stored.items()}
        after = templates.next_cursor


def _not_found(parts: Deployed, stored: dict[str, list[str]]) -> dict[str, str]:
    """Names of templates that a process which starts now does not find as their subjects', and whom it finds there.

    A template's embedding is made of its name, whatever the database has for it.
    """
    gallery = parts.store.gallery(GALLERY)
    snapshots = parts.source.snapshots_of(gallery)
    replica = GalleryReplica(gallery, parts.history, partial(parts.source.make, gallery), snapshots)
    replica.catch_up(*gallery.point)
    owners = {name: key for key, names in stored.items() for name in names}
    probes = np.stack([embedding_of(name) for name in owners])
    found = [one for (one,) in replica.search(probes, top_k=1, rule="best")]
    subjects = parts.store.subjects_by_id(list({one.subject_id for one in found}))
    return {
        name: f"{subjects[one.subject_id].key} at {one.distance}"
        for (name, key), one in zip(owners.items(), found, strict=True)
        if one.distance > SAME or subjects[one.subject_id].key != key
    }


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
            calls = ", ".join(f"{count} × {what}" for what, count in sorted(done.calls.items()))
            progress.console.print(
                f"{kind}: {rounds} kills, {done.in_start} of them during a start; {done.snapshots} snapshots; "
                f"acknowledged: {calls}; none lost, none back"
            )


if __name__ == "__main__":
    main()
