"""Subjects that look like one person, and templates that do not look like their subject.

A subject's place is the L2-normalised mean of its templates, and the distance of two subjects is that of their places:
one photo under a wrong name moves it less than it would move a nearest template.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.gallery.doubles.neighbours import Neighbours
from app.gallery.records import TemplateBlock

_BLOCK = 2048  # templates that are looked at together
_NO_DIRECTION = 1e-4  # length of a sum of unit vectors that cancel each other


@dataclass(frozen=True, slots=True)
class Places:
    """Where subjects are, by the templates that they had when these were read.

    Args:
        ids: of the subjects (S,).
        sums: of their templates (S, D).
        counts: how many templates those are (S,).
        templates: ids of all templates (T,), ascending.
        owners: rows of the subjects that those belong to (T,).
    """

    ids: NDArray[np.int64]
    sums: NDArray[np.float32]
    counts: NDArray[np.int64]
    templates: NDArray[np.int64]
    owners: NDArray[np.intp]

    @property
    def means(self) -> NDArray[np.float32]:
        """The L2-normalised means (S, D); zeros where templates cancel each other."""
        return _normalised(self.sums)

    def rows_of(self, templates: NDArray[np.int64], subjects: NDArray[np.int64]) -> NDArray[np.intp]:
        """Rows (N,) of the subjects of templates (N,); -1 where the sum of that subject is without that template."""
        at, found = np.searchsorted(self.templates, templates), np.full(len(templates), -1, np.intp)
        inside = at < len(self.templates)
        at, owners = at[inside], self.owners[at[inside]]
        known = (self.templates[at] == templates[inside]) & (self.ids[owners] == subjects[inside])
        found[inside] = np.where(known, owners, -1)
        return found


@dataclass(frozen=True, slots=True)
class AlikePair:
    """Two subjects and their distance (0 to 2)."""

    first: int
    second: int
    distance: float


@dataclass(frozen=True, slots=True)
class OutlyingTemplate:
    """A template that does not look like its subject.

    Args:
        template_id: of the template.
        subject_id: to whom it belongs.
        own_distance: to the mean of the subject's other templates, 0 to 2.
        nearest_id: the other subject that it is nearest to; None where there is no other.
        nearest_distance: to that subject's place; 2 where there is no other.
    """

    template_id: int
    subject_id: int
    own_distance: float
    nearest_id: int | None
    nearest_distance: float


def find_places(blocks: Iterable[TemplateBlock], dimension: int) -> Places:
    """The places of all subjects with a template, from a gallery's templates in any order."""
    rows: dict[int, int] = {}
    sums = np.zeros((1024, dimension), np.float32)
    counts = np.zeros(1024, np.int64)
    templates, owners = [np.empty(0, np.int64)], [np.empty(0, np.intp)]
    for block in blocks:
        places = np.array([rows.setdefault(one, len(rows)) for one in block.subject_ids.tolist()], np.intp)
        while len(rows) > len(sums):
            sums = np.concatenate([sums, np.zeros_like(sums)])
            counts = np.concatenate([counts, np.zeros_like(counts)])
        np.add.at(sums, places, block.embeddings)
        np.add.at(counts, places, 1)
        templates.append(block.ids)
        owners.append(places)
    order = np.argsort(all_ids := np.concatenate(templates))
    return Places(
        np.fromiter(rows, np.int64, len(rows)),
        sums[: len(rows)],
        counts[: len(rows)],
        all_ids[order],
        np.concatenate(owners)[order],
    )


def alike_pairs(
    places: Places,
    near: Neighbours,
    threshold: float,
    *,
    most: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[AlikePair]:
    """Pairs of subjects whose distance is at most the threshold (0 to 2), nearest first, `most` of them.

    Args:
        places: of the subjects.
        near: the neighbours of their means.
        threshold: distance, 0 to 2.
        most: how many are listed.
        progress: told the subjects that have been compared.
    """
    first, second = near.pairs(_cosine(threshold), most, progress)
    # Cosines lose the digits of small distances.
    distances = np.linalg.norm(_normalised(places.sums[first]) - _normalised(places.sums[second]), axis=1)
    order = np.lexsort((second, first, distances))
    return [
        AlikePair(int(places.ids[first[one]]), int(places.ids[second[one]]), float(distances[one]))
        for one in order.tolist()
        if distances[one] <= threshold
    ]


def outlying_templates(
    blocks: Iterable[TemplateBlock],
    places: Places,
    near: Neighbours,
    threshold: float,
    *,
    most: int,
    listed: Iterable[AlikePair] = (),
) -> list[OutlyingTemplate]:
    """Templates beyond the threshold from their subject's others, or nearer to another subject; farthest first.

    Of two subjects that are one person half of the templates are nearer to the other, and nothing is wrong with them:
    those within the threshold are left out where the pair is listed.

    Args:
        blocks: the templates of the gallery, a second time; those that came since, or to another subject, are passed
            over: they are not in the sum of their subject's, from which they would be taken.
        places: of the subjects.
        near: the neighbours of their means.
        threshold: distance, 0 to 2.
        most: how many are listed.
        listed: pairs that are told already.

    Returns:
        No more than `most`. A subject's only template cannot lie far from the others.
    """
    doubles = {frozenset((pair.first, pair.second)) for pair in listed}
    found: list[OutlyingTemplate] = []
    for block in blocks:
        for start in range(0, len(block.ids), _BLOCK):
            part = slice(start, start + _BLOCK)
            own = places.rows_of(block.ids[part], block.subject_ids[part])
            there = np.flatnonzero(own >= 0)
            several = there[places.counts[own[there]] > 1]
            if len(several):
                outlying = _outlying(
                    block.ids[part][several], block.embeddings[part][several], own[several], places, near, threshold
                )
                found += [
                    one
                    for one in outlying
                    if one.own_distance > threshold or frozenset((one.subject_id, one.nearest_id)) not in doubles
                ]
        found = sorted(found, key=lambda one: (-one.own_distance, one.template_id))[:most]
    return found


def _outlying(
    ids: NDArray[np.int64],
    embeddings: NDArray[np.float32],
    own: NDArray[np.intp],
    places: Places,
    near: Neighbours,
    threshold: float,
) -> list[OutlyingTemplate]:
    others = _normalised(places.sums[own] - embeddings)
    own_distances = np.linalg.norm(others - embeddings, axis=1)
    nearest = near.nearest_other(embeddings, own)
    there = nearest >= 0
    distances = np.full(len(ids), 2.0, np.float32)
    distances[there] = np.linalg.norm(_normalised(places.sums[nearest[there]]) - embeddings[there], axis=1)
    return [
        OutlyingTemplate(
            int(ids[one]),
            int(places.ids[own[one]]),
            float(own_distances[one]),
            None if nearest[one] < 0 else int(places.ids[nearest[one]]),
            float(distances[one]),
        )
        for one in np.flatnonzero((own_distances > threshold) | (distances < own_distances)).tolist()
    ]


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalised: NDArray[np.float32] = vectors / np.maximum(lengths, _NO_DIRECTION)
    normalised[lengths[:, 0] <= _NO_DIRECTION] = 0
    return normalised


def _cosine(distance: float) -> float:
    # A little below the limit: the exact distance decides in the end.
    return 1 - distance * distance / 2 - 1e-5
