"""What the machine withholds from a core: a watcher that goes before all programs reads the clock and calculates.

    python benchmarks/withheld.py [--seconds 60] [--plot FILE.png]

A watcher asks to be woken each three milliseconds, with a real-time priority, so that no program's own code can be what
keeps it waiting. Time by which it is woken too late is withheld: the host gave the core to others, or the kernel spent
it on a system call or a page fault (where it is built so that it does not interrupt those, CONFIG_PREEMPT_NONE, a
program that writes files makes pauses of some milliseconds itself). Then the watcher does a fixed calculation in
registers, which no other program's use of memory makes slower. Where that takes more than twice as long as usual, so
does everything else on that core, and the missing share of its speed is withheld, too: a host may interrupt a core so
often that it gets little done, without ever stopping it for long. A watcher needs the right to such a priority, as root
has.
"""

import argparse
import ctypes
import gc
import hashlib
import multiprocessing
import os
import time
from array import array
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

_PERIOD = 0.003
_LATE = 0.0005
_ROUNDS = 200  # of the calculation, an eighth of a millisecond
_SLOW = 0.5  # of the usual speed
_SMOOTHED = 5  # samples of which the middle one tells the speed
_CURRENT_AND_FUTURE = 3  # pages, of mlockall(2)


@dataclass(frozen=True, slots=True)
class Watched:
    """What a watcher saw of one core.

    Args:
        moments: ends of its calculations (S,), in seconds of `time.monotonic`, which is `time.perf_counter` on Linux.
        late: seconds by which it was woken too late before each, (S,).
        speeds: of its calculations, where the usual one is 1, (S,).
        lost: seconds that were withheld from the first moment to each, (S,).
    """

    moments: NDArray[np.float64]
    late: NDArray[np.float64]
    speeds: NDArray[np.float64]
    lost: NDArray[np.float64]

    @classmethod
    def of(cls, woken: NDArray[np.float64], done: NDArray[np.float64]) -> "Watched":
        """From the moments (S,) at which a watcher was woken and at which its calculations ended."""
        seconds = done - woken
        padded = np.pad(seconds, _SMOOTHED // 2, mode="edge")
        middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHED), axis=1)
        speeds = np.minimum(np.median(seconds) / middle, 1.0)
        late = np.concatenate([[0.0], np.clip(woken[1:] - done[:-1] - _PERIOD, 0, None)])
        late[late < _LATE] = 0
        rest = np.diff(done, prepend=done[:1]) - late
        lost = late + np.where(speeds < _SLOW, 1 - speeds, 0) * np.clip(rest, 0, None)
        return cls(done, late, speeds, np.cumsum(lost))

    def withheld(self, marks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds that were withheld between each two of the moments (S + 1,) that follow each other; (S,)."""
        return np.diff(np.interp(marks, self.moments, self.lost))


def main() -> None:
    """Print what was withheld from each core, and plot the speeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--plot", type=Path, help="picture of the last ten seconds")
    arguments = parser.parse_args()
    with watching() as found:
        for _ in track(range(arguments.seconds), "watching"):
            time.sleep(1)
    for core, seen in found.items():
        slow = seen.speeds < _SLOW
        times = int((np.diff(slow.astype(np.int8), prepend=0) == 1).sum())
        length = 1000 * np.diff(seen.moments, prepend=seen.moments[:1])[slow].sum() / max(1, times)
        share = seen.lost[-1] / (seen.moments[-1] - seen.moments[0])
        print(
            f"core {core}: {100 * share:.1f} % was withheld; slow {times} times, "
            f"{length:.0f} ms each, at {seen.speeds[slow].mean() if times else 1:.2f} of its "
            f"speed; {(seen.late > 0).sum()} pauses, the longest {1000 * seen.late.max():.1f} ms"
        )
    if arguments.plot:
        _plot(found, arguments.plot)


def _plot(found: Mapping[int, Watched], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(found), figsize=(9, 1.2 + 1.6 * len(found)), layout="constrained", squeeze=False)
    for (core, seen), one in zip(found.items(), axes[:, 0], strict=True):
        last = seen.moments > seen.moments[-1] - 10
        one.plot(seen.moments[last] - seen.moments[last][0], seen.speeds[last], linewidth=0.9)
        one.set(ylim=(0, 1.05), ylabel=f"core {core}: speed")
        one.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    plt.close(figure)


@contextmanager
def watching(cores: Collection[int] = ()) -> Iterator[dict[int, Watched]]:
    """Watch some cores, or those that this process may use; at the end the dictionary tells what was seen of each.

    It stays empty where a process may not have a real-time priority.
    """
    found: dict[int, Watched] = {}
    context = multiprocessing.get_context("spawn")
    ended, watchers = context.Event(), []
    for core in sorted(cores or os.sched_getaffinity(0)):
        here, there = context.Pipe()
        process = context.Process(target=_watch, args=(core, there, ended), daemon=True)
        process.start()
        there.close()  # so that one that dies is noticed
        watchers.append((core, here, process))
    for _, here, _ in watchers:
        here.recv()  # watching, or not able to
    try:
        yield found
    finally:
        ended.set()
        for core, here, process in watchers:
            samples = here.recv()
            process.join()
            if samples is not None:
                found[core] = Watched.of(*samples)


def _watch(core: int, pipe: Connection, ended: Event) -> None:
    os.sched_setaffinity(0, {core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pipe.send(None)
        ended.wait()
        pipe.send(None)
        return
    gc.disable()
    ctypes.CDLL(None).mlockall(_CURRENT_AND_FUTURE)
    pipe.send(None)
    woken, done = array("d"), array("d")
    while not ended.is_set():
        time.sleep(_PERIOD)
        woken.append(time.monotonic())
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", _ROUNDS)
        done.append(time.monotonic())
    pipe.send((np.array(woken), np.array(done)))


if __name__ == "__main__":
    main()
