import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.gallery.errors import StorageUnwritable
from app.gallery.private_folder import PrivateFolder, private_base

OTHER_PROCESS = """
import sys
from pathlib import Path
from app.gallery.private_folder import PrivateFolder, private_base
folder = PrivateFolder(private_base(Path(sys.argv[1])), "mine")
print(sorted(path.name for path in folder.path.iterdir()), flush=True)
if sys.stdin.readline() == "close\\n":
    folder.close()
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return private_base(tmp_path / "memory")


def start(base: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", OTHER_PROCESS, str(base)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str], word: str) -> None:
    process.communicate(f"{word}\n", timeout=60)
    assert process.returncode == 0


def test_processes_share_a_folder_and_the_last_removes_it(base: Path) -> None:
    folder = PrivateFolder(base, "mine")
    (folder.path / "vectors").write_bytes(b"vectors")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    other, seen = start(base)
    assert seen == "['vectors']"
    end(other, "close")
    assert (folder.path / "vectors").exists()
    folder.close()
    folder.close()
    assert not (base / "mine").exists()


def test_nothing_is_made_before_it_is_asked_for(base: Path) -> None:
    PrivateFolder(base, "mine").close()
    assert list(base.iterdir()) == []


def test_what_a_process_that_died_left_is_removed_by_the_next(base: Path) -> None:
    dying, _ = start(base)
    (base / "mine" / "vectors").write_bytes(b"vectors")
    end(dying, "die")
    (base / "stray").write_bytes(b"vectors")
    assert (base / "mine" / "vectors").exists()
    folder = PrivateFolder(base, "mine")
    assert list(folder.path.iterdir()) == []
    assert not (base / "stray").exists()
    other = PrivateFolder(base, "another")
    assert other.path.exists()
    assert folder.path.exists()  # held: nobody removes it
    other.close()
    folder.close()


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o701])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(StorageUnwritable, match="nobody else may enter"):
        private_base(tmp_path / "open")


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageUnwritable, match="nobody else may enter"):
        private_base(tmp_path / "link")


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(StorageUnwritable, match="nobody else may enter"):
        private_base(tmp_path / "theirs")
