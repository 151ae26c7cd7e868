"""Where a command may write, and where it had better not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.commands.places import check_place
from app.gallery.errors import InvalidInput, StorageUnwritable
from app.gallery.held_file import held
from tests.app.test_cli import Facegallery, facegallery

__all__ = ["facegallery"]  # a fixture
COMMANDS = ("export", "backup")


@pytest.fixture
def with_gallery(facegallery: Facegallery) -> Facegallery:
    """A command line on a database with an empty gallery, a vault and a pepper."""
    program = (
        "from app.commands.migrate import migrate_command\n"
        "from app.commands.options import opened_store\n"
        "migrate_command('head', False)\n"
        "with opened_store() as store:\n"
        "    store.create_gallery('default', extractor='net@1', dimension=8, policy=None)"
    )
    subprocess.run([sys.executable, "-c", program], env=facegallery.environment, check=True)
    return facegallery


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The service's data folder."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("FACEGALLERY_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.usefixtures("data")
def test_no_file_is_put_in_the_place_of_a_pipe_or_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(StorageUnwritable, match="is no file but a pipe or a device; name a file"):
            check_place(place)


def test_no_key_of_the_service_is_written_over(data: Path, tmp_path: Path) -> None:
    for key in ("master.key", "key-pepper"):
        (data / key).write_text("secret")
        (tmp_path / f"{key}.zip").symlink_to(data / key)
        for place in (data / key, tmp_path / f"{key}.zip"):
            with pytest.raises(InvalidInput, match="holds a key of the service; choose another name"):
                check_place(place)


@pytest.mark.usefixtures("data")
def test_a_link_leads_to_where_the_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "other disk").mkdir()
    (tmp_path / "latest.zip").symlink_to(tmp_path / "other disk" / "latest.zip")
    assert check_place(tmp_path / "latest.zip") == (tmp_path / "other disk" / "latest.zip").resolve()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(StorageUnwritable, match="cannot be written: links lead in a circle"):
        check_place(tmp_path / "circle")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_link_stays(with_gallery: Facegallery, tmp_path: Path, command: str) -> None:
    (tmp_path / "latest").symlink_to(tmp_path / "real")
    assert with_gallery(command, tmp_path / "latest").returncode == 0
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "real").read_bytes()[:2] in {b"PK", b"SQ"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_terminated_leaves_nothing_behind(
    with_gallery: Facegallery, tmp_path: Path, command: str
) -> None:
    assert _ended(with_gallery, tmp_path / "out" / "file", command, signal.SIGTERM) == 143
    assert list((tmp_path / "out").iterdir()) == []


def test_of_an_archive_that_is_killed_nothing_is_left(with_gallery: Facegallery, tmp_path: Path) -> None:
    assert _ended(with_gallery, tmp_path / "out" / "a.zip", "export", signal.SIGKILL) == -signal.SIGKILL
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_backup_leaves_the_next_one_removes(with_gallery: Facegallery, tmp_path: Path) -> None:
    assert _ended(with_gallery, tmp_path / "out" / "n.db", "backup", signal.SIGKILL) == -signal.SIGKILL
    left = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert [path.name.startswith("n.db.copying-") for path in left] == [True]
    assert left[0].stat().st_mode & 0o077 == 0
    assert with_gallery("backup", tmp_path / "out" / "n.db").returncode == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["n.db"]


def test_what_a_killed_backup_leaves_under_another_name_is_removed_too(
    with_gallery: Facegallery, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in ("monday.db", "tuesday.db"):
        assert _ended(with_gallery, out / name, "backup", signal.SIGKILL) == -signal.SIGKILL
    for name in ("mine.copying-12345678", ".copying-12345678"):
        (out / name).mkdir()
        (out / name / "letter").touch()
    (out / "a.copying-b.db.copying-12345678").mkdir()
    with held(out / "tuesday.db", refusal="a backup is under way"):
        assert with_gallery("backup", out / "wednesday.db").returncode == 0
        assert len(list(out.glob("monday.db.copying-*"))) == 0
        assert len(list(out.glob("tuesday.db.copying-*"))) == 1
    assert with_gallery("backup", out / "thursday.db").returncode == 0
    assert sorted(path.name for path in out.iterdir()) == [
        ".copying-12345678",
        "mine.copying-12345678",
        "thursday.db",
        "wednesday.db",
    ]


def _ended(facegallery: Facegallery, file: Path, command: str, by: signal.Signals) -> int:
    """Run a command that gets a signal when its draft is written; answers the exit code."""
    file.parent.mkdir(exist_ok=True)
    program = (
        "import os, app.gallery.moving.archive as archive, app.gallery.moving.backup as backup\n"
        "def ended(step):\n"
        "    def run(*given, **named):\n"
        "        done = step(*given, **named)\n"
        f"        os.kill(os.getpid(), {int(by)})\n"
        "        return done\n"
        "    return run\n"
        "archive._write_members, backup._check = ended(archive._write_members), ended(backup._check)\n"
        "from app.cli import main; main()"
    )
    words = [sys.executable, "-c", program, command, str(file)]
    return subprocess.run(words, env=facegallery.environment, check=False, capture_output=True).returncode
