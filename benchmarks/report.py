"""The figures of `people.py`, as a table, Markdown and JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tally import Probe, Tally, mistakes


@dataclass(frozen=True, slots=True)
class Enrolment:
    """How the enrolment went; `refused` counts photos by the reason's slug."""

    subjects: int
    photos: int
    templates: int
    refused: dict[str, int]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a request, one request at a time, and photos a second with several in flight."""

    requests: int
    median: float
    p95: float
    in_flight: int
    photos_per_second: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured."""

    people: int
    extractor: str
    policy: object
    enrolment: Enrolment
    default: Tally
    fixed: Tally
    times: Times


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({100 * count / total:.2f} %)" if total else f"{count:,} of 0"


def rows(report: Report) -> list[tuple[str, str, str]]:
    """The table: what, at the default policy, at the fixed distance."""
    contents: list[tuple[str, Callable[[Tally], str]]] = [
        ("largest distance accepted", lambda one: f"{one.threshold:.4f}"),
        ("correct identifications", lambda one: _share(one.correct, one.mated)),
        ("misses (enrolled, answered unknown)", lambda one: _share(one.missed, one.mated)),
        ("wrong names (enrolled, named as another)", lambda one: _share(one.wrong, one.mated)),
        ("no face found, enrolled people", lambda one: _share(one.mated_without_face, one.mated)),
        ("strangers answered unknown", lambda one: _share(one.strangers_unknown, one.strangers)),
        ("false identifications of strangers", lambda one: _share(one.strangers_named, one.strangers)),
        ("no face found, strangers", lambda one: _share(one.strangers_without_face, one.strangers)),
        ("other faces in the photos that got a name", lambda one: _share(one.other_faces_named, one.other_faces)),
    ]
    return [(label, cell(report.default), cell(report.fixed)) for label, cell in contents]


def sentences(report: Report) -> list[str]:
    """What the table does not say: enrolment and times."""
    enrolment, times = report.enrolment, report.times
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(enrolment.refused.items())) or "none"
    stored = f"{enrolment.subjects:,} of {report.people:,} people, {enrolment.templates:,} templates"
    alone = f"median {1000 * times.median:.0f} ms, 95th percentile {1000 * times.p95:.0f} ms"
    return [
        f"Enrolled: {stored} of {enrolment.photos:,} photos; refused: {refused}.",
        f"One request at a time ({times.requests} photos): {alone}.",
        f"{times.in_flight} requests in flight: {times.photos_per_second:.1f} photos a second.",
        f"Extractor {report.extractor}, default policy {json.dumps(report.policy)}.",
    ]


def write(report: Report, probes: list[Probe], output: Path) -> None:
    """Write people.json (figures, every probe, every mistake) and people.md."""
    output.mkdir(parents=True, exist_ok=True)
    found = {
        **asdict(report),
        "mistakes_at_default": [asdict(probe) for probe in mistakes(probes, report.default.threshold)],
        "probes": [asdict(probe) for probe in probes],
    }
    (output / "people.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["| | default policy | fixed distance of FMR 1e-5 |", "| --- | --- | --- |"]
    lines += [f"| {label} | {default} | {fixed} |" for label, default, fixed in rows(report)]
    lines += ["", *(f"- {sentence}" for sentence in sentences(report))]
    (output / "people.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
