"""Ordinary mistakes are one line that says what is wrong; a bug is a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.test_cli import Facegallery, facegallery

__all__ = ["facegallery"]  # a fixture


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("PORT", "abc", "FACEGALLERY_PORT: Input should be a valid integer, unable to parse string as an integer"),
        ("WORKERS", "-1", "FACEGALLERY_WORKERS: Input should be greater than or equal to 0"),
        ("INDEX", "foo", "FACEGALLERY_INDEX: Input should be 'auto', 'flat', 'compressed', 'exact', 'pgvector'"),
        ("DATA_DIR", " ", "FACEGALLERY_DATA_DIR: it is blank; leave it out for its default"),
        ("QUEUE_TIMEOUT", "inf", "FACEGALLERY_QUEUE_TIMEOUT: Input should be a finite number"),
        ("AUDIT_DAYS", "1e9", "FACEGALLERY_AUDIT_DAYS: Input should be less than or equal to 36500"),
        ("TLS_KEY", "key.pem", "TLS needs both tls_certificate and tls_key"),
        ("DATABASE_URL", "hidden-garbage", "FACEGALLERY_DATABASE_URL: it is no SQLAlchemy address"),
        ("DATABASE_URL", "foo://me:hidden@db/x", "FACEGALLERY_DATABASE_URL or FACEGALLERY_VAULT_URL: Can't load"),
    ],
)
def test_a_setting_that_is_none_is_named(tmp_path: Path, variable: str, value: str, sentence: str) -> None:
    done = Facegallery(tmp_path, **{f"FACEGALLERY_{variable}": value})("migrate")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {sentence}")
    assert "hidden" not in done.stderr


def test_an_option_of_serve_that_is_none_is_named(facegallery: Facegallery) -> None:
    for words, variable in ((("--port", "70000"), "PORT"), (("--host", " "), "HOST"), (("--host", ""), "HOST")):
        done = facegallery("serve", *words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"error: FACEGALLERY_{variable}: ")


def test_several_settings_are_named_in_one_line(tmp_path: Path) -> None:
    done = Facegallery(tmp_path, FACEGALLERY_PORT="x", FACEGALLERY_WORKERS="y")("migrate")
    assert (done.stderr.count("\n"), done.stderr.count("FACEGALLERY_")) == (1, 2)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    done = Facegallery(tmp_path / place)("migrate")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {tmp_path / 'file'}")


def test_what_is_not_there_is_named(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    for words in (("backup", tmp_path / "nowhere" / "n.db"), ("migrate", "nosuch")):
        done = facegallery(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert str(words[1]) in done.stderr


def test_a_bug_shows_where_it_is(facegallery: Facegallery) -> None:
    for error in ("ValueError('x')", "pydantic.TypeAdapter(int).validate_python('x')"):
        program = (
            "import pydantic, app.commands.migrate as command\n"
            f"def broken(*_, **__): raise {error}\n"
            "command.open_engine = broken\n"
            "from app.cli import main; main()"
        ).replace("raise pydantic.", "pydantic.")
        done = subprocess.run(
            [sys.executable, "-c", program, "migrate"],
            env=facegallery.environment,
            check=False,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, "Traceback" in done.stderr) == (1, True)
