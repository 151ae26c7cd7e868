"""From the rows that each part of an index proposes to one ranking with exact distances."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from app.gallery.index.protocol import RankedTemplates
from app.gallery.index.rows import THOROUGH_FACTOR, Rows

_CHUNK = 16_384  # rows that are copied at a time
_MOST_ROWS = 2**20  # proposed for several probes together, some twenty bytes each


def rank(
    parts: Sequence[Rows], probes: NDArray[np.float32], count: int, *, thorough: bool = False
) -> list[RankedTemplates]:
    """The nearest living templates of each probe (Q, D) among all parts; `thorough` as `TemplateIndex.search`.

    Fewer than `count` where there are no more, or where one was removed while the search ran.
    """
    parts = [part for part in parts if part.size > part.dead]
    if not parts or not len(probes) or count < 1:
        return [RankedTemplates(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in probes]
    rows_each = sum(min(part.size, (THOROUGH_FACTOR if thorough else 1) * count) for part in parts)
    together = max(1, _MOST_ROWS // rows_each)
    return [
        ranked
        for first in range(0, len(probes), together)
        for ranked in _rank_together(parts, probes[first : first + together], count, thorough=thorough)
    ]


def _rank_together(
    parts: Sequence[Rows], probes: NDArray[np.float32], count: int, *, thorough: bool
) -> list[RankedTemplates]:
    proposed = [part.nearest(probes, count, thorough=thorough) for part in parts]
    bounds = [0, *accumulate(rows.shape[1] for rows, _ in proposed)]
    rows, squared = proposed[0]
    if len(proposed) > 1:
        rows = np.concatenate([rows for rows, _ in proposed], axis=1)
        squared = np.concatenate([squared for _, squared in proposed], axis=1)
    return [
        _rank_one(parts, bounds, probe, rows[number], squared[number], count) for number, probe in enumerate(probes)
    ]


def _rank_one(
    parts: Sequence[Rows],
    bounds: list[int],
    probe: NDArray[np.float32],
    rows: NDArray[np.int64],
    squared: NDArray[np.float32],
    count: int,
) -> RankedTemplates:
    """The ranking of one probe by the rows (K,) that parts propose, those of one part between two bounds.

    The distances are those that `numpy.linalg.norm` gives, to the last bit, as a comparison of two templates has them:
    a threshold may lie there.
    """
    if count < len(squared):
        chosen = squared.argpartition(count - 1)[:count]
        chosen.sort()
        rows = rows[chosen]
        bounds = [0, *chosen.searchsorted(bounds[1:]).tolist()]
    ids, distances = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    for part, first, last in zip(parts, bounds, bounds[1:], strict=False):
        for start in range(first, last, _CHUNK):
            stop = min(start + _CHUNK, last)
            own = rows[start:stop]
            difference = part.gather(own)
            if part.dead:  # asked after the rows were read, see `Rows`
                difference[~part.alive.take(own)] = np.inf
            difference -= probe
            np.square(difference, out=difference)
            np.sqrt(np.add.reduce(difference, axis=1), out=distances[start:stop])
            ids[start:stop] = part.ids.take(own)
    order = np.lexsort((ids, distances))
    ids, distances = ids[order], distances[order]
    if distances[-1] == np.inf:
        living = distances.searchsorted(np.inf)
        return RankedTemplates(ids[:living], distances[:living])
    return RankedTemplates(ids, distances)
