import os
import shutil
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from hashlib import blake2b
from pathlib import Path

import pytest

from app.gallery.errors import StorageUnwritable
from app.gallery.held_file import held
from app.gallery.snapshots import private_folder
from app.gallery.snapshots.private_folder import PrivateFolder, private_base

OTHER_PROCESS = """
import sys
from pathlib import Path
from app.gallery.snapshots.private_folder import PrivateFolder
folder = PrivateFolder(Path(sys.argv[1]), "mine")
print(sorted(path.name for path in folder.path.iterdir()), flush=True)
if sys.stdin.readline() == "close\\n":
    folder.close()
"""

MINE, ANOTHER = (blake2b(name, digest_size=16).hexdigest() for name in (b"mine", b"another"))


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
    assert not (base / MINE).exists()


def test_nothing_is_made_before_it_is_asked_for(base: Path) -> None:
    PrivateFolder(base, "mine").close()
    assert list(base.iterdir()) == []


def test_a_base_that_is_gone_does_not_stop_the_end(base: Path) -> None:
    folder = PrivateFolder(base, "mine")
    assert folder.path.is_dir()
    shutil.rmtree(base)
    folder.close()
    assert not base.exists()


def test_what_a_process_that_died_left_is_removed_by_the_next(base: Path) -> None:
    dying, _ = start(base)
    (base / MINE / "vectors").write_bytes(b"vectors")
    end(dying, "die")
    assert (base / MINE / "vectors").exists()
    folder = PrivateFolder(base, "mine")
    assert list(folder.path.iterdir()) == []
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


def test_what_the_service_did_not_make_stays(base: Path) -> None:
    for name in ("other-program", "F" * 32, "f" * 33, "f" * 31):
        (base / name).mkdir()
        (base / name / "precious").write_text("x")
    (base / "facegallery.db").write_text("x")
    (base / ANOTHER).write_text("a file, not a folder")
    (base / ("e" * 32)).symlink_to(base / "other-program")
    (base / ("d" * 32)).mkdir()  # left by a process that died
    before = {path.relative_to(base) for path in base.rglob("*")}
    folder = PrivateFolder(base, "mine")
    assert folder.path.is_dir()
    folder.close()
    after = {path.relative_to(base) for path in base.rglob("*")}
    assert before - after == {Path("d" * 32)}


def test_a_process_that_hangs_with_the_base_stops_nobody_for_ever(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_folder, "_PATIENCE", 0.2)
    monkeypatch.setattr(private_folder, "_PATIENCE_AT_THE_END", 0.2)
    mine = PrivateFolder(base, "mine")
    assert mine.path.is_dir()
    with held(base / "facegallery", refusal="never"):
        with pytest.raises(StorageUnwritable, match="another process has held"):
            _ = PrivateFolder(base, "another").path
        mine.close()
    assert (base / MINE).is_dir()
    PrivateFolder(base, "another").path.rmdir()
    assert not (base / MINE).exists()


def test_a_given_folder_gets_one_of_the_services_own(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir(mode=0o700)
    (tmp_path / "user" / "bus").mkdir()
    assert private_base(tmp_path / "user") == tmp_path / "user" / "facegallery"
    (tmp_path / "user" / "facegallery").chmod(0o755)
    with pytest.raises(StorageUnwritable, match="nobody else may enter"):
        private_base(tmp_path / "user")


@pytest.mark.parametrize("given", ["data", ".", "data/memory", "link", "data/../data", "data/index/memory"])
def test_a_given_folder_that_is_holds_or_lies_in_the_data_folder_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "data" / "index").mkdir(parents=True, mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(StorageUnwritable, match="must lie apart from"):
        private_base(tmp_path / given, apart_from=(tmp_path / "data", tmp_path / "data" / "index"))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["index"]
    assert private_base(tmp_path / "data-memory", apart_from=(tmp_path / "data",)).is_dir()


def test_threads_that_take_hold_at_once_leave_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked, real = PrivateFolder(base, "mine"), threading.Semaphore(0), private_folder._locked

    def locked(base: Path, patience: float) -> AbstractContextManager[None]:
        asked.release()
        return real(base, patience)

    with ThreadPoolExecutor(2) as pool:
        with monkeypatch.context() as patched, held(base / "facegallery", refusal="never"):
            patched.setattr(private_folder, "_locked", locked)
            paths = [pool.submit(lambda: folder.path) for _ in range(2)]
            assert asked.acquire(timeout=60)
            asked.acquire(timeout=0.5)  # of the other thread, if it does not wait for the first
        assert [path.result(60).name for path in paths] == [MINE, MINE]
    folder.close()
    assert not (base / MINE).exists()


def test_what_a_thread_that_was_left_behind_writes_meanwhile_does_not_stay(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = PrivateFolder(base, "mine"), os.rmdir
    place = folder.path

    def rmdir(path: str, **options: int) -> None:
        with suppress(OSError):
            (place / "vectors").write_bytes(b"vectors")
        real(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", rmdir)
        folder.close()
    assert list(base.iterdir()) == []
