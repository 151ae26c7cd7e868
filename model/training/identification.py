"""One-to-many error rates of open-set identification: FPIR, FNIR, rank one (ISO/IEC 19795-1, NIST FRTE 1:N).

- FPIR: share of non-mated probes (strangers) with at least one candidate at or below the threshold.
- FNIR: share of mated probes whose own subject is not the nearest candidate, or is nearest but above the threshold.
  It is NIST's FNIR(N, R = 1, T): a right name at rank two, or above the threshold, is a miss. A tie for rank one
  counts against the subject.
- Rank one: share of mated probes whose own subject is the nearest candidate, at any distance.

A photo without an embedding (a row of NaN: no face was found) gives no template when it is enrolled; as a mated probe
it is a miss, as a non-mated one it raises no false alarm. All of them stay in the denominators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.training.error_rates import allowed, distances_between, just_below

FPIRS = (0.01, 0.001)
"""The false positive identification rates that are reported."""

_BLOCK_PROBES = 512


class TemplateRule(Protocol):
    """How the templates of a subject make one distance."""

    def __call__(
        self, probes: NDArray[np.float32], templates: NDArray[np.float32], starts: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the distances, shape (P, S), of P probes to S subjects; s owns the templates from ``starts[s]`` on."""


@dataclass(frozen=True, slots=True)
class IdentificationPoint:
    """The threshold that keeps the false positive identification rate, and what is missed at it."""

    fpir: float
    distance: float
    fnir: float


@dataclass(frozen=True, slots=True)
class Identification:
    """Error rates of searches in one gallery."""

    enrolled_per_subject: int
    subjects: int
    templates: int
    mated_probes: int
    non_mated_probes: int
    rank_one: float
    points: tuple[IdentificationPoint, ...]


def best_template(
    probes: NDArray[np.float32], templates: NDArray[np.float32], starts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Let the nearest template speak for its subject."""
    return np.minimum.reduceat(distances_between(probes, templates), starts, axis=1)


def identify_open_set(
    embeddings: NDArray[np.float32],
    subjects: NDArray[np.int64],
    *,
    enrolled: int,
    rule: TemplateRule = best_template,
    rates: Sequence[float] = FPIRS,
) -> Identification | None:
    """Enroll the first photos of everybody who has more than that, and search for all other photos.

    Args:
        embeddings: L2-normalised, shape (N, D), in the order of the photos; a row of NaN is a photo without a face.
        subjects: who is on each photo, shape (N,).
        enrolled: how many photos of a subject are enrolled; who has no more than that is a stranger with all their
            photos.
        rule: how the templates of a subject make one distance.
        rates: false positive identification rates; those that allow less than one false alarm are left out.

    Returns:
        The error rates, or None where nobody can be enrolled or nobody is a stranger.
    """
    sizes = np.bincount(subjects)[subjects]
    nth_photo = _running_number(subjects)
    in_gallery = (sizes > enrolled) & (nth_photo < enrolled)
    mated = (sizes > enrolled) & ~in_gallery
    non_mated = sizes <= enrolled
    found = np.isfinite(embeddings).all(axis=1)
    if not in_gallery[found].any() or not non_mated.any():
        return None

    gallery = np.flatnonzero(in_gallery & found)
    gallery = gallery[np.argsort(subjects[gallery], kind="stable")]
    names, starts = np.unique(subjects[gallery], return_index=True)
    templates = embeddings[gallery]

    own, other = [], []
    for block in _blocks(np.flatnonzero(mated & found)):
        distances = rule(embeddings[block], templates, starts)
        is_own = subjects[block, None] == names[None, :]
        own.append(np.min(np.where(is_own, distances, np.inf), axis=1))
        other.append(np.min(np.where(is_own, np.inf, distances), axis=1))
    own_distances = np.concatenate(own) if own else np.empty(0, np.float32)
    other_distances = np.concatenate(other) if other else np.empty(0, np.float32)
    hits = own_distances[own_distances < other_distances]

    nearest = [
        rule(embeddings[block], templates, starts).min(axis=1) for block in _blocks(np.flatnonzero(non_mated & found))
    ]
    alarms = np.sort(np.concatenate(nearest)) if nearest else np.empty(0, np.float32)

    mated_probes, non_mated_probes = int(mated.sum()), int(non_mated.sum())
    points = []
    for rate in rates:
        rank = allowed(rate, non_mated_probes)
        if rank < 1:
            continue
        threshold = just_below(float(alarms[rank]) if rank < len(alarms) else float("inf"))
        points.append(IdentificationPoint(rate, threshold, 1 - int((hits <= threshold).sum()) / mated_probes))
    return Identification(
        enrolled_per_subject=enrolled,
        subjects=len(names),
        templates=len(gallery),
        mated_probes=mated_probes,
        non_mated_probes=non_mated_probes,
        rank_one=len(hits) / mated_probes,
        points=tuple(points),
    )


def _running_number(subjects: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each photo how many earlier photos show its subject."""
    order = np.argsort(subjects, kind="stable")
    first = np.searchsorted(subjects[order], subjects[order])
    numbers = np.empty(len(subjects), np.int64)
    numbers[order] = np.arange(len(subjects)) - first
    return numbers


def _blocks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _BLOCK_PROBES] for start in range(0, len(rows), _BLOCK_PROBES)]
