"""Large files beside searches: the kernel is given a little at a time."""

import hashlib
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Bytes of one call. For a mebibyte the kernel takes memory in one piece and copies it in one go: where a virtual
# machine's host gives that memory page by page, it takes tens of milliseconds, in which nobody else has the core.
_PIECE = 2**16


def in_small_pieces(data: bytes | memoryview) -> Iterator[memoryview]:
    """Views of all bytes in their order, each to be written, or read into, by one call before the next is asked for."""
    with memoryview(data) as view:
        for start in range(0, len(view), _PIECE):
            with view[start : start + _PIECE] as piece:
                yield piece


def write_whole(path: Path, *contents: memoryview) -> str:
    """Write bytes into a new file so that they outlast a loss of power; answers the SHA-256 of what was written.

    Raises:
        OSError: it is there already, or the disk does not take it.
    """
    digest, copy = hashlib.sha256(), bytearray()
    with path.open("xb") as file:
        for piece in chain.from_iterable(map(in_small_pieces, contents)):
            copy[:] = piece  # whoever has the bytes may write over them meanwhile
            digest.update(copy)
            file.write(copy)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def read_whole(path: Path) -> NDArray[np.uint8]:
    """All bytes of a file.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    with path.open("rb") as file:
        data = np.empty(os.fstat(file.fileno()).st_size, np.uint8)
        read = sum(map(file.readinto, in_small_pieces(data.data)))
    return data[:read]
