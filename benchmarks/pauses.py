"""What the machine itself stops: a process on each core that does nothing but read the clock.

    python benchmarks/pauses.py [--seconds 120] [--least 10]

Nothing else should run. A core's gaps are the times between two readings that took longer than `--least` milliseconds;
those that several cores have at the same moment are pauses of the whole machine, as a virtual one has them. How long
the process was on the processor meanwhile is told, too: a pause that the system knows nothing of is counted as work.
"""

import argparse
import multiprocessing
import os
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two readings of the clock: when, how long, and how long on the processor; all in seconds."""

    start: float
    wall: float
    busy: float


def main() -> None:
    """Print the gaps of each core, and which they share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--least", type=float, default=10, help="milliseconds")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    begin = time.monotonic() + 1
    with multiprocessing.Pool(len(cores)) as pool:
        tasks = [(core, begin, arguments.seconds, arguments.least / 1000) for core in cores]
        gaps = dict(zip(cores, pool.starmap(_watch, tasks, chunksize=1), strict=True))
    for core, own in gaps.items():
        print(f"core {core}: {len(own)} gaps in {arguments.seconds:.0f} s")
        others = [gap for other, found in gaps.items() if other != core for gap in found]
        for gap in own:
            shared = any(gap.start < one.start + one.wall and one.start < gap.start + gap.wall for one in others)
            print(
                f"  at {gap.start - begin:6.1f} s: {1000 * gap.wall:5.1f} ms, {1000 * gap.busy:5.1f} of them on the "
                f"processor{', another core, too' if shared else ''}"
            )


def _watch(core: int, begin: float, seconds: float, least: float) -> list[Gap]:
    os.sched_setaffinity(0, {core})
    time.sleep(max(0.0, begin - time.monotonic()))
    gaps, before, busy = [], time.monotonic(), time.thread_time()
    while before < begin + seconds:
        present, used = time.monotonic(), time.thread_time()
        if present - before > least:
            gaps.append(Gap(before, present - before, used - busy))
        before, busy = present, used
    return gaps


if __name__ == "__main__":
    main()
