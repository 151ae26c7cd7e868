"""From ranked templates to candidates, and from candidates to a decision: here a name is decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.gallery.index import RankedTemplates, TemplateIndex


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subject with the distance (0 to 2) of its best template."""

    subject_id: int
    template_id: int
    distance: float


class HasDistance(Protocol):
    """Anything that was compared with a probe."""

    @property
    def distance(self) -> float:
        """0 to 2."""


Compared = TypeVar("Compared", bound=HasDistance)


def rank_candidates(ranked: RankedTemplates, subject_of: Mapping[int, int]) -> list[Candidate]:
    """One candidate a subject, nearest first: the first template of a subject in the ranking is its best.

    A template that `subject_of` does not know was removed a moment ago and is passed over.
    """
    best: dict[int, Candidate] = {}
    for template_id, distance in zip(ranked.ids.tolist(), ranked.distances.tolist(), strict=True):
        subject_id = subject_of.get(template_id)
        if subject_id is not None and subject_id not in best:
            best[subject_id] = Candidate(subject_id, template_id, distance)
    return list(best.values())


def find_candidates(
    index: TemplateIndex, subject_of: Mapping[int, int], probes: NDArray[np.float32], *, top_k: int
) -> list[list[Candidate]]:
    """The `top_k` nearest subjects of each probe (Q, D), fewer where the gallery has fewer.

    A subject with many templates may fill the ranking, so the search goes deeper until `top_k` subjects are certain.
    """
    found: list[list[Candidate]] = [[] for _ in probes]
    open_probes = list(range(len(probes)))
    depth = 2 * top_k + 8
    while open_probes:
        ranked = index.search(probes[open_probes], depth)
        for probe, templates in zip(open_probes, ranked, strict=True):
            found[probe] = rank_candidates(templates, subject_of)[:top_k]
        complete = depth >= len(index)
        open_probes = [] if complete else [probe for probe in open_probes if len(found[probe]) < top_k]
        depth *= 4
    return found


def decide(candidates: Sequence[Compared], threshold: float) -> Compared | None:
    """The nearest candidate if it is within the threshold, else None: the probe is unknown."""
    return candidates[0] if candidates and candidates[0].distance <= threshold else None


def distance_between(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Euclidean distance (0 to 2) of two embeddings (D,)."""
    return float(np.linalg.norm(first - second))
