"""How long an identification takes while a large gallery changes: the whole service, over HTTP.

    python benchmarks/changing.py [--templates 1000000] [--seconds 120] [--together 1] [--folder DIR]

`facegallery serve` on a sealed SQLite gallery of drawn people (see `index_data.py`), on one core; on the other a caller
who sends one embedding after the other, half of them of enrolled people, first alone and then while the gallery
changes: another process enrolls twenty people a second, a second caller erases five a second, both on the caller's
core, and snapshots are written every twenty seconds instead of every five minutes. At the end everybody who was erased
is looked for. `--together 167` enrolls so many people in each transaction, as `facegallery import` of an archive
does. `--folder` keeps the gallery for the next run; to fill one with a million templates takes ten minutes.
"""

import argparse
import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from drawn_gallery import EACH, Place, drawn, fill, keep
from index_data import Population
from numpy.typing import NDArray
from rich.progress import track
from serving import service_on
from withheld import watching

from app.commands.options import opened_store

_NEAR = 0.02  # deviation of a mated probe's components from the enrolled embedding's: 0.23 away
_STOP = 20.0  # ms more than the median alone
_ENROLL_PAUSE, _ERASE_PAUSE = 0.05, 0.2  # seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--together", type=int, default=1, help="people that are enrolled in one transaction")
    parser.add_argument("--folder", type=Path, help="where the gallery is, or is to stay")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="facegallery-") as folder:
        place = Place(arguments.folder or Path(folder))
        os.environ.update(place.settings, FACEGALLERY_SNAPSHOT_INTERVAL="20", FACEGALLERY_RATE_LIMIT="0")
        if not (place.folder / "gallery.db").exists():
            place.command("migrate")
            with opened_store() as store:
                fill(store, arguments.templates)
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-1:])  # the service inherits it
        with service_on({}) as url:
            os.sched_setaffinity(0, cores[:1])
            while not list(place.folder.rglob("*.sealed")):  # the first snapshot is of everything
                time.sleep(1)
            _measure(url, arguments.seconds, arguments.templates // EACH, cores[-1], arguments.together)


def _measure(url: str, seconds: float, people: int, core: int, together: int) -> None:
    probes = _probes()
    with httpx.Client(base_url=url, timeout=60) as client:
        alone = _Calls.made(client, probes, seconds / 4, core)
        alone.tell("alone", alone.median)
        with _enrolling(together) as enrolled, _erasing(url, people) as erased:
            begun = enrolled.value
            changing = _Calls.made(client, probes, seconds, core)
            begun, ended = enrolled.value - begun, len(erased)
        changing.tell("while the gallery changes", alone.median)
        print(f"{begun} people were enrolled meanwhile, {ended} erased")
        found = [person for person in erased if _named(client, drawn(person)[0]) == f"person {person}"]
        print(f"of {len(erased)} who were erased {len(found)} were found again")


def _probes() -> list[NDArray[np.float32]]:
    """Of the first thousand people, who are not erased, and of strangers, in turn."""
    random = np.random.default_rng(0)
    enrolled = Population.fitted().draw(1000, EACH, seed=0)[:, 0]
    mated = enrolled + random.normal(scale=_NEAR, size=enrolled.shape).astype(np.float32)
    mated /= np.linalg.norm(mated, axis=1, keepdims=True)
    strangers = Population.fitted().draw(1000, 1, seed=10**9)[:, 0]
    return [probe for pair in zip(mated, strangers, strict=True) for probe in pair]


def _named(client: httpx.Client, probe: NDArray[np.float32]) -> str | None:
    answer = client.post("/identify", json={"embedding": probe.tolist()})
    answer.raise_for_status()
    identity = answer.json()["probe"]["identity"]
    return None if identity is None else str(identity["subject"])


@dataclass(frozen=True, slots=True)
class _Calls:
    """Milliseconds of each call, less what was withheld from the service's core, and how many named rightly."""

    wall: NDArray[np.float64]
    given: NDArray[np.float64]
    right: float

    @classmethod
    def made(cls, client: httpx.Client, probes: list[NDArray[np.float32]], seconds: float, core: int) -> "_Calls":
        """Send one probe after the other."""
        right, calls = 0, itertools.cycle(enumerate(probes))
        with watching({core}) as cores:
            marks = [time.monotonic()]
            for _ in track(range(round(seconds)), "identifying"):
                end = marks[-1] + 1
                while marks[-1] < end:
                    number, probe = next(calls)
                    named = _named(client, probe)
                    right += number % 2 == 0 and named == f"person {number // 2}"
                    marks.append(time.monotonic())
        moments = np.array(marks)
        wall = np.diff(moments)
        withheld = cores[core].withheld(moments) if core in cores else 0
        return cls(1000 * wall, 1000 * (wall - withheld), right / len(wall[::2]))

    @property
    def median(self) -> float:
        """Of the milliseconds."""
        return float(np.median(self.wall))

    def tell(self, name: str, median: float) -> None:
        """Print one line; a call counts as stopped that took 20 ms more than the median alone."""
        p99, p999 = np.quantile(self.wall, (0.99, 0.999))
        stopped, given = ((one > median + _STOP).sum() for one in (self.wall, self.given))
        print(
            f"{name}: {len(self.wall)} identifications, p50 {self.median:.2f} ms, p99 {p99:.2f}, p99.9 {p999:.2f}, "
            f"longest {self.wall.max():.1f}, {stopped} stopped for more than 20 ms (less what the machine "
            f"withheld from the service's core: {self.given.max():.1f}, {given}); {100 * self.right:.1f} % of enrolled "
            "people named rightly",
            flush=True,
        )


@contextmanager
def _enrolling(together: int) -> Iterator[Any]:
    """Another process enrolls; gives the number of people so far."""
    context = multiprocessing.get_context("spawn")
    done, ready, enrolled = context.Event(), context.Event(), context.Value("q", 0)
    process = context.Process(target=_enroll, args=(done, ready, enrolled, together))
    process.start()
    try:
        while process.is_alive() and not ready.wait(0.1):
            pass
        yield enrolled
    finally:
        done.set()
        process.join()
    if process.exitcode:
        raise SystemExit("the process that enrolled has failed")


def _enroll(done: Any, ready: Any, enrolled: Any, together: int) -> None:
    people = Population.fitted().draw(10_000, EACH, seed=2 * 10**9 + time.monotonic_ns() % 10**9)
    with opened_store() as store:
        ready.set()
        while not done.wait(_ENROLL_PAUSE):
            numbers = np.arange(enrolled.value, enrolled.value + together)
            keep(store, [f"new {os.getpid()} {number}" for number in numbers], people[numbers % len(people)])
            enrolled.value += together


@contextmanager
def _erasing(url: str, people: int) -> Iterator[list[int]]:
    """A second caller erases people, none of the first thousand; gives those who are gone."""
    done, erased, failed = threading.Event(), list[int](), list[str]()

    def erase() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            person = int(np.random.default_rng().integers(1000, people - 10_000))
            while not done.wait(_ERASE_PAUSE):
                answer = client.delete(f"/galleries/default/subjects/person {person}")
                if answer.status_code == 204:
                    erased.append(person)
                elif answer.status_code != 404:  # erased by an earlier run
                    failed.append(answer.text)
                person += 1

    thread = threading.Thread(target=erase)
    thread.start()
    try:
        yield erased
    finally:
        done.set()
        thread.join()
    if failed or not erased:
        raise SystemExit(f"nobody was erased, or not everybody: {failed[:3]}")


if __name__ == "__main__":
    main()
