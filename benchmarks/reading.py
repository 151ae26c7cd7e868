"""How long the machine takes to read the same memory again, beside others that end: no code of the service.

    taskset -c 1 python benchmarks/reading.py [--mib 160] [--seconds 120] [--letting-go 2048]

Reads memory over and over, as a search does that scans the codes of ten million templates, for some seconds alone and
for some more while every ten seconds another process takes memory and ends. A reading that takes 20 ms more than the
median is the machine's doing. A virtual machine may tell its host of memory that it does not use; where the host's
taking it back has all other pages found anew when they are read, each is a pause too short to be seen, and the
machine counts them as processor time of the reader; `withheld.py` sees how fast a core itself is.
"""

import argparse
import mmap
import multiprocessing
import time

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

_STOP = 0.02  # as `index_measure.STOP`
_EVERY = 10  # seconds


def main() -> None:
    """Print the readings that took long, alone and beside the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=160, help="that are read, 16 bytes of each template")
    parser.add_argument("--seconds", type=int, default=120, help="alone, and again beside the other process")
    parser.add_argument("--letting-go", type=int, default=2048, metavar="MIB", help="that each other process had")
    arguments = parser.parse_args()
    memory = _pages(arguments.mib << 20)
    _read(memory, 1)
    _print("alone", _read(memory, arguments.seconds))
    _print("beside others that end", _read(memory, arguments.seconds, arguments.letting_go << 20))


def _pages(size: int) -> NDArray[np.float64]:
    """Memory in pages of the ordinary size, all of them taken."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    pages = np.frombuffer(memory, np.float64)
    pages[:] = 1
    return pages


def _read(memory: NDArray[np.float64], seconds: int, letting_go: int = 0) -> NDArray[np.float64]:
    """Wall and processor seconds of each reading, (N, 2)."""
    times = []
    for second in track(range(seconds), "reading", transient=True):
        if letting_go and second % _EVERY == 0:
            multiprocessing.Process(target=_pages, args=(letting_go,), daemon=True).start()
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            start, used = time.perf_counter(), time.thread_time()
            memory.max()
            times.append((time.perf_counter() - start, time.thread_time() - used))
    return np.array(times)


def _print(name: str, times: NDArray[np.float64]) -> None:
    wall, used = 1000 * times.T
    long = np.flatnonzero(wall > np.median(wall) + 1000 * _STOP)
    long = long[np.argsort(-wall[long])]
    listed = ", ".join(f"{wall[one]:.0f} ({used[one]:.0f})" for one in long[:10])
    print(
        f"{name}: {len(wall):,} readings, median {np.median(wall):.1f} ms, {len(long)} took 20 ms more; "
        f"the longest, in ms of wall (processor) time: {listed or f'{wall.max():.0f}'}"
    )


if __name__ == "__main__":
    main()
