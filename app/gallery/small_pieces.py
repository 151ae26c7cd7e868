"""Large files beside searches: the kernel is given a little at a time."""

from collections.abc import Iterator

# Bytes of one call. For a mebibyte the kernel takes memory in one piece and copies it in one go: where a virtual
# machine's host gives that memory page by page, it takes tens of milliseconds, in which nobody else has the core.
_PIECE = 2**16


def in_small_pieces(data: bytes | memoryview) -> Iterator[memoryview]:
    """Views of all bytes in their order, each to be written, or read into, by one call before the next is asked for."""
    with memoryview(data) as view:
        for start in range(0, len(view), _PIECE):
            with view[start : start + _PIECE] as piece:
                yield piece
