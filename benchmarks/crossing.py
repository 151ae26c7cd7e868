"""Searches while `auto` goes from exact to compressed: trained, coded and switched in the background.

    taskset -c 1 python benchmarks/crossing.py [--rounds 20]

Each round has a new index of just under 20,000 templates, which others enroll across the limit while it is searched;
and as many searches of one that does not change. Printed: searches, the median, the longest, and stops, which took 20
ms more than the median.
"""

import argparse
import gc
import threading
import time
from collections.abc import Callable
from functools import partial

import faiss
import numpy as np
from index_changes import step_back
from index_data import Population
from index_engines import DIMENSION
from index_measure import COUNT, STOP
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from app.gallery.index import COMPRESS_FROM, SegmentedIndex, use_no_huge_pages

_LESS, _MORE, _PROBES = 10, 100, 1000


def main() -> None:
    """Print a row of a Markdown table for the crossings and one for the control."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    use_no_huge_pages()  # as the service does
    limit = COMPRESS_FROM["auto"]
    assert limit is not None
    drawn = Population.fitted().draw(limit + _MORE + _PROBES, 1, seed=1)[:, 0]
    enrolled, probes = drawn[:-_PROBES], np.ascontiguousarray(drawn[-_PROBES:])
    gc.freeze()  # as the service does
    crossing, nothing = list[float](), list[float]()
    for _ in track(range(arguments.rounds), "crossing", console=Console(stderr=True)):
        index = SegmentedIndex(DIMENSION, compress_from=limit)
        index.add(np.arange(limit - _LESS), enrolled[: limit - _LESS])
        while index.maintain():
            pass
        times = _searched(index, probes, partial(_cross, index, enrolled))
        assert index.compressed
        crossing += times
        nothing += _searched(index, probes, partial(time.sleep, sum(times)))
    print("| beside | searches | p50 ms | longest ms | stops |\n| --- |" + 4 * " ---: |")
    for name, seconds in (("the change", crossing), ("nothing", nothing)):
        times_of = 1e3 * np.array(seconds)
        stops = (times_of > np.median(times_of) + 1e3 * STOP).sum()
        print(f"| {name} | {len(times_of):,} | {np.median(times_of):.2f} | {times_of.max():.1f} | {stops} |")


def _searched(index: SegmentedIndex, probes: NDArray[np.float32], work: Callable[[], object]) -> list[float]:
    """Seconds of each search while a thread does its work."""
    worker, seconds = threading.Thread(target=work), list[float]()
    worker.start()
    while worker.is_alive():
        start = time.perf_counter()
        index.search(probes[len(seconds) % len(probes)][None], COUNT)
        seconds.append(time.perf_counter() - start)
    worker.join()
    return seconds


def _cross(index: SegmentedIndex, enrolled: NDArray[np.float32]) -> None:
    step_back()
    for number in range(len(index), len(enrolled)):
        index.add(np.array([number]), enrolled[number][None])
    while index.maintain():
        pass


if __name__ == "__main__":
    main()
