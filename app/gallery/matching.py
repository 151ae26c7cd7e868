"""From ranked templates to candidates, and from candidates to a decision: here a name is decided."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.gallery.index import HALF_PRECISION, RankedTemplates, TemplateIndex
from app.gallery.views.owners import UNKNOWN, TemplateOwners

MatchingRule = Literal["best", "mean", "both"]
"""How the templates of a subject make one distance; see `subject_distances`."""

DEFAULT_RULE: MatchingRule = "both"
"""Why not another stands in docs/decisions.md."""

_LEAST_SHORTLIST = 32
_SHORTLIST_FACTOR = 4
_NO_DIRECTION = 1e-4  # length of a sum of unit vectors that cancel each other


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subject with its nearest template and its distance (0 to 2) by the rule that was searched with."""

    subject_id: int
    template_id: int
    distance: float


@dataclass(frozen=True, slots=True)
class _Rough:
    """A candidate by its templates in half precision, and how far its distance in float32 may be from that."""

    candidate: Candidate
    templates: Sequence[int]
    moved: float

    @property
    def least(self) -> float:
        """The distance in float32 at least."""
        return self.candidate.distance - self.moved

    @property
    def most(self) -> float:
        """The distance in float32 at most."""
        return self.candidate.distance + self.moved


VectorsOf = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""The embeddings (N, D), float32, of template ids (N,), a row of NaN for an unknown one."""

_Owned = Mapping[Candidate, Sequence[int]]  # ids of the templates of each candidate


class HasDistance(Protocol):
    """Anything that was compared with a probe."""

    @property
    def distance(self) -> float:
        """0 to 2."""


Compared = TypeVar("Compared", bound=HasDistance)


def subject_distances(
    probe: NDArray[np.float32], templates: NDArray[np.float32], starts: NDArray[np.intp], rule: MatchingRule
) -> NDArray[np.float32]:
    """The distance of a probe to each subject, made of the distances to its templates.

    Args:
        probe: embedding of shape (D,).
        templates: embeddings of shape (T, D), those of one subject side by side.
        starts: row of each subject's first template, shape (S,), ascending from 0.
        rule: `best`, the nearest template; `mean`, the L2-normalised mean of the templates; `both`, the mean of the
            two cosines, given as the distance √(2 - 2·cos), which is the root of the mean of both squared distances.

    Returns:
        Distances of shape (S,), float32, 0 to 2. A subject with one template, or whose templates cancel each other so
        that their mean has no direction, has its nearest template's by any rule.
    """
    best = np.minimum.reduceat(np.linalg.norm(templates - probe, axis=1), starts)
    if rule == "best":
        return best
    sums = np.add.reduceat(templates, starts, axis=0)
    lengths = np.linalg.norm(sums, axis=1)
    has_mean = (np.diff(starts, append=len(templates)) > 1) & (lengths > _NO_DIRECTION)
    mean = best.copy()
    mean[has_mean] = np.linalg.norm(sums[has_mean] / lengths[has_mean, None] - probe, axis=1)
    if rule == "mean":
        return mean
    return np.where(has_mean, np.sqrt((best * best + mean * mean) / 2), best)


def rank_candidates(ranked: RankedTemplates, owners: TemplateOwners) -> list[Candidate]:
    """One candidate a subject, nearest template first: the first template of a subject in the ranking is its best.

    A template whose owner is not known was removed a moment ago and is passed over.
    """
    best: dict[int, Candidate] = {}
    subjects = owners.subjects_of(ranked.ids)
    ranking = zip(subjects.tolist(), ranked.ids.tolist(), ranked.distances.tolist(), strict=True)
    for subject_id, template_id, distance in ranking:
        if subject_id != UNKNOWN and subject_id not in best:
            best[subject_id] = Candidate(subject_id, template_id, distance)
    return list(best.values())


def find_candidates(
    index: TemplateIndex,
    owners: TemplateOwners,
    probes: NDArray[np.float32],
    *,
    top_k: int,
    rule: MatchingRule = DEFAULT_RULE,
    thorough: bool = False,
    limit: float | None = None,
    exact_vectors: VectorsOf | None = None,
) -> list[list[Candidate]]:
    """The `top_k` nearest subjects of each probe (Q, D) by the rule, fewer where the gallery has fewer.

    Distances are those of float32 embeddings: the index's own, or, where the index keeps them in half precision, those
    of `exact_vectors`, which is asked for those subjects alone about whom half precision leaves a doubt. Who is further
    than `limit` beyond doubt is left out then.

    A `thorough` search of the index is wanted where subjects beyond the default policy's threshold matter.

    `best` is as exact as the index. For the other rules the subjects with the nearest templates, 4·`top_k` and no fewer
    than 32, are compared by the rule and ranked anew. A subject further back can have been missed, but only one whose
    photos are much unlike each other: let b > 0 be the cosine of its nearest template and R, 0 to 1, the length of the
    plain mean of its templates. The cosine of the normalised mean is (mean of the cosines) / R, so at most b / R, and
    that of `both` at most b · (1 + 1/R) / 2; where b ≤ 0, both are at most b. A subject that the rule would have named
    at a threshold of cosine t therefore has b ≥ t · R (`mean`) or b ≥ 2t / (1 + 1/R) (`both`), and is missed only if 32
    others have a template as near as that. A miss never names anybody whose own distance is beyond the threshold.
    """
    if rule == "best" and exact_vectors is None:
        return _nearest_subjects(index, owners, probes, count=top_k, thorough=thorough)
    count = max(_SHORTLIST_FACTOR * top_k, _LEAST_SHORTLIST)
    shortlists = _nearest_subjects(index, owners, probes, count=count, thorough=thorough)
    owned = [{one: owners.templates_of(one.subject_id) for one in shortlist} for shortlist in shortlists]
    pairs = list(zip(probes, owned, strict=True))
    if exact_vectors is None:
        return [_ranked_by_rule(index.vectors, probe, own, rule)[:top_k] for probe, own in pairs]
    rough = [_roughly_compared(index.vectors, probe, own, rule) for probe, own in pairs]
    return [
        _ranked_exactly(exact_vectors, probe, own, rule, top_k=top_k, limit=limit)
        for probe, own in zip(probes, rough, strict=True)
    ]


def _nearest_subjects(
    index: TemplateIndex, owners: TemplateOwners, probes: NDArray[np.float32], *, count: int, thorough: bool
) -> list[list[Candidate]]:
    """The subjects of the nearest templates.

    A subject with many templates may fill the ranking, so the search goes deeper until `count` subjects are certain, or
    all that there are.
    """
    found: list[list[Candidate]] = [[] for _ in probes]
    open_probes = list(range(len(probes)))
    depth, wanted = 2 * count + 8, min(count, owners.subjects)
    while open_probes:
        ranked = index.search(probes[open_probes], depth, thorough=thorough)
        for probe, templates in zip(open_probes, ranked, strict=True):
            found[probe] = rank_candidates(templates, owners)[:count]
        open_probes = [probe for probe in open_probes if len(found[probe]) < wanted]
        if open_probes and depth >= len(index):  # asked last: an engine may take long over it
            break
        depth *= 4
    return found


def _ranked_by_rule(
    vectors_of: VectorsOf, probe: NDArray[np.float32], shortlist: _Owned, rule: MatchingRule
) -> list[Candidate]:
    """The shortlist by the rule's distances; who has one template keeps the index's distance."""
    several = {one: own for one, own in shortlist.items() if len(own) > 1}
    if not several:
        return list(shortlist)
    ranked = {one.subject_id: one for one in shortlist}
    ranked |= {one.subject_id: one for one in _compared(vectors_of, probe, several, rule)}
    return sorted(ranked.values(), key=_rank)


def _ranked_exactly(
    vectors_of: VectorsOf,
    probe: NDArray[np.float32],
    rough: list[_Rough],
    rule: MatchingRule,
    *,
    top_k: int,
    limit: float | None,
) -> list[Candidate]:
    """The `top_k` nearest by exact distances, which are asked for those alone whom the rough ones do not rule out."""
    known: list[Candidate] = []
    unknown = [one for one in rough if limit is None or one.least <= limit]
    while unknown:
        most = sorted([one.distance for one in known] + [one.most for one in unknown])
        bound = most[top_k - 1] if top_k < len(most) else np.inf
        asked = {one.candidate: one.templates for one in unknown if one.least <= bound}
        if not asked:
            break
        unknown = [one for one in unknown if one.least > bound]
        # Whose templates were removed a moment ago leaves the place to somebody who was not asked for yet.
        known += _compared(vectors_of, probe, asked, rule)
    return sorted(known, key=_rank)[:top_k]


def _compared(
    vectors_of: VectorsOf, probe: NDArray[np.float32], candidates: _Owned, rule: MatchingRule
) -> list[Candidate]:
    """Candidates with their distances by the rule, but for those whose templates were all removed a moment ago."""
    there, vectors, starts = _vectors_there(vectors_of, candidates)
    if not there:
        return []
    distances = subject_distances(probe, vectors, starts, rule).tolist()
    return [
        Candidate(one.subject_id, one.template_id, distance) for one, distance in zip(there, distances, strict=True)
    ]


def _roughly_compared(
    vectors_of: VectorsOf, probe: NDArray[np.float32], candidates: _Owned, rule: MatchingRule
) -> list[_Rough]:
    """As `_compared`, of embeddings in half precision.

    Where each template is moved by at most δ, the normalised mean is moved by at most 2δ/R, R being the length of the
    plain mean (1 where the templates are all alike), and so is what is made of it and of the nearest template.

    Who was found a moment ago and has no templates now is not ruled out: that one may have been merged into somebody
    who was not found. The template is there still then, and who names the candidates finds that this one is gone.
    """
    there, vectors, starts = _vectors_there(vectors_of, candidates)
    gone = candidates.keys() - set(there)
    rough = [_Rough(one, candidates[one] or (one.template_id,), np.inf) for one in gone]
    if there:
        distances = subject_distances(probe, vectors, starts, rule)
        lengths = np.linalg.norm(np.add.reduceat(vectors, starts, axis=0), axis=1)
        moved = 2 * HALF_PRECISION / np.maximum(lengths / np.diff(starts, append=len(vectors)), HALF_PRECISION)
        rough += [
            _Rough(Candidate(one.subject_id, one.template_id, distance), candidates[one], by)
            for one, distance, by in zip(there, distances.tolist(), moved.tolist(), strict=True)
        ]
    return rough


def _vectors_there(
    vectors_of: VectorsOf, candidates: _Owned
) -> tuple[list[Candidate], NDArray[np.float32], NDArray[np.intp]]:
    """Candidates that have templates still, those (T, D) side by side, and the row of each candidate's first one."""
    wanted = [template_id for own in candidates.values() for template_id in own]
    if not wanted:
        return [], np.empty((0, 0), np.float32), np.empty(0, np.intp)
    vectors = vectors_of(np.array(wanted, np.int64))
    present = ~np.isnan(vectors[:, 0])  # a template may have been removed a moment ago
    rows = np.repeat(np.arange(len(candidates)), [len(own) for own in candidates.values()])[present]
    there, starts = np.unique(rows, return_index=True)
    all_of = list(candidates)
    return [all_of[row] for row in there.tolist()], vectors[present], starts


def _rank(candidate: Candidate) -> tuple[float, int]:
    return candidate.distance, candidate.template_id


def decide(candidates: Sequence[Compared], threshold: float) -> Compared | None:
    """The nearest candidate if it is within the threshold, else None: the probe is unknown."""
    return candidates[0] if candidates and candidates[0].distance <= threshold else None


def distance_between(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Euclidean distance (0 to 2) of two embeddings (D,)."""
    return float(np.linalg.norm(first - second))
