"""Rankings of more rows than are looked at in one piece."""

from typing import Any

import numpy as np
import pytest

from app.gallery.index.rows import Rows
from app.gallery.index.search import rank
from tests.app.gallery.index.test_segmented import compressed, parts, strangers


@pytest.mark.parametrize(("precision", "count"), [(np.float32, 20_000), (np.float32, 40_000), (np.float16, 40_000)])
def test_more_rows_than_one_piece_are_ranked_whole(precision: Any, count: int) -> None:
    vectors, (probe,) = strangers(40_000, seed=0).astype(precision), strangers(1, seed=1)
    rows = Rows(vectors, np.arange(40_000), np.ones(40_000, np.bool_), None, size=40_000)
    distances = np.linalg.norm(vectors.astype(np.float32) - probe, axis=1)
    order = np.lexsort((np.arange(40_000), distances))
    (found,) = rank([rows], probe[None], count)
    np.testing.assert_array_equal(found.ids, order[:count])
    np.testing.assert_array_equal(found.distances, distances[order[:count]])


def test_probes_that_are_too_many_to_be_ranked_together_are_ranked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    index, probes = compressed(strangers(2000, seed=0)), strangers(7, seed=1)
    together = index.search(probes, 10, thorough=True)
    monkeypatch.setattr("app.gallery.index.search._MOST_ROWS", 3 * 400)
    lengths, nearest = list[int](), Rows.nearest

    def watched(rows: Rows, some: Any, *asked: Any, **how: Any) -> Any:
        lengths.append(len(some))
        return nearest(rows, some, *asked, **how)

    monkeypatch.setattr(Rows, "nearest", watched)
    for one, other in zip(index.search(probes, 10, thorough=True), together, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.distances, other.distances)
    assert lengths == [3, 3, 1]


def test_codes_propose_at_least_two_hundred_rows() -> None:
    (segment,) = parts(compressed(strangers(2000, seed=0))).segments
    rows, _ = segment.rows.nearest(strangers(1, seed=1), 1)
    assert rows.shape == (1, 200)
