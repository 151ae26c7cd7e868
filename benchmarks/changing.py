"""How long an identification takes while a large gallery changes: the whole service, over HTTP.

    python benchmarks/changing.py [--templates 1000000] [--seconds 120] [--folder DIR]

`facegallery serve` on a sealed SQLite gallery of drawn people (see `index_data.py`), on one core; on the other a caller
who sends one embedding after the other, half of them of enrolled people, first alone and then while the gallery
changes: another process enrolls twenty people a second, a second caller erases five a second, and snapshots are written
every twenty seconds instead of every five minutes. At the end everybody who was erased is looked for. `--folder` keeps
the gallery for the next run; to fill one with a million templates takes ten minutes.
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
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx
import numpy as np
from drawn_gallery import EACH, Place, drawn, fill, keep
from index_data import Population
from numpy.typing import NDArray
from pauses import Pauses, missed, together, watched
from rich.progress import track
from serving import service_on

from app.commands.options import opened_store

_NEAR = 0.02  # deviation of a mated probe's components from the enrolled embedding's: 0.23 away
_STOP = 0.02


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=120)
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
            _measure(url, arguments.seconds, {cores[0], cores[-1]})


def _measure(url: str, seconds: float, cores: set[int]) -> None:
    probes, erased = _probes(), list[int]()
    with httpx.Client(base_url=url, timeout=60) as client:
        _tell("alone", *_identify(client, probes, seconds / 4, cores))
        with _enrolling(), _erasing(url, erased):
            _tell("while the gallery changes", *_identify(client, probes, seconds, cores))
        print(f"{len(erased)} people were erased")
        found = [person for person in erased if _named(client, drawn(person)[0]) == f"person {person}"]
        print(f"of them found again: {len(found)}")


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


def _identify(
    client: httpx.Client, probes: list[NDArray[np.float32]], seconds: float, cores: set[int]
) -> tuple[NDArray[np.float64], Pauses, float]:
    """Moments between the calls, pauses of the machine, and the share of enrolled people who were named rightly."""
    marks, right = [time.monotonic()], 0
    calls = itertools.cycle(enumerate(probes))
    with watched(cores) as pauses:
        for _ in track(range(round(seconds)), "identifying"):
            end = marks[-1] + 1
            while marks[-1] < end:
                number, probe = next(calls)
                named = _named(client, probe)
                right += number % 2 == 0 and named == f"person {number // 2}"
                marks.append(time.monotonic())
    return np.array(marks), together(pauses.values()), right / len(marks[1::2])


def _tell(name: str, marks: NDArray[np.float64], pauses: Pauses, right: float) -> None:
    wall = 1000 * np.diff(marks)
    given = wall - 1000 * missed(marks[:-1], marks[1:], pauses)
    median = float(np.median(wall))
    print(
        f"{name}: {len(wall)} identifications, p50 {median:.2f} ms, p99 {np.quantile(wall, 0.99):.2f}, p99.9 "
        f"{np.quantile(wall, 0.999):.2f}, longest {wall.max():.1f}, less the machine's pauses {given.max():.1f}; "
        f"{(given > median + 1000 * _STOP).sum()} took 20 ms longer than the median; "
        f"{100 * right:.1f} % of enrolled people named rightly",
        flush=True,
    )


@contextmanager
def _enrolling() -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    done = context.Event()
    process = context.Process(target=_enroll, args=(done,))
    process.start()
    try:
        yield
    finally:
        done.set()
        process.join()


def _enroll(done: Event) -> None:
    """Twenty people a second, as another process of the service or a command does."""
    people = Population.fitted().draw(10_000, EACH, seed=2 * 10**9 + time.monotonic_ns() % 10**9)
    with opened_store() as store:
        for number in itertools.count():
            if done.wait(0.05):
                return
            person = number % len(people)
            keep(store, [f"new {os.getpid()} {number}"], people[person : person + 1])


@contextmanager
def _erasing(url: str, erased: list[int]) -> Iterator[None]:
    done = threading.Event()

    def erase() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            person = int(np.random.default_rng().integers(1000, 300_000))
            while not done.wait(0.2):
                if client.delete(f"/galleries/default/subjects/person {person}").status_code == 204:
                    erased.append(person)
                person += 1

    thread = threading.Thread(target=erase)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
