"""A pepper that is lost is told and not replaced unseen, and there is a way out for who has no copy of it."""

import json
from pathlib import Path

import pytest

from tests.app.test_cli import Facegallery, facegallery, people

__all__ = ["facegallery", "people"]  # fixtures

MISSING = "error: the pepper is missing, which the database's keys and audit log were made with: put "
KEY = ("keys", "create", "door", "--scope", "identify")


@pytest.fixture
def pepper(facegallery: Facegallery, tmp_path: Path) -> Path:
    """The file of a gallery with one key."""
    facegallery("migrate")
    assert "pepper.made" in facegallery(*KEY).stderr
    assert facegallery(*KEY).stderr.count("\n") == 1  # of the key alone: it is there
    return tmp_path / "gallery" / "key-pepper"


def test_a_lost_pepper_is_told_and_not_replaced(facegallery: Facegallery, pepper: Path) -> None:
    kept = pepper.rename(pepper.with_name("kept"))
    for words in (("keys", "list"), ("audit", "verify"), ("forget", "ada"), ("serve", "--port", "0")):
        done = facegallery(*words)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (1, "", False)
        said = done.stderr.splitlines()[-1]
        assert said.startswith(f"{MISSING}{pepper} back from its copy, or set FACEGALLERY_KEY_PEPPER to it;")
        assert not pepper.exists()
    kept.rename(pepper)
    assert facegallery("audit", "verify").returncode == 0


@pytest.mark.parametrize("replaced", [False, True], ids=["lost", "replaced"])
def test_who_has_no_copy_of_the_pepper_begins_anew(
    facegallery: Facegallery, people: Path, pepper: Path, tmp_path: Path, replaced: bool
) -> None:
    facegallery("import", people)
    exported = facegallery("audit", "export").stdout
    pepper.unlink()
    if replaced:
        pepper.write_text("another pepper of more than 32 characters")
        pepper.chmod(0o600)
    words = ("audit", "begin-anew", "--archive", tmp_path / "lost.jsonl")
    done = facegallery(*words)
    assert (done.returncode, "add --yes" in " ".join(done.stderr.split())) == (2, True)
    assert (pepper.exists(), (tmp_path / "lost.jsonl").exists()) == (replaced, False)
    refused = facegallery("audit", "begin-anew", "--archive", tmp_path / "nowhere" / "lost.jsonl", "--yes")
    assert (refused.returncode, "nothing was removed" in refused.stderr, pepper.exists()) == (1, True, replaced)

    done = facegallery(*words, "--yes")
    assert (done.returncode, done.stdout.endswith("lost.jsonl, and 2 keys are gone\n")) == (0, True)
    assert ("pepper.made" in done.stderr) != replaced
    assert (tmp_path / "lost.jsonl").read_text().startswith(exported)
    assert (tmp_path / "lost.jsonl").stat().st_mode & 0o777 == 0o600
    assert json.loads(facegallery("keys", "list", "--json").stdout) == []
    assert facegallery(*KEY).returncode == 0
    assert facegallery("forget", "Eileen Collins").returncode == 0  # who is still enrolled
    assert facegallery("audit", "verify").stdout.startswith("3 entries, 0 flaws")
    done = facegallery("audit", "begin-anew", "--archive", tmp_path / "again.jsonl", "--yes")
    assert (done.returncode, done.stderr.count("\n"), (tmp_path / "again.jsonl").exists()) == (1, 1, False)
