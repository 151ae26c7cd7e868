"""From the rows that each part of an index proposes to one ranking with exact distances."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.gallery.index.protocol import RankedTemplates
from app.gallery.index.rows import Rows

_CHUNK = 16_384  # rows that are copied at a time


def rank(parts: Sequence[Rows], probes: NDArray[np.float32], count: int) -> list[RankedTemplates]:
    """The nearest living templates of each probe (Q, D) among all parts.

    Fewer than `count` where there are no more, or where one was removed while the search ran.
    """
    parts = [part for part in parts if part.living]
    if not parts or not len(probes) or count < 1:
        return [RankedTemplates(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in probes]
    proposed = [part.nearest(probes, count) for part in parts]
    starts = np.cumsum([0, *(rows.shape[1] for rows, _ in proposed)])
    rows = np.concatenate([rows for rows, _ in proposed], axis=1)
    squared = np.concatenate([squared for _, squared in proposed], axis=1)
    return [_rank_one(parts, starts, probe, *found, count) for probe, *found in zip(probes, rows, squared, strict=True)]


def _rank_one(
    parts: Sequence[Rows],
    starts: NDArray[np.intp],
    probe: NDArray[np.float32],
    rows: NDArray[np.int64],
    squared: NDArray[np.float32],
    count: int,
) -> RankedTemplates:
    """The ranking of one probe.

    The distances are those that `numpy.linalg.norm` gives, to the last bit, as a comparison of two templates has them:
    a threshold may lie there.
    """
    chosen = np.arange(len(squared))
    if count < len(squared):
        chosen = np.sort(squared.argpartition(count - 1)[:count])
    ids, distances = np.empty(len(chosen), np.int64), np.empty(len(chosen), np.float32)
    bounds = np.searchsorted(chosen, starts).tolist()
    for part, first, last in zip(parts, bounds, bounds[1:], strict=False):
        for start in range(first, last, _CHUNK):
            stop = min(start + _CHUNK, last)
            own = rows[chosen[start:stop]]
            difference = part.gather(own)
            if part.dead:  # asked after the rows were read, see `Rows`
                difference[~part.alive.take(own)] = np.inf
            difference -= probe
            np.square(difference, out=difference)
            np.sqrt(difference.sum(axis=1), out=distances[start:stop])
            part.ids.take(own, out=ids[start:stop])
    order = np.lexsort((ids, distances))
    order = order[: np.searchsorted(distances[order], np.inf)]
    return RankedTemplates(ids[order], distances[order])
