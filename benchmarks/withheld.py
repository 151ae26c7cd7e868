"""What the machine itself stops: a watcher on each core, which goes before all other processes and reads the clock.

    python benchmarks/pauses.py [--seconds 120]

A watcher asks to be woken each half of a millisecond. Its priority is a real-time one, so that no program's own code
can be what keeps it waiting: time that it misses is time that the machine did not give to this core (a virtual one's
host gives it to others, too), or that the kernel spent on a system call or a page fault. Where the kernel is built so
that it does not interrupt those (CONFIG_PREEMPT_NONE), a program that writes files makes pauses of some milliseconds
itself. A watcher needs the right to such a priority, as root has.
"""

import argparse
import ctypes
import gc
import multiprocessing
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

_PERIOD = 0.0005
LEAST = 0.0005
"""Seconds that a watcher is woken too late, from which it counts them as a pause."""
_CURRENT_AND_FUTURE = 3  # pages, of mlockall(2)

Pauses = NDArray[np.float64]


def main() -> None:
    """Print the pauses of each core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=120)
    seconds = parser.parse_args().seconds
    with watched() as found:
        for _ in track(range(seconds), "watching"):
            time.sleep(1)
    for core, pauses in found.items():
        milliseconds = np.sort(1000 * (pauses[:, 1] - pauses[:, 0]))[::-1]
        longest = ", ".join(f"{value:.1f}" for value in milliseconds[:10])
        print(
            f"core {core}: {len(pauses)} pauses of {1000 * LEAST:.1f} ms or more in {seconds} s, "
            f"{(milliseconds > 20).sum()} of more than 20 ms; the longest, in ms: {longest or 'none'}"
        )


@contextmanager
def watched(cores: Collection[int] = ()) -> Iterator[dict[int, Pauses]]:
    """Watch some cores, or those that this process may use; at the end the dictionary gets the pauses of each.

    An array (P, 2) for each core: start and end, in seconds of `time.monotonic`, which is `time.perf_counter` on Linux.
    The dictionary stays empty where a process may not have a real-time priority.
    """
    found: dict[int, Pauses] = {}
    context = multiprocessing.get_context("spawn")
    watchers = []
    for core in sorted(cores or os.sched_getaffinity(0)):
        here, there = context.Pipe()
        process = context.Process(target=_watch, args=(core, there), daemon=True)
        process.start()
        there.close()  # so that one that dies is noticed
        watchers.append((core, here, process))
    for _, here, _ in watchers:
        here.recv()  # watching, or not able to
    try:
        yield found
    finally:
        for core, here, process in watchers:
            here.send(None)
            pauses = here.recv()
            process.join()
            if pauses is not None:
                found[core] = pauses


def missed(starts: NDArray[np.float64], ends: NDArray[np.float64], pauses: Pauses) -> NDArray[np.float64]:
    """Seconds of each span of time, from `starts` (S,) to `ends` (S,), that were in a pause; (S,)."""
    seconds = np.zeros(len(starts))
    for start, end in pauses:
        seconds += np.clip(np.minimum(ends, end) - np.maximum(starts, start), 0, None)
    return seconds


def _watch(core: int, pipe: Connection) -> None:
    os.sched_setaffinity(0, {core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pipe.send(False)
        pipe.recv()
        pipe.send(None)
        return
    gc.disable()
    ctypes.CDLL(None).mlockall(_CURRENT_AND_FUTURE)
    pipe.send(True)
    pauses, before = [], time.monotonic()
    while not pipe.poll(0):
        time.sleep(_PERIOD)
        present = time.monotonic()
        if present - before - _PERIOD >= LEAST:
            pauses.append((before + _PERIOD, present))
        before = present
    pipe.recv()
    pipe.send(np.array(pauses, np.float64).reshape(-1, 2))


if __name__ == "__main__":
    main()
