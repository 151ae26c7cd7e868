"""`facegallery check` says what it looked at, and what to do."""

import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from app.commands.check import _explain, check_command
from app.gallery.views.consistency import Consistency, Differing
from tests.app.test_cli import Facegallery, facegallery, people

__all__ = ["facegallery", "people"]  # fixtures


def test_a_gallery_that_is_not_there_is_an_error(facegallery: Facegallery, people: Path) -> None:
    facegallery("migrate")
    facegallery("import", people, "--gallery", "cafe\u0301")
    done = facegallery("check", "--gallery", "typo")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: there is no gallery 'typo'\n")
    for command in ("check", "reindex"):
        (row,) = json.loads(facegallery(command, "--gallery", "cafe\u0301", "--json").stdout)
        assert row["gallery"] == "caf\u00e9"


def test_of_a_gallery_of_another_extractor_the_rows_are_looked_at(
    tmp_path: Path, people: Path, two_extractors: Path
) -> None:
    settings = {"FACEGALLERY_WEIGHTS_DIR": str(two_extractors)}
    facegallery = Facegallery(tmp_path / "gallery", **settings)
    other = Facegallery(tmp_path / "gallery", **settings, FACEGALLERY_EXTRACTOR="other")
    facegallery("migrate")
    facegallery("import", people)
    for words in (("check", "--json"), ("check", "--gallery", "default", "--json")):
        done = other(*words)
        (row,) = json.loads(done.stdout)
        assert (done.returncode, row["templates"], row["compared"]) == (3, 2, False)
        assert done.stderr.startswith("default: belongs to extractor sface@")
        assert facegallery(*words).returncode == 0
    assert "│ default │ 2         │ –       │" in other("check").stdout
    done = other("reindex", "--json")
    assert (done.returncode, done.stdout) == (3, "[]\n")
    assert done.stderr.startswith("default: belongs to extractor sface@")
    assert other("reindex", "--gallery", "default").returncode == 1


def test_templates_of_forgotten_people_are_left_to_the_sweep_and_logged_once(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("migrate")
    (people / "Eileen Collins" / "2.png").rename(people / "2.png")
    (people / "Mirror").mkdir()
    (people / "2.png").rename(people / "Mirror" / "2.png")
    facegallery("import", people)
    facegallery("backup", tmp_path / "copy.db")
    facegallery("forget", "Eileen Collins")
    facegallery("restore", tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "gallery" / "facegallery.db")) as database:
        database.execute("UPDATE template SET embedding = x'01' WHERE id = 2")
        database.commit()
    done = facegallery("check")
    assert done.returncode == 1
    assert [done.stderr.count(event) for event in ("template.forgotten", "template.tampered")] == [1, 1]
    assert done.stderr.splitlines()[-2:] == [
        "default: templates that do not open: 2; enroll or import their photos again, erase them, or restore the vault",
        (
            "default: templates of people who were forgotten and came back with a backup: 1; the next sweep erases "
            "them, or `facegallery retention sweep` now"
        ),
    ]
    assert "1 that a backup had brought back" in facegallery("retention", "sweep").stdout


def leave_a_snapshot(facegallery: Facegallery) -> None:
    program = (
        "from app.main import open_service; from app.settings import Settings\n"
        "service = open_service(Settings()); service.start(); service.close()"
    )
    subprocess.run([sys.executable, "-c", program], env=facegallery.environment, check=True, capture_output=True)


def test_what_differs_is_named(facegallery: Facegallery, people: Path, tmp_path: Path) -> None:
    facegallery("migrate")
    facegallery("import", people)
    leave_a_snapshot(facegallery)
    with closing(sqlite3.connect(tmp_path / "gallery" / "facegallery.db")) as database:
        database.execute("DELETE FROM template WHERE id = 2")
        database.commit()
    done = facegallery("check")
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["default: templates that are in the index and not in SQL: 2", "add --repair to mend it"],
    )
    (row,) = json.loads(facegallery("check", "--json").stdout)
    assert (row["surplus"], row["differing"]) == (1, {"missing": [], "surplus": [2], "moved": [], "changed": []})


def test_it_says_that_it_does_not_see_the_memory_of_others() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for text in (" ".join((check_command.__doc__ or "").split()), page):
        assert re.search("What a process that runs has in its memory (is not seen|it does not see)", text)
        assert "`facegallery reindex` has all of them build" in text


def test_of_many_that_differ_the_first_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    some, first = tuple(range(1, 1001)), ", ".join(map(str, range(1, 21)))
    _explain(Consistency("people", 9999, 20, 5, 1, 5000, (), differing=Differing(some[:20], (), (7,), some)))
    assert capsys.readouterr().err.splitlines() == [
        f"people: templates that are not in the index: {first}",
        "people: templates that are in the index and not in SQL: … (5 in all)",  # it does not name them
        "people: templates that have another subject in the index: 7",
        f"people: templates that have another embedding in the index: {first} … (5000 in all)",
    ]


def test_it_says_whether_there_is_a_snapshot_at_all(facegallery: Facegallery, people: Path) -> None:
    """Without one an index is built from SQL, and only compared with what it comes from."""

    def told() -> tuple[str, int]:
        (row,) = json.loads(facegallery("check", "--json").stdout)
        return facegallery("check").stdout.splitlines()[3].split("│")[-2].strip(), row["snapshots"]

    facegallery("migrate")
    facegallery("import", people)
    assert told() == ("none", 0)
    leave_a_snapshot(facegallery)
    assert told() == ("whole", 1)


def test_a_damaged_snapshot_is_a_line(facegallery: Facegallery, people: Path, tmp_path: Path) -> None:
    facegallery("migrate")
    facegallery("import", people)
    leave_a_snapshot(facegallery)
    (sealed,) = (tmp_path / "gallery" / "index").rglob("owners.i64")
    sealed.write_bytes(bytes(sealed.stat().st_size))
    done = facegallery("check")
    assert done.returncode == 1
    assert "│ 1 damaged │" in done.stdout
    assert done.stderr == "default: snapshot of revision 1: owners.i64 is no sealed file\nadd --repair to mend it\n"


ERASING = (  # a gallery that comes later, when one is looked at
    "from app.gallery.sql.history import GalleryHistory\n"
    "from app.gallery.store import GalleryStore\n"
    "def erasing(looked_at):\n"
    "    def look(history, *given):\n"
    "        store = GalleryStore(history._sessions.engine)\n"
    "        if len(store.galleries()) == 2: store.delete_gallery('zoo')\n"
    "        return looked_at(history, *given)\n"
    "    return look\n"
    "GalleryHistory.{name} = erasing(GalleryHistory.{name})"
)


@pytest.mark.parametrize(("command", "method"), [("check", "template_blocks"), ("reindex", "request_rebuild")])
def test_a_gallery_that_is_erased_meanwhile_does_not_stop_the_others(
    facegallery: Facegallery, people: Path, command: str, method: str
) -> None:
    facegallery("migrate")
    for name in ("default", "zoo"):
        facegallery("import", people, "--gallery", name)
    done = facegallery(command, "--json", before=ERASING.format(name=method))
    assert (done.returncode, [row["gallery"] for row in json.loads(done.stdout)]) == (0, ["default"])
    assert facegallery(command, "--gallery", "zoo").stderr == "error: there is no gallery 'zoo'\n"


def test_many_people_who_came_back_with_a_backup_are_told_apart_in_one_pass(capsys: pytest.CaptureFixture[str]) -> None:
    compared = list[object]()

    class Id(int):
        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return int(self) == other

    forgotten = tuple(Id(number) for number in range(1, 1000))
    _explain(Consistency("people", 0, 0, 0, 0, 0, (), (0, *range(1, 1000)), forgotten))
    assert "that do not open: 0; enroll" in capsys.readouterr().err
    assert len(compared) <= 2000


def test_a_reindex_builds_no_index_that_nobody_searches(facegallery: Facegallery, people: Path) -> None:
    """A service that runs has one already, and there may be no memory for two."""
    facegallery("migrate")
    facegallery("import", people)
    none = "from app.gallery.index import SegmentedIndex\ndef fail(*_): raise MemoryError\nSegmentedIndex.add = fail"
    done = facegallery("reindex", "--json", before=none)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [{"gallery": "default", "revision": 2, "templates": 2}]
    assert facegallery("check").returncode == 0
