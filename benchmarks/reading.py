"""How long the machine takes to read the same memory again, beside one that lets memory go: no code of the service.

    taskset -c 1 python benchmarks/reading.py [--mib 160] [--seconds 120] [--letting-go 1024]

Reads memory over and over, as a search does that scans the codes of ten million templates, for some seconds alone and
for some more while another process takes memory and lets it go every ten seconds, in pieces of four megabytes with a
pause after each, as the index does. A reading that takes 20 ms more than the median is the machine's doing: a virtual
one's host may take its pages away and bring them back one by one when they are read, which `pauses.py` cannot see as
each of them is a pause too short for it. The processor time says which it is: the machine counts what it did there as
the reader's own.
"""

import argparse
import mmap
import multiprocessing
import time
from multiprocessing.synchronize import Event

import numpy as np
from rich.progress import track

_STOP = 0.02  # as `index_measure.STOP`
_PIECE, _PAUSE = 4 << 20, 0.001  # as `app/gallery/index/memory.py`
_EVERY = 10.0


def main() -> None:
    """Print the readings that took long, alone and beside the other process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=160, help="that are read, 16 bytes of each template")
    parser.add_argument("--seconds", type=int, default=120, help="alone, and again beside the other process")
    parser.add_argument("--letting-go", type=int, default=1024, metavar="MIB", help="that the other process lets go")
    arguments = parser.parse_args()
    memory = np.ones(arguments.mib << 17, np.float64)
    _read(memory, 1)
    _print("alone", _read(memory, arguments.seconds))
    done = multiprocessing.Event()
    other = multiprocessing.Process(target=_let_go, args=(arguments.letting_go << 20, done), daemon=True)
    other.start()
    _print("beside one that lets memory go", _read(memory, arguments.seconds))
    done.set()
    other.join()


def _read(memory: np.ndarray, seconds: int) -> np.ndarray:
    """Wall and processor seconds of each reading, (N, 2)."""
    times = []
    for _ in track(range(seconds), "reading", transient=True):
        end = time.perf_counter() + 1
        while time.perf_counter() < end:
            start, used = time.perf_counter(), time.thread_time()
            memory.max()
            times.append((time.perf_counter() - start, time.thread_time() - used))
    return np.array(times)


def _print(name: str, times: np.ndarray) -> None:
    wall, used = 1000 * times.T
    long = np.flatnonzero(wall > np.median(wall) + 1000 * _STOP)
    long = long[np.argsort(-wall[long])]
    listed = ", ".join(f"{wall[one]:.0f} ({used[one]:.0f})" for one in long[:10])
    print(
        f"{name}: {len(wall):,} readings, median {np.median(wall):.1f} ms, {len(long)} took 20 ms more; "
        f"the longest, in ms of wall (processor) time: {listed or f'{wall.max():.0f}'}"
    )


def _let_go(size: int, done: Event) -> None:
    while not done.wait(_EVERY):
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1
        for start in range(0, size, _PIECE):
            memory.madvise(mmap.MADV_DONTNEED, start, min(_PIECE, size - start))
            time.sleep(_PAUSE)


if __name__ == "__main__":
    main()
