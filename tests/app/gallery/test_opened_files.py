import mmap
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.gallery.errors import FileTampered, StorageUnwritable
from app.gallery.opened_files import open_shared, private_folder
from app.gallery.sealed_files import seal_file

KEY = bytes(range(32))
OTHER_PROCESS = """
import sys
from pathlib import Path
from app.gallery.opened_files import open_shared
opened = open_shared(Path(sys.argv[1]), key=bytes(range(32)), associated=b"place", folder=Path(sys.argv[2]))
print(opened.path.name, opened.path.stat().st_ino, flush=True)
if sys.stdin.readline() == "close\\n":
    opened.close()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return private_folder(tmp_path / "memory")


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "plain").write_bytes(b"vectors" * 1000)
    seal_file(tmp_path / "plain", tmp_path / "sealed", KEY, b"place")
    return tmp_path / "sealed"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def start(sealed: Path, folder: Path) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_PROCESS, sealed, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def end(process: subprocess.Popen[str], word: str) -> None:
    process.communicate(f"{word}\n", timeout=60)
    assert process.returncode == 0


def test_two_processes_share_one_file_and_the_last_removes_it(sealed: Path, folder: Path) -> None:
    with open_shared(sealed, key=KEY, associated=b"place", folder=folder) as opened:
        assert opened.path.read_bytes() == b"vectors" * 1000
        assert stat.S_IMODE(opened.path.stat().st_mode) == 0o600
        other, seen = start(sealed, folder)
        assert seen == [opened.path.name, str(opened.path.stat().st_ino)]
        end(other, "close")
        assert files(folder) == [opened.path.name]
    assert files(folder) == []


def test_a_mapping_outlives_the_file(sealed: Path, folder: Path) -> None:
    opened = open_shared(sealed, key=KEY, associated=b"place", folder=folder)
    with opened.path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    opened.close()
    opened.close()
    assert mapped[:7] == b"vectors"
    mapped.close()


def test_what_a_process_that_died_left_is_removed_at_the_next_start(sealed: Path, folder: Path) -> None:
    with open_shared(sealed, key=KEY, associated=b"place", folder=folder) as held:
        (folder / "left behind").write_bytes(b"vectors")
        (folder / ".draft").write_bytes(b"vect")
        private_folder(folder)
        assert files(folder) == [held.path.name]
    dying, _ = start(sealed, folder)
    end(dying, "die")
    assert len(files(folder)) == 1
    private_folder(folder)
    assert files(folder) == []


def test_a_tampered_file_leaves_nothing_behind(sealed: Path, folder: Path) -> None:
    sealed.write_bytes(sealed.read_bytes()[:-1] + b"x")
    with pytest.raises(FileTampered):
        open_shared(sealed, key=KEY, associated=b"place", folder=folder)
    with pytest.raises(FileTampered):
        open_shared(sealed, key=bytes(32), associated=b"place", folder=folder)
    assert files(folder) == []


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o701])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(StorageUnwritable, match="nobody else may enter"):
        private_folder(tmp_path / "open")


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageUnwritable, match="nobody else may enter"):
        private_folder(tmp_path / "link")


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(StorageUnwritable, match="nobody else may enter"):
        private_folder(tmp_path / "theirs")
