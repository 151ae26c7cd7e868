"""What `facegallery duplicates` finds by inverted lists, beside comparing all with all.

    taskset -c 1 python benchmarks/doubles.py [--people 333333] [--threshold 0.86]

People are drawn as `index_data.py` says, three templates each; a twentieth of them is enrolled twice. Times are of the
processor.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from index_data import Population
from numpy.typing import NDArray

from app.gallery.doubles.neighbours import neighbours_of

_AT_ONCE = 20_000
_ALL = 10**6  # pairs that are listed
Result = TypeVar("Result")


def main() -> None:
    """Print times, and the share of pairs that lists find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=333_333)
    parser.add_argument("--threshold", type=float, default=0.86, help="distance of one person")
    arguments = parser.parse_args()
    means, least = _means(arguments.people), 1 - arguments.threshold**2 / 2
    print(f"{len(means)} subjects", flush=True)
    exact = neighbours_of(means, exact_up_to=len(means))
    first, second = _timed("pairs by comparing all", lambda: exact.pairs(least, _ALL))
    lists = _timed("making lists", lambda: neighbours_of(means, exact_up_to=0))
    found = _timed("pairs by lists", lambda: lists.pairs(least, _ALL))
    there = {tuple(pair) for pair in np.stack(found, 1).tolist()}
    order = np.argsort(-np.einsum("ij,ij->i", means[first], means[second]))
    pairs = [tuple(pair) for pair in np.stack((first, second), 1)[order].tolist()]
    for name, wanted in (("all", pairs), ("the nearest 1,000", pairs[:1000]), ("the nearest 100", pairs[:100])):
        print(f"found of {name}: {sum(pair in there for pair in wanted)} of {len(wanted)}")


def _means(people: int) -> NDArray[np.float32]:
    population, sums = Population.fitted(), []
    for start in range(0, people, _AT_ONCE):
        drawn = population.draw(min(_AT_ONCE, people - start), 6, seed=100 + start)
        sums += [drawn[:, :3].sum(axis=1), drawn[: len(drawn) // 20, 3:].sum(axis=1)]
    means = np.concatenate(sums)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.random.default_rng(0).shuffle(means)
    return np.ascontiguousarray(means, np.float32)


def _timed(name: str, work: Callable[[], Result]) -> Result:
    start = time.process_time()
    result = work()
    print(f"{name}: {time.process_time() - start:.1f} s", flush=True)
    return result


if __name__ == "__main__":
    main()
