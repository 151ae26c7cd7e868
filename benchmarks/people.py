"""Enroll people over HTTP, identify their other photos and strangers' photos, and count what was right and wrong.

    python benchmarks/people.py --photos DIR [--output DIR] [--url URL]

`--photos` holds a folder of photos for each person. The first three photos (by file name) of everybody who has at least
five are enrolled with `face=largest`; those people's other photos are mated probes, everybody else's photos are
strangers. What counts as a photo's answer is the decision on the face nearest to its centre; its other faces are
counted apart, and nobody knows who they are. Every photo is sent once, with `all_candidates=true`: the decision at the
default policy is the service's own; at the fixed distance of FMR 1e-5 the distance is applied to the nearest candidate.
"""

import random
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from math import hypot
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import typer
from PIL import ExifTags, Image
from report import Enrolment, Report, Times, rows, sentences, write
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from serving import running_service
from tally import Nearest, Probe, tally

from app.gallery.policy import distance_at
from model.card import read_card
from model.photo_folder import list_photos
from model.pipeline import WEIGHTS

ENROLLED_PHOTOS = 3
LEAST_PHOTOS = 5
FIXED_FMR = 1e-5
TIMED_REQUESTS = 100
_SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is enrolled with which photos, and which photos are probes: (photo, person, mated)."""

    enrolled: dict[str, list[Path]]
    probes: list[tuple[Path, str, bool]]


def plan(photos: Path) -> Plan:
    """Split a folder of people into enrolments and probes."""
    enrolled, probes = dict[str, list[Path]](), list[tuple[Path, str, bool]]()
    for person, listed in groupby(list_photos(photos), key=lambda photo: photo.subject):
        files = [photo.path for photo in listed]
        mated = len(files) >= LEAST_PHOTOS
        if mated:
            enrolled[person], files = files[:ENROLLED_PHOTOS], files[ENROLLED_PHOTOS:]
        probes += [(file, person, mated) for file in files]
    return Plan(enrolled, probes)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f}/s")


def in_flight(
    label: str, work: Callable[[Item], Result], items: Sequence[Item], threads: int, console: Console
) -> list[Result]:
    """Results in the items' order, with so many calls at a time and a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(threads) as pool:
        return list(progress.track(pool.map(work, items), total=len(items), description=label))


class Client:
    """The service's calls that the benchmark needs, on one gallery."""

    def __init__(self, http: httpx.Client, gallery: str, photos: Path) -> None:
        self._http, self._gallery, self._photos = http, gallery, photos

    def enroll(self, item: tuple[str, list[Path]]) -> tuple[int, list[str]]:
        """Enroll one person's photos; answers the number of templates and the reasons of the photos refused."""
        person, photos = item
        answer = self._http.post(
            "/enroll",
            data={"subject": person, "gallery": self._gallery, "face": "largest"},
            files=[("images", (photo.name, photo.read_bytes())) for photo in photos],
        )
        body = answer.json()
        if answer.status_code == 422 and "refused" in body:
            return 0, [one["reason"] for one in body["refused"]]
        answer.raise_for_status()
        return len(body["enrolled"]), [one["reason"] for one in body["refused"]]

    def identify(self, photo: Path) -> dict[str, Any]:
        """The service's answer on one photo, with the nearest candidate of every face, however far."""
        answer = self._http.post(
            "/identify",
            data={"gallery": self._gallery, "all_candidates": "true", "top_k": "1"},
            files={"image": (photo.name, photo.read_bytes())},
        )
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    def probe(self, item: tuple[Path, str, bool]) -> tuple[Probe, float]:
        """Identify one photo; answers what was found and the threshold of the gallery's policy."""
        photo, person, mated = item
        body = self.identify(photo)
        faces = sorted(body["faces"], key=_distance_from_centre(photo))
        nearest = [_nearest(face, body["threshold"]) for face in faces]
        others = tuple(one for one in nearest[1:] if one is not None)
        name = photo.relative_to(self._photos).as_posix()
        return Probe(name, person, mated, bool(faces), nearest[0] if nearest else None, others), body["threshold"]

    def describe(self) -> dict[str, Any]:
        """The gallery as the service describes it."""
        body: dict[str, Any] = self._http.get(f"/galleries/{self._gallery}").raise_for_status().json()
        return body


def _distance_from_centre(photo: Path) -> Callable[[dict[str, Any]], float]:
    with Image.open(photo) as image:
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
            width, height = height, width

    def distance(face: dict[str, Any]) -> float:
        box = face["box"]
        return hypot(box["x"] + box["width"] / 2 - width / 2, box["y"] + box["height"] / 2 - height / 2)

    return distance


def _nearest(face: dict[str, Any], threshold: float) -> Nearest | None:
    if not face["candidates"]:
        return None
    nearest = Nearest(face["candidates"][0]["subject"], face["candidates"][0]["distance"])
    decided = None if face["identity"] is None else face["identity"]["subject"]
    if decided != (nearest.subject if nearest.distance <= threshold else None):
        raise RuntimeError(f"the service decided {decided!r} where its nearest candidate is {nearest}")
    return nearest


def measure_times(client: Client, plan: Plan, threads: int, photos_per_second: float, console: Console) -> Times:
    """Time requests one after the other, on photos drawn from all probes."""
    probes = random.Random(0).sample(plan.probes, min(TIMED_REQUESTS, len(plan.probes)))

    def seconds(item: tuple[Path, str, bool]) -> float:
        start = time.perf_counter()
        client.identify(item[0])
        return time.perf_counter() - start

    times = sorted(in_flight("timing one at a time", seconds, probes, 1, console))
    return Times(len(times), statistics.median(times), times[int(0.95 * (len(times) - 1))], threads, photos_per_second)


def measure(client: Client, plan: Plan, threads: int, console: Console) -> tuple[Report, list[Probe]]:
    """Enroll, identify, time."""
    stored = in_flight("enrolling", client.enroll, list(plan.enrolled.items()), threads, console)
    enrolment = Enrolment(
        subjects=sum(templates > 0 for templates, _ in stored),
        photos=sum(len(photos) for photos in plan.enrolled.values()),
        templates=sum(templates for templates, _ in stored),
        refused=dict(Counter(reason for _, reasons in stored for reason in reasons)),
    )
    gallery = client.describe()
    card = next(card for card in map(read_card, sorted(WEIGHTS.iterdir())) if card.identity == gallery["extractor"])
    start = time.perf_counter()
    answers = in_flight("identifying", client.probe, plan.probes, threads, console)
    seconds = time.perf_counter() - start
    probes = [probe for probe, _ in answers]
    (threshold,) = {threshold for _, threshold in answers}
    report = Report(
        people=len(plan.enrolled),
        extractor=gallery["extractor"],
        policy=gallery["policy"],
        enrolment=enrolment,
        default=tally(probes, threshold),
        fixed=tally(probes, distance_at(FIXED_FMR, card.thresholds)),
        times=measure_times(client, plan, threads, len(probes) / seconds, console),
    )
    return report, probes


@contextmanager
def _gallery(url: str, photos: Path) -> Iterator[Client]:
    """A gallery of its own that is erased in the end: the service may be one that is in use."""
    name = f"benchmark-{uuid.uuid4().hex[:12]}"
    with httpx.Client(base_url=url, timeout=120) as http:
        http.post("/galleries", json={"name": name}).raise_for_status()
        try:
            yield Client(http, name, photos)
        finally:
            http.delete(f"/galleries/{name}")


def main(
    photos: Annotated[
        Path, typer.Option(help="A folder with a folder of photos for each person.", exists=True, file_okay=False)
    ],
    output: Annotated[Path | None, typer.Option(help="Folder for people.json and people.md.")] = None,
    url: Annotated[str | None, typer.Option(help="A running service; else one is started for the measurement.")] = None,
    threads: Annotated[int, typer.Option(min=1, max=32, help="Requests in flight.")] = 3,
) -> None:
    """Enroll 3 photos each of the people who have at least 5, identify all other photos, count right and wrong."""
    console = Console()
    split = plan(photos)
    if not split.enrolled:
        raise typer.BadParameter(f"nobody has {LEAST_PHOTOS} photos", param_hint="--photos")
    with nullcontext(url) if url else running_service() as address, _gallery(address, photos) as client:
        report, probes = measure(client, split, threads, Console(stderr=True))
    table = Table("", "default policy", "fixed distance of FMR 1e-5")
    for row in rows(report):
        table.add_row(*row)
    console.print(table)
    for sentence in sentences(report):
        console.print(sentence, markup=False, highlight=False)
    if output:
        write(report, probes, output)


if __name__ == "__main__":
    typer.run(main)
