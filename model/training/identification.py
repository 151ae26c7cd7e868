"""One-to-many error rates of open-set identification: FPIR, FNIR, rank one (ISO/IEC 19795-1, NIST FRTE 1:N).

- FPIR: share of non-mated probes (strangers) with at least one candidate at or below the threshold.
- FNIR: share of mated probes whose own subject is not the nearest candidate, or is nearest but above the threshold.
  It is NIST's FNIR(N, R = 1, T): a right name at rank two, or above the threshold, is a miss. A tie for rank one
  counts against the subject.
- Rank one: share of mated probes whose own subject is the nearest candidate, at any distance.

A photo without an embedding (a row of NaN: no face was found) gives no template when it is enrolled; as a mated probe
it is a miss, as a non-mated one it raises no false alarm. All of them stay in the denominators.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.training.error_rates import allowed, just_below
from model.training.template_rules import TemplateRule

FPIRS = (0.01, 0.001)
"""The false positive identification rates that are reported."""

SPLITS = 10
"""How often people are divided into enrolled ones and strangers where photos alone do not divide them."""

LEAST_STRANGERS = 100
"""Photos of strangers that an FPIR of 1 % needs at least."""

_BLOCK_PROBES = 512


@dataclass(frozen=True, slots=True)
class Division:
    """Which photos are enrolled, which are mated probes and which are of strangers; each of shape (N,), bool."""

    enrolled: NDArray[np.bool_]
    mated: NDArray[np.bool_]
    strangers: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Search:
    """What the searches for all probes in one gallery found.

    Args:
        subjects: how many are enrolled.
        templates: how many there are of them.
        hits: distance of each mated probe to its own subject if that is the nearest, else infinite, (M,).
        mated_people: who is on each mated probe, (M,).
        alarms: distance of each stranger's photo to the nearest subject, infinite without a face, (S,).
        strangers: who is on each of them, (S,).
    """

    subjects: int
    templates: int
    hits: NDArray[np.float32]
    mated_people: NDArray[np.int64]
    alarms: NDArray[np.float32]
    strangers: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class IdentificationPoint:
    """The threshold that keeps the false positive identification rate, and what is missed at it."""

    fpir: float
    distance: float
    fnir: float


@dataclass(frozen=True, slots=True)
class Identification:
    """Error rates of searches, the mean over the divisions if there are several; so are the counts, rounded."""

    enrolled_per_subject: int
    rule: str
    divisions: int
    subjects: int
    templates: int
    mated_probes: int
    non_mated_probes: int
    rank_one: float
    points: tuple[IdentificationPoint, ...]


def divide(photos: Sequence[str], subjects: NDArray[np.int64], enrolled: int) -> tuple[Division, ...]:
    """Divide photos into enrolled ones, mated probes and strangers'.

    Who has no more than ``enrolled`` photos is a stranger; of everybody else the first photos are enrolled. Where that
    leaves less than `LEAST_STRANGERS` photos of strangers, half of everybody else are strangers too: `SPLITS` times
    anew, each time with other photos enrolled, drawn by a hash of the names.

    Args:
        photos: names, each once, (N,).
        subjects: who is on each photo, (N,).
        enrolled: photos of a subject that are enrolled.

    Returns:
        One division, or `SPLITS`, or none where nobody can be enrolled or nobody is left as a stranger.
    """
    sizes = np.bincount(subjects)[subjects]
    rich = sizes > enrolled
    people = np.unique(subjects[rich])
    if not len(people):
        return ()
    if int((~rich).sum()) >= LEAST_STRANGERS or len(people) == 1:
        first = rich & (_running_number(subjects, np.arange(len(subjects))) < enrolled)
        return (Division(first, rich & ~first, ~rich),) if (~rich).any() else ()
    names = {int(person): photos[int(np.flatnonzero(subjects == person)[0])] for person in people}
    divisions = []
    for split in range(SPLITS):
        order = sorted(names, key=lambda person: _digest(split, names[person]))
        inside = np.isin(subjects, order[: (len(order) + 1) // 2])
        drawn = np.argsort(np.array([_digest(split, photo) for photo in photos]), kind="stable")
        first = inside & (_running_number(subjects, drawn) < enrolled)
        divisions.append(Division(first, inside & ~first, ~inside))
    return tuple(divisions)


def search(
    gallery: NDArray[np.float32],
    probes: NDArray[np.float32],
    subjects: NDArray[np.int64],
    division: Division,
    rule: TemplateRule,
) -> Search | None:
    """Search for every probe.

    Args:
        gallery: L2-normalised embeddings, (N, D), of which the enrolled ones are taken; a row of NaN has no face.
        probes: embeddings of the same photos or of copies of them, (N, D).
        subjects: who is on each photo, (N,).
        division: of the photos.
        rule: how the templates of a subject make one distance.

    Returns:
        What was found, or None if no enrolled photo has a face.
    """
    enrolled = np.flatnonzero(division.enrolled & np.isfinite(gallery).all(axis=1))
    if not len(enrolled):
        return None
    enrolled = enrolled[np.argsort(subjects[enrolled], kind="stable")]
    names, starts = np.unique(subjects[enrolled], return_index=True)
    templates = gallery[enrolled]
    found = np.isfinite(probes).all(axis=1)

    hits = np.full(len(subjects), np.inf, np.float32)
    for block in _blocks(np.flatnonzero(division.mated & found)):
        distances = rule(probes[block], templates, starts)
        is_own = subjects[block, None] == names[None, :]
        own = np.min(np.where(is_own, distances, np.inf), axis=1)
        other = np.min(np.where(is_own, np.inf, distances), axis=1)
        hits[block] = np.where(own < other, own, np.inf)
    alarms = np.full(len(subjects), np.inf, np.float32)
    for block in _blocks(np.flatnonzero(division.strangers & found)):
        alarms[block] = rule(probes[block], templates, starts).min(axis=1)
    return Search(
        subjects=len(names),
        templates=len(enrolled),
        hits=hits[division.mated],
        mated_people=subjects[division.mated],
        alarms=alarms[division.strangers],
        strangers=subjects[division.strangers],
    )


def identify(searches: Sequence[Search], *, enrolled: int, rule: str, rates: Sequence[float] = FPIRS) -> Identification:
    """Return the error rates of searches.

    Args:
        searches: one for each division of the photos.
        enrolled: photos of a subject that were enrolled.
        rule: its name.
        rates: false positive identification rates; those that allow less than one false alarm are left out.
    """
    supported = [rate for rate in rates if all(allowed(rate, len(found.alarms)) >= 1 for found in searches)]
    thresholds = [[_threshold(found, rate) for found in searches] for rate in supported]
    return Identification(
        enrolled_per_subject=enrolled,
        rule=rule,
        divisions=len(searches),
        subjects=round(_mean([found.subjects for found in searches])),
        templates=round(_mean([found.templates for found in searches])),
        mated_probes=round(_mean([len(found.hits) for found in searches])),
        non_mated_probes=round(_mean([len(found.alarms) for found in searches])),
        rank_one=_mean([float(np.isfinite(found.hits).mean()) for found in searches]),
        points=tuple(
            IdentificationPoint(
                rate,
                _mean(distances),
                _mean([_misses(found, distance) for found, distance in zip(searches, distances, strict=True)]),
            )
            for rate, distances in zip(supported, thresholds, strict=True)
        ),
    )


def _threshold(found: Search, rate: float) -> float:
    rank = allowed(rate, len(found.alarms))
    return just_below(float(np.partition(found.alarms, rank)[rank]) if rank < len(found.alarms) else float("inf"))


def _misses(found: Search, threshold: float) -> float:
    return 1 - int((found.hits <= threshold).sum()) / len(found.hits)


def _running_number(subjects: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each photo how many photos of its subject come before it in an order."""
    by_subject = order[np.argsort(subjects[order], kind="stable")]
    grouped = subjects[by_subject]
    numbers = np.empty(len(subjects), np.int64)
    numbers[by_subject] = np.arange(len(subjects)) - np.searchsorted(grouped, grouped)
    return numbers


def _digest(split: int, name: str) -> str:
    return hashlib.sha256(f"{split} {name}".encode()).hexdigest()


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _blocks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _BLOCK_PROBES] for start in range(0, len(rows), _BLOCK_PROBES)]
