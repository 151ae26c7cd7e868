"""Large files, a little at a time."""

import io
from pathlib import Path

import pytest

from app.gallery.small_pieces import in_small_pieces, read_whole

LARGE = 300_001


def test_all_bytes_come_once_and_in_order_and_few_at_a_time() -> None:
    data = bytes(number * number % 251 for number in range(LARGE))
    sizes, written = [], io.BytesIO()
    for piece in in_small_pieces(data):
        sizes.append(len(piece))
        written.write(piece)
    assert written.getvalue() == data
    assert max(sizes) == 65_536
    assert len(sizes) == 5


def test_what_is_read_into_the_pieces_is_in_the_whole() -> None:
    source, room = io.BytesIO(bytes(range(256)) * 1000), bytearray(LARGE)
    assert sum(map(source.readinto, in_small_pieces(memoryview(room)))) == 256_000
    assert room == bytes(range(256)) * 1000 + bytes(LARGE - 256_000)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537])
def test_the_last_piece_is_as_long_as_what_is_left(size: int) -> None:
    assert [len(piece) for piece in in_small_pieces(bytes(size))] == [
        min(size - start, 65_536) for start in range(0, size, 65_536)
    ]


@pytest.mark.parametrize("size", [0, 1, 65_536, LARGE])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    content = bytes(number % 253 for number in range(size))
    (tmp_path / "file").write_bytes(content)
    assert read_whole(tmp_path / "file").tobytes() == content
