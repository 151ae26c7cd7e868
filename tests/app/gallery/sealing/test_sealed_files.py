import os
import stat
from pathlib import Path

import pytest

from app.gallery.errors import FileTampered, StorageUnwritable
from app.gallery.sealing.sealed_files import open_file, seal_file, try_file

KEY = bytes(range(32))
PLACE = b"gallery 3/sface@0ba9fbfa/revision 17/vectors"
CHUNK = 2**20


def sealed(folder: Path, content: bytes) -> Path:
    (folder / "plain").write_bytes(content)
    seal_file(folder / "plain", folder / "sealed", KEY, PLACE)
    return folder / "sealed"


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
def test_a_file_comes_back_byte_for_byte_for_its_owner_alone(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    file = sealed(tmp_path, content)
    try_file(file, KEY, PLACE)
    open_file(file, tmp_path / "opened", KEY, PLACE)
    assert (tmp_path / "opened").read_bytes() == content
    assert size < 16 or content[:64] not in file.read_bytes()
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("opened", "sealed")} == {0o600}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["opened", "plain", "sealed"]


def refused(folder: Path, content: bytes, *, key: bytes = KEY, place: bytes = PLACE) -> bool:
    (folder / "changed").write_bytes(content)
    with pytest.raises(FileTampered):
        open_file(folder / "changed", folder / "opened", key, place)
    with pytest.raises(FileTampered):
        try_file(folder / "changed", key, place)
    return not (folder / "opened").exists() and len(list(folder.iterdir())) == 3


def test_another_key_and_another_place_open_nothing(tmp_path: Path) -> None:
    content = sealed(tmp_path, b"vectors" * 1000).read_bytes()
    assert refused(tmp_path, content, key=bytes(32))
    assert refused(tmp_path, content, place=PLACE.replace(b"17", b"18"))


def test_changed_reordered_cut_and_added_chunks_are_found(tmp_path: Path) -> None:
    content = sealed(tmp_path, os.urandom(3 * CHUNK)).read_bytes()
    header, body = content[:23], content[23:]
    chunks = [body[start : start + CHUNK + 16] for start in range(0, len(body), CHUNK + 16)]
    shorter = header[:15] + (2 * CHUNK).to_bytes(8, "big")
    for changed in (
        header + chunks[1] + chunks[0] + chunks[2],
        header + chunks[0] + chunks[0] + chunks[2],
        header + chunks[0] + chunks[1],
        shorter + chunks[0] + chunks[1],
        shorter + chunks[0] + chunks[2],
        content + b"x",
        content[:-1],
        content[:10],
        b"",
        b"x" + content[1:],
        content[:9] + bytes([content[9] ^ 1]) + content[10:],
        content[:-1] + bytes([content[-1] ^ 1]),
    ):
        assert refused(tmp_path, changed)


def test_an_empty_file_is_sealed_too(tmp_path: Path) -> None:
    content = sealed(tmp_path, b"").read_bytes()
    assert refused(tmp_path, content[:-1] + bytes([content[-1] ^ 1]))


def test_the_same_file_is_sealed_anew_each_time(tmp_path: Path) -> None:
    assert sealed(tmp_path, b"vectors").read_bytes() != sealed(tmp_path, b"vectors").read_bytes()


def test_no_room_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    file = sealed(tmp_path, b"vectors")
    with pytest.raises(StorageUnwritable, match="cannot be opened into"):
        open_file(file, tmp_path / "missing" / "opened", KEY, PLACE)
    with pytest.raises(StorageUnwritable, match="cannot be sealed"):
        seal_file(tmp_path / "plain", tmp_path / "missing" / "sealed", KEY, PLACE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "sealed"]
