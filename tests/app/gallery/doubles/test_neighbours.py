"""Inverted lists find the neighbours that comparing everything with everything finds."""

import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.doubles.neighbours import neighbours_of


@pytest.fixture(scope="module")
def means() -> NDArray[np.float32]:
    """6,000 unit vectors in 32 dimensions; the last 500 lie near the first 500."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(6000, 32))
    vectors[-500:] = vectors[:500] + 0.4 * random.normal(size=(500, 32))
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def test_lists_find_nearly_all_pairs_each_once_and_no_others(means: NDArray[np.float32]) -> None:
    exact, lists = neighbours_of(means), neighbours_of(means, exact_up_to=0)
    wanted, found = ({tuple(pair) for pair in np.stack(one.pairs(0.75, 10_000), 1).tolist()} for one in (exact, lists))
    assert len(wanted) > 450
    assert found <= wanted
    assert len(found) > 0.97 * len(wanted)
    first, second = lists.pairs(0.75, 10_000)
    assert len(first) == len(found)
    assert (first < second).all()


@pytest.mark.parametrize("exact_up_to", [10_000, 0])
def test_it_is_told_how_many_have_been_compared(means: NDArray[np.float32], exact_up_to: int) -> None:
    told = list[int]()
    neighbours_of(means, exact_up_to=exact_up_to).pairs(0.75, 40, told.append)
    assert len(told) > 1
    assert sum(told) == len(means)


def test_the_nearest_pairs_are_kept(means: NDArray[np.float32]) -> None:
    wanted, found = (
        {tuple(pair) for pair in np.stack(neighbours_of(means, exact_up_to=most).pairs(0.0, 40), 1).tolist()}
        for most in (10_000, 0)
    )
    assert len(found) == len(wanted) == 40
    assert len(found & wanted) >= 38


def test_lists_find_the_nearest_other(means: NDArray[np.float32]) -> None:
    own = np.arange(0, 500)
    wanted, found = (neighbours_of(means, exact_up_to=most).nearest_other(means[own], own) for most in (10_000, 0))
    assert (found != own).all()
    assert np.mean(found == wanted) > 0.97
    assert np.mean(wanted == own + 5500) > 0.9


def test_an_only_one_has_no_other() -> None:
    alone = np.eye(4, dtype=np.float32)[:1]
    assert neighbours_of(alone).nearest_other(alone, np.array([0])).tolist() == [-1]
    assert [len(rows) for rows in neighbours_of(alone).pairs(-1.0, 9)] == [0, 0]
