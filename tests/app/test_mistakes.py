"""Ordinary mistakes are one line that says what is wrong; a bug is a traceback."""

import re
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
        ("TLS_KEY", "key.pem", "FACEGALLERY_TLS_CERTIFICATE and FACEGALLERY_TLS_KEY: TLS needs both"),
        ("DATABASE_URL", "hidden-garbage", "FACEGALLERY_DATABASE_URL: it is no SQLAlchemy address"),
        (
            "DATABASE_URL",
            "mysql://me:hidden@db/x",
            "FACEGALLERY_DATABASE_URL: mysql is not supported; the databases are",
        ),
        ("VAULT_URL", "postgresql+psycopg2://me:hidden@db/x", "FACEGALLERY_VAULT_URL: postgresql+psycopg2 is not supp"),
        ("THRESHOLD_POLICY", "abc", "FACEGALLERY_THRESHOLD_POLICY: a policy is a distance or"),
    ],
)
def test_a_setting_that_is_none_is_named(tmp_path: Path, variable: str, value: str, sentence: str) -> None:
    done = Facegallery(tmp_path, **{f"FACEGALLERY_{variable}": value})("migrate")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {sentence}")
    assert "hidden" not in done.stderr


def test_an_option_of_serve_that_is_none_is_named(facegallery: Facegallery) -> None:
    for host in (" ", ""):
        done = facegallery("serve", "--host", host)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith("error: FACEGALLERY_HOST: ")
    assert facegallery("serve", "--port", "70000").returncode == 2


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


@pytest.mark.parametrize(
    ("package", "extra", "settings"),
    [
        ("psycopg", "postgres", {"FACEGALLERY_DATABASE_URL": "postgresql://db/faces"}),
        ("torch", "train", {"FACEGALLERY_RUNTIME": "torch"}),
    ],
)
def test_an_extra_that_is_missing_is_named(tmp_path: Path, package: str, extra: str, settings: dict[str, str]) -> None:
    facegallery = Facegallery(tmp_path)
    facegallery("migrate")
    program = f"import sys; sys.modules[{package!r}] = None\nfrom app.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "reindex"],
        env=facegallery.environment | settings,
        check=False,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if "master_key.made" not in line]
    assert (done.returncode, len(lines)) == (1, 1)
    assert f"needs the package {package}; install `facegallery[{extra}]`" in lines[0]


def test_a_pepper_that_is_none_is_named(tmp_path: Path) -> None:
    facegallery = Facegallery(tmp_path, FACEGALLERY_KEY_PEPPER="abc")
    facegallery("migrate")
    done = facegallery("audit", "verify")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: FACEGALLERY_KEY_PEPPER: a pepper has at least 32 characters")


def test_a_mistyped_setting_is_told_with_the_nearest(tmp_path: Path) -> None:
    done = Facegallery(tmp_path, FACEGALLERY_TREADS="1", FACEGALLERY_TEST_DATA="/x")("migrate")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "warning: FACEGALLERY_TREADS is no setting; the nearest is FACEGALLERY_THREADS\n"


def test_nobody_is_erased_by_a_migration_without_a_question(facegallery: Facegallery) -> None:
    facegallery("migrate")
    for target in ("base", "0001", "-1"):
        done = facegallery("migrate", "--", target)
        assert (done.returncode, "add --yes" in " ".join(done.stderr.split())) == (2, True)
    assert facegallery("audit", "verify").returncode == 0  # on the tables of this version
    assert facegallery("migrate", "base", "--yes").returncode == 0
    assert "the database has no tables yet; run `facegallery migrate`" in facegallery("audit", "verify").stderr


def test_a_pruning_that_removes_nothing_leaves_no_file(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    facegallery("keys", "create", "door", "--scope", "identify")
    for _ in range(2):
        done = facegallery("audit", "prune", "--before", "2100-01-01", "--archive", tmp_path / "old.jsonl")
        assert (done.returncode, done.stdout) == (0, "0 entries removed\n")  # the last one stays
    assert not (tmp_path / "old.jsonl").exists()
    done = facegallery("audit", "prune", "--before", "gestern")
    assert (done.returncode, "Value error" in done.stderr) == (2, False)
    assert "'gestern' is neither a day" in done.stderr


def test_a_key_that_would_never_be_taken_is_told(facegallery: Facegallery) -> None:
    facegallery("migrate")
    create = ("keys", "create", "door", "--scope", "identify")
    for days in ("0", "nan", "1e300"):
        done = facegallery(*create, "--days", days)
        assert (done.returncode, "--days" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    done = facegallery(*create, "--gallery", "staff")
    assert (done.returncode, done.stdout[:3]) == (0, "fg_")
    assert done.stderr.splitlines()[-1] == "there is no gallery 'staff' yet; the key is for it once there is"


def test_an_archive_is_no_file_called_minus(facegallery: Facegallery) -> None:
    facegallery("migrate")
    done = facegallery("export", "-")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: `-` is no file")


def test_a_network_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    facegallery = Facegallery(tmp_path, FACEGALLERY_EXTRACTOR="sfac")
    facegallery("migrate")
    said = facegallery("reindex").stderr.splitlines()[-1]
    assert re.search(r"there is no network 'sfac': .* is missing; the networks there are sface, .*yunet$", said)
