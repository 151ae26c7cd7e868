"""Memory in which the system does not stop searches: embeddings that go back in pieces, and no huge pages.

Whoever lets a gigabyte go at once holds up all others: it takes a tenth of a second, with the interpreter's lock held.
So a thread gives the memory of a segment's embeddings back bit by bit when nobody uses them any more.
"""

import ctypes
import mmap
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_SET_THP_DISABLE = 41  # <linux/prctl.h>
_PIECE = 4 << 20  # bytes; the kernel takes half a millisecond for so many
_PAUSE = 0.001  # seconds between two


def use_no_huge_pages() -> bool:
    """Keep all memory of this process, and of those that it begins, in pages of the ordinary size, from now on.

    Every ten seconds Linux copies some of a process's pages together to huge ones of two megabytes, eight one after the
    other, and whoever meets a page that is not in its place waits: a search of ten million templates met some each time
    (docs/searching.md). numpy asks for huge pages for each large array, and so, where one lies there, for the whole
    heap, codes included; `/sys/kernel/mm/transparent_hugepage/enabled` says whether all memory has them anyway. And a
    virtual machine that reports freed memory to its host has huge pages taken back in bursts.

    Returns:
        Whether there are none now; a system other than Linux knows no such call.
    """
    control = getattr(ctypes.CDLL(None), "prctl", None)
    return control is not None and control(_SET_THP_DISABLE, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0


def room(rows: int, dimension: int, dtype: DTypeLike) -> NDArray[Any]:
    """An array (rows, dimension), rows > 0, of zeros."""
    size = rows * dimension * np.dtype(dtype).itemsize
    memory = _InPieces(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype).reshape(rows, dimension)


def mapped(path: Path, rows: int, dimension: int, dtype: DTypeLike) -> NDArray[Any]:
    """A file as an array (rows, dimension), rows > 0; what is written to it stays in this process.

    Raises:
        OSError: the file is not there, or cannot be mapped.
        ValueError: it is shorter.
    """
    size = rows * dimension * np.dtype(dtype).itemsize
    with path.open("rb") as file:
        memory = _InPieces(file.fileno(), size, access=mmap.ACCESS_COPY)
    return np.frombuffer(memory, dtype).reshape(rows, dimension)


class _InPieces(mmap.mmap):
    # A default, as modules have lost their names when the last objects go at the interpreter's end. Then a thread that
    # is begun never runs, and whoever begins it waits for ever; the memory goes with the process.
    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not _ending() and len(self) > _PIECE:
            threading.Thread(target=_give_back, args=(self,), name="memory", daemon=True).start()


def _give_back(memory: mmap.mmap) -> None:
    size = len(memory)
    for start in range(0, size, _PIECE):
        memory.madvise(mmap.MADV_DONTNEED, start, min(_PIECE, size - start))
        time.sleep(_PAUSE)
