"""What goes on in an index while searches are timed: writers, and all that upkeep does."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from index_data import TEMPLATES
from index_engines import Ids, Vectors

from app.gallery.index import SegmentedIndex

REST_SECONDS = 30.0
"""After all changes, before searches beside nothing: the machine may deal with what the changes let go of."""
_ROUNDS, _ONE_ROUND_ABOVE = 5, 2_000_000  # a round at ten million takes ten minutes

Timed = TypeVar("Timed")


def beside_all_changes(
    index: SegmentedIndex, templates: Vectors, fresh: Vectors, timed: Callable[[Callable[[], bool]], Timed]
) -> list[Timed]:
    """What is timed while subjects come and go, and everything that an index does in the background is done.

    In several rounds: a stop that the index makes comes again in each.

    Args:
        index: of the templates, whose ids are their places.
        templates: (N, D), which are all in the index at the end.
        fresh: others, (M, D).
        timed: searches for as long as the function that it gets says so.
    """
    found, first = list[Timed](), len(templates)
    for _ in range(_ROUNDS if len(templates) <= _ONE_ROUND_ABOVE else 1):
        first += 10**6
        with tempfile.TemporaryDirectory() as folder, beside(partial(writing, index, fresh, first)):
            removed = np.random.default_rng(first).choice(len(templates), len(templates) // 4, replace=False)
            work = threading.Thread(target=_upkeep, args=(index, fresh, first + 5 * 10**5, removed, Path(folder)))
            work.start()
            found.append(timed(work.is_alive))
            work.join()
        index.add(removed, templates[removed])
        while index.maintain():
            pass
    return found


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do some work in a thread, which ends it when it is told to."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def writing(index: SegmentedIndex, fresh: Vectors, first: int, done: threading.Event) -> None:
    """A subject with three templates enrolled every 20 ms, and three templates removed every 40 ms."""
    random, turn = np.random.default_rng(first), 0
    while not done.wait(0.02):
        ids = np.arange(first + TEMPLATES * turn, first + TEMPLATES * (turn + 1))
        index.add(ids, fresh[ids % len(fresh)])
        if turn % 2:
            index.remove(random.integers(first + TEMPLATES * turn, size=TEMPLATES))
        turn += 1


def _upkeep(index: SegmentedIndex, fresh: Vectors, first: int, removed: Ids, folder: Path) -> None:
    """New templates to be sealed, a fourth of all removed and compacted, a snapshot and the switch to its files."""
    step_back()
    for start in range(0, 5000, 500):
        index.add(np.arange(first + start, first + start + 500), fresh[start : start + 500])
        time.sleep(0.001)
    while index.maintain():
        pass
    for start in range(0, len(removed), 1000):
        index.remove(removed[start : start + 1000])
        time.sleep(0.001)
    while index.maintain():
        pass
    index.save(folder)


def step_back() -> None:
    """Let other threads of the process go first, as the service's upkeep does."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
