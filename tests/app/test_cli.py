import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


class Facegallery:
    """The command line, on a gallery of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.environment = os.environ | {"FACEGALLERY_DATA_DIR": str(folder)} | environment

    def __call__(self, *words: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command, after lines of Python that break something of it."""
        command = [sys.executable, "-c", f"{before}\nfrom app.cli import main; main()", *map(str, words)]
        return subprocess.run(command, env=self.environment, check=False, capture_output=True, text=True)


@pytest.fixture
def facegallery(tmp_path: Path) -> Facegallery:
    return Facegallery(tmp_path / "gallery")


@pytest.fixture
def people(tmp_path: Path, astronaut: NDArray[np.uint8]) -> Path:
    folder = tmp_path / "people"
    (folder / "Eileen Collins").mkdir(parents=True)
    Image.fromarray(astronaut).save(folder / "Eileen Collins" / "1.png")
    Image.fromarray(np.ascontiguousarray(astronaut[:, ::-1])).save(folder / "Eileen Collins" / "2.png")
    return folder


def test_import_a_folder_identify_a_photo_and_rebuild(facegallery: Facegallery, people: Path) -> None:
    assert facegallery("migrate").returncode == 0
    first = facegallery("import", people, "--json")
    assert (first.returncode, json.loads(first.stdout)["added"]) == (0, 2)
    again = facegallery("import", people, "--json")
    assert {name: json.loads(again.stdout)[name] for name in ("added", "passed_over")} == {"added": 0, "passed_over": 2}
    (face,) = json.loads(facegallery("identify", people / "Eileen Collins" / "1.png", "--json").stdout)
    assert face["subject"] == "Eileen Collins"
    table = facegallery("identify", people / "Eileen Collins" / "1.png").stdout
    assert "Eileen" in table
    (row,) = json.loads(facegallery("reindex", "--json").stdout)
    assert (row["gallery"], row["templates"]) == ("default", 2)


def test_refused_photos_are_told_in_the_exit_code(facegallery: Facegallery, people: Path) -> None:
    facegallery("migrate")
    (people / "Nobody").mkdir()
    (people / "Nobody" / "1.jpg").write_text("no photo")
    done = facegallery("import", people)
    assert done.returncode == 3
    assert "refused Nobody/1.jpg: the file is not a photo" in done.stderr
    assert facegallery("identify", people / "Nobody" / "1.jpg").returncode == 3
    done = facegallery("identify", people / "Eileen Collins" / "1.png", "nofile.jpg", people, "--json")
    assert (done.returncode, len(json.loads(done.stdout))) == (3, 1)
    assert "nofile.jpg: the file cannot be read: No such file or directory" in done.stderr
    assert f"{people}: the file cannot be read: Is a directory" in done.stderr


def test_without_tables_one_line_says_what_to_do(facegallery: Facegallery, people: Path) -> None:
    done = facegallery("import", people)
    assert done.returncode == 1
    assert "run `facegallery migrate`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_migration_says_which_version_the_tables_have(facegallery: Facegallery) -> None:
    for words, said in (
        ((), r"the tables are of version 00\d\d"),
        ((), r"the tables are of version 00\d\d"),
        (("0001", "--yes"), "the tables are of version 0001"),
        (("base", "--yes"), "there are no tables any more"),
    ):
        done = facegallery("migrate", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(f"{said}\n", done.stdout)


def test_the_version_of_the_program_is_told(facegallery: Facegallery) -> None:
    done = facegallery("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"facegallery {version('facegallery')}\n", "")


def test_wrong_words_are_a_usage_error(facegallery: Facegallery, tmp_path: Path) -> None:
    assert facegallery("import", tmp_path / "missing").returncode == 2
    assert facegallery("frobnicate").returncode == 2
