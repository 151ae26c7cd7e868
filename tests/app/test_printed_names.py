"""Names that users chose are printed as they are."""

import shutil
from pathlib import Path

import pytest

from app.commands.options import complain
from app.commands.tables import print_table
from tests.app.test_cli import Facegallery, facegallery, people

__all__ = ["facegallery", "people"]  # fixtures

LONG = "Aleksander Kwasniewski of the third floor, who comes on Mondays and on Thursdays, and has a long name"
NAMES = ("max [it]", "max [b]bold[.b]", "a [red]b :smile: [link=x]", LONG)


@pytest.mark.parametrize("name", [*NAMES, "max [/it]", "x" * 200])
def test_a_table_and_a_complaint_show_names_as_they_are(capsys: pytest.CaptureFixture[str], name: str) -> None:
    print_table(("subject", "template"), [(name, 17)], title=f"title of {name}")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"title of {name}"
    assert [cell.strip() for cell in printed[2].split("┃")[1:-1]] == ["subject", "template"]
    assert [cell.strip() for cell in printed[4].split("│")[1:-1]] == [name, "17"]
    complain(f"refused {name}", style="red")
    assert capsys.readouterr().err == f"refused {name}\n"


def test_commands_print_names_as_they_are(facegallery: Facegallery, people: Path) -> None:
    (people / "Eileen Collins").rename(people / "max [it]")
    shutil.copytree(people / "max [it]", people / LONG)
    facegallery("migrate")
    assert facegallery("import", people, "--gallery", "staff [it]").returncode == 0
    for command in (("reindex",), ("check",)):
        done = facegallery(*command)
        assert (done.returncode, "│ staff [it] │" in done.stdout) == (0, True)
    done = facegallery("duplicates", "--gallery", "staff [it]")
    assert f"│ {LONG} │ max [it] │" in done.stdout
    assert facegallery("forget", LONG, "--gallery", "staff [it]").returncode == 0
    assert "│ max [it] │" in facegallery("identify", people / LONG / "1.png", "-g", "staff [it]").stdout
    facegallery("keys", "create", "door [it]", "--scope", "identify")
    assert "│ door [it] │" in facegallery("keys", "list").stdout


def test_a_name_controls_no_terminal_and_makes_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x\x1b[2J\x9b31m\nrefused nobody.jpg"
    complain(f"refused {name}", style="red")
    print_table(("file",), [(name,)], title=name)
    said = capsys.readouterr()
    assert said.err == "refused x\\x1b[2J\\x9b31m\\nrefused nobody.jpg\n"
    assert said.out.count("x\\x1b[2J\\x9b31m\\nrefused nobody.jpg") == 2
    assert "\x1b" not in said.out
