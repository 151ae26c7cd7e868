"""Ordinary mistakes are one line that says what is wrong; a bug is a traceback."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.app.test_cli import Facegallery, facegallery

__all__ = ["facegallery"]  # a fixture


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("PORT", "abc", "FACEGALLERY_PORT: Input should be a valid integer, unable to parse string as an integer"),
        ("WORKERS", "-1", "FACEGALLERY_WORKERS: Input should be greater than or equal to 0"),
        ("INDEX", "foo", "FACEGALLERY_INDEX: Input should be 'auto', 'flat', 'compressed', 'exact', 'pgvector'"),
        ("DATA_DIR", " ", "FACEGALLERY_DATA_DIR: it is blank; leave it out for its default"),
        ("DATA_DIR", "~/faces", "FACEGALLERY_DATA_DIR: only a shell knows what `~` stands for; write the whole path"),
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


@pytest.mark.parametrize(
    "name", ["a?b=c#d", "100%41", "umläut\nd", "q'u\"o`te "], ids=["query", "percent", "line", "quote"]
)
def test_a_data_folder_has_any_name(tmp_path: Path, name: str) -> None:
    data = tmp_path / name / "data"
    facegallery = Facegallery(data)
    for words in (
        ("migrate",),
        ("master-key", "rotate"),
        ("backup", tmp_path / name / "n.db"),
        ("backup", "--vault", tmp_path / name / "v.db"),
        ("restore", tmp_path / name / "n.db"),
        ("master-key", "status"),
    ):
        done = facegallery(*words)
        assert done.returncode == 0, done.stderr
        assert "SAWarning" not in done.stderr
    assert {"facegallery.db", "vault.db", "master.key"} <= {file.name for file in data.iterdir()}
    assert [folder.name for folder in tmp_path.iterdir()] == [name]


def test_a_disk_without_room_for_anything_is_called_full(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    facegallery("master-key", "status")
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))\n"
        "from app.cli import main; main()"
    )
    for words, place in (
        (("check",), "the database's disk is full"),
        (("master-key", "rotate"), "the database's disk is full"),
        (("backup", tmp_path / "n.db"), "the disk is full"),
    ):
        command = [sys.executable, "-c", program, *map(str, words)]
        done = subprocess.run(command, env=facegallery.environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert place in done.stderr


def test_what_is_not_there_is_named(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    for words in (("backup", tmp_path / "nowhere" / "n.db"), ("migrate", "nosuch")):
        done = facegallery(*words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert str(words[1]) in done.stderr


def test_why_a_postgresql_takes_nobody_is_told(tmp_path: Path, postgresql_server: str) -> None:
    url = make_url(postgresql_server).set(database="nosuch", password="hidden")
    done = Facegallery(tmp_path, FACEGALLERY_DATABASE_URL=url.render_as_string(hide_password=False))("migrate")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: the database does not answer; try again (")
    assert 'database "nosuch" does not exist' in done.stderr
    assert "hidden" not in done.stderr


def test_a_bug_shows_where_it_is(facegallery: Facegallery) -> None:
    for error in ("ValueError('x')", "pydantic.TypeAdapter(int).validate_python('x')"):
        breaking = (
            "import pydantic, app.commands.migrate as command\n"
            f"def broken(*_, **__): raise {error}\n"
            "command.open_engine = broken"
        ).replace("raise pydantic.", "pydantic.")
        done = facegallery("migrate", before=breaking)
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
    lines = [line for line in done.stderr.splitlines() if ".made " not in line]
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
    assert done.returncode == 0
    assert done.stdout.startswith("the tables are of version ")
    assert done.stderr == "warning: FACEGALLERY_TREADS is no setting; the nearest is FACEGALLERY_THREADS\n"


def test_nobody_is_erased_by_a_migration_without_a_question(facegallery: Facegallery) -> None:
    facegallery("migrate")
    for target in ("base", "0001", "-1"):
        done = facegallery("migrate", "--", target)
        assert (done.returncode, "add --yes" in " ".join(done.stderr.split())) == (2, True)
    assert facegallery("audit", "verify").returncode == 0  # on the tables of this version
    assert facegallery("migrate", "base", "--yes").returncode == 0
    assert "facegallery.db has no tables yet; set FACEGALLERY_DATA_DIR or" in facegallery("audit", "verify").stderr


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


def test_a_grace_time_that_is_none_is_a_wrong_word(facegallery: Facegallery) -> None:
    facegallery("migrate")
    made = facegallery("keys", "create", "door", "--scope", "identify", "--json")
    key = json.loads(made.stdout)["id"]
    for grace in ("inf", "1e12"):
        done = facegallery("keys", "rotate", key, "--grace", grace)
        assert (done.returncode, done.stdout, "--grace" in done.stderr) == (2, "", True)


def test_a_pepper_and_a_receipt_that_are_garbage_are_one_line(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    (tmp_path / "receipt.json").write_text("[" * 200_000)
    done = facegallery("receipt", "verify", tmp_path / "receipt.json")
    assert (done.returncode, done.stderr) == (1, "error: that is no receipt of this service\n")
    (tmp_path / "gallery" / "key-pepper").write_bytes(b"\xff\xfe\0" * 20)
    (tmp_path / "gallery" / "key-pepper").chmod(0o600)
    done = facegallery("keys", "list")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.endswith("key-pepper holds no pepper; put it back from its copy\n")


def test_what_is_said_goes_not_where_the_answer_goes(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    assert facegallery("master-key", "status").returncode == 0
    (tmp_path / "gallery" / "master.key").chmod(0o644)
    for words in (("reembed", "--discard", "--json"), ("export", tmp_path / "a.zip", "--json")):
        done = facegallery(*words)
        assert (done.stdout, done.stderr.count("master_key.readable_by_others")) == ("", 1)


@pytest.mark.parametrize("address", ["sqlite:///{folder}/../gallery/facegallery.db", "sqlite:///{folder}/link.db"])
def test_no_vault_is_made_beside_the_templates_by_another_address(tmp_path: Path, address: str) -> None:
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / "link.db").symlink_to("facegallery.db")
    facegallery = Facegallery(folder, FACEGALLERY_VAULT_URL=address.format(folder=folder))
    facegallery("migrate")
    done = facegallery("reindex")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: the vault must not lie in the gallery's database")
    with closing(sqlite3.connect(folder / "facegallery.db")) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    assert "data_key" not in tables


def test_two_first_migrations_at_once_both_end_well(tmp_path: Path) -> None:
    facegallery = Facegallery(tmp_path / "gallery")
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: facegallery("migrate"), range(3)))
    assert [(one.returncode, one.stderr) for one in done] == [(0, "")] * 3


def test_an_archive_of_a_pruning_that_fails_is_no_file(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    for _ in range(2):
        facegallery("keys", "create", "door", "--scope", "identify")
    full = "import os\ndef full(handle): raise OSError(28, 'No space left on device')\nos.fsync = full"
    words = ["audit", "prune", "--before", "2100-01-01", "--archive", str(tmp_path / "old.jsonl")]
    done = facegallery(*words, before=full)
    assert (done.returncode, done.stderr.endswith("No space left on device; nothing was removed\n")) == (1, True)
    assert not (tmp_path / "old.jsonl").exists()
    assert facegallery(*words).stdout == "1 entries removed\n"


def test_a_damaged_entry_of_the_audit_log_is_told_and_keeps_no_other(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    for _ in range(3):
        facegallery("keys", "create", "door", "--scope", "identify")
    with closing(sqlite3.connect(tmp_path / "gallery" / "facegallery.db")) as database:
        database.execute("UPDATE audit SET entry = 'nonsense' WHERE number = 2")
        database.commit()
    done = facegallery("audit", "export", "--subject", "ada")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "1 entries are none any more; see `facegallery audit verify`\n"
    for words in (("--archive", tmp_path / "old.jsonl"), ()):
        done = facegallery("audit", "prune", "--before", "2100-01-01", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "entry 2 of the audit log is none; see `facegallery audit verify`" in done.stderr
    assert not (tmp_path / "old.jsonl").exists()


def test_a_subject_is_found_in_the_audit_log_however_it_is_typed(facegallery: Facegallery) -> None:
    program = (
        "from app.commands.migrate import migrate_command\n"
        "from app.commands.options import opened_store\n"
        "migrate_command('head', False)\n"
        "with opened_store() as store:\n"
        "    store.enroll('g', 'Zo\\xeb', [], metadata=None, extractor='net@1', dimension=8)"
    )
    subprocess.run([sys.executable, "-c", program], env=facegallery.environment, check=True)
    assert facegallery("audit", "export", "--subject", "Zoe\u0308").stdout.count("\n") == 1


def test_what_is_no_photo_is_not_read_for_ever(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    os.mkfifo(tmp_path / "pipe.jpg")
    done = facegallery("identify", "/dev/zero", tmp_path / "pipe.jpg")
    said = "the file cannot be read: it is no regular file"
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (
        3,
        [f"/dev/zero: {said}", f"{tmp_path / 'pipe.jpg'}: {said}"],
    )


def test_no_name_is_not_the_default_one(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    (tmp_path / "people.csv").write_text("subject,file\nada,1.png\n")
    done = facegallery("import", tmp_path / "people.csv", "--gallery", "")
    assert (done.returncode, done.stderr) == (1, "error: a name must not be empty\n")
