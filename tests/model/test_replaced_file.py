import errno
import os
from pathlib import Path

import pytest

from model.replaced_file import flush_folder, replaced_file


def test_the_draft_takes_the_place_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    with replaced_file(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"

    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with replaced_file(path) as draft:
            draft.write_text("ne")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that flushes no folders")
def test_a_folder_that_cannot_be_flushed_is_passed_over() -> None:
    handle = os.open("/proc/self", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(handle)
    os.close(handle)
    flush_folder(Path("/proc/self"))


def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        flush_folder(tmp_path)
