"""Moving people in and out by the command line."""

import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from app.gallery.errors import GalleryNotFound
from app.gallery.policy import FixedDistance
from app.gallery.sql.database import open_engine
from app.gallery.store import GalleryStore
from tests.app.test_cli import Facegallery, facegallery, people

__all__ = ["facegallery", "people"]  # fixtures
TELLING = (  # how far it is, after each one
    "from app.commands import progress\n"
    "from app.gallery.doubles import neighbours\n"
    "from app.gallery.reembedding import store\n"
    "from app.gallery.sql import history\n"
    "progress._EVERY_SECONDS = 0\n"
    "history._MANY = neighbours._BLOCK = store._DISCARDED_AT_ONCE = 1"
)


def test_out_of_one_database_and_into_another(facegallery: Facegallery, people: Path, tmp_path: Path) -> None:
    facegallery("migrate")
    facegallery("import", people, "--gallery", "staff")
    done = facegallery("export", tmp_path / "staff.zip", "--gallery", "staff", "--json")
    assert (done.returncode, json.loads(done.stdout)["templates"]) == (0, 2)
    assert facegallery("export", tmp_path / "staff.zip", "--gallery", "staff").returncode == 2  # it is there already
    assert facegallery("export", tmp_path / "staff.zip", "--gallery", "staff", "--replace").returncode == 0
    other = Facegallery(tmp_path / "other")
    other("migrate")
    done = other("import", tmp_path / "staff.zip", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (
        0,
        {"gallery": "staff", "added": 2, "known": 0, "passed_over": 0, "refused": []},
    )
    (face,) = json.loads(other("identify", people / "Eileen Collins" / "1.png", "-g", "staff", "--json").stdout)
    assert face["subject"] == "Eileen Collins"
    done = other("export", tmp_path / "person.zip", "-g", "staff", "--subject", "Nobody")
    assert (done.returncode, done.stderr) == (1, "error: gallery 'staff' has no subject 'Nobody'\n")


def test_a_report_says_what_was_refused(facegallery: Facegallery, people: Path, tmp_path: Path) -> None:
    facegallery("migrate")
    (people / "people.csv").write_text("subject,file,badge\nEileen,Eileen Collins/1.png,17\nZoe,none.jpg,\n")
    done = facegallery("import", people / "people.csv", "--report", tmp_path / "report.csv")
    assert (done.returncode, done.stdout) == (
        3,
        "1 templates added, 0 known, 0 photos imported before, 1 photos refused\n",
    )
    with (tmp_path / "report.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row == {
        "photo": "none.jpg",
        "reason": "file-unreadable",
        "detail": "the file cannot be read: No such file or directory",
    }
    facegallery("import", people / "people.csv", "--report", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["passed_over"] == 1
    assert facegallery("import", people, "--report", tmp_path / "report.txt").returncode == 2


def test_a_report_that_cannot_be_written_is_told_before_the_import(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("migrate")
    (tmp_path / "dir.json").mkdir()
    for report, reason in (
        (tmp_path / "dir.json", "is a folder; name a file"),
        (tmp_path / "nowhere" / "r.csv", "cannot be written: No such file or directory"),
    ):
        done = facegallery("import", people, "--report", report)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {report} {reason}\n")
    assert json.loads(facegallery("import", people, "--json").stdout)["added"] == 2


def test_a_report_is_not_written_over_the_table_that_is_imported(facegallery: Facegallery, tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text("subject,file\nanna,missing.jpg\n")
    (tmp_path / "report.csv").symlink_to(table)
    facegallery("migrate")
    assert facegallery("import", table, "--report", tmp_path / "report.csv").returncode == 2
    assert table.read_text() == "subject,file\nanna,missing.jpg\n"


def test_the_answer_is_printed_where_the_report_fails_in_the_end(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("migrate")
    (people / "people.csv").write_text("subject,file\nEileen,Eileen Collins/1.png\n")
    full = (
        "import app.commands.import_people as command\n"
        "def full(file): raise OSError(28, 'No space left on device')\n"
        "command.replaced_file = full"
    )
    done = facegallery("import", people / "people.csv", "--report", tmp_path / "r.csv", before=full)
    assert (done.returncode, done.stdout) == (
        1,
        "1 templates added, 0 known, 0 photos imported before, 0 photos refused\n",
    )
    assert done.stderr.endswith(f"error: the report {tmp_path / 'r.csv'} cannot be written: No space left on device\n")


def test_names_that_are_no_text_break_neither_answer_nor_report(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("migrate")
    Path(os.fsdecode(os.fsencode(people) + b"/caf\xe9.jpg")).write_text("no photo")
    done = facegallery("import", people, "--json", "--report", tmp_path / "r.json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["added"], [one["photo"] for one in document["refused"]]) == (
        3,
        2,
        ["caf\ufffd.jpg"],
    )
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == document


def test_what_cannot_be_imported_is_one_line(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("migrate")
    (tmp_path / "x.zip").write_text("no archive")
    (tmp_path / "x.csv").write_text("no table")
    (tmp_path / "empty").mkdir()
    for name, sentence in (("x.zip", "is no archive"), ("x.csv", "needs a head"), ("empty", "holds no photos")):
        done = facegallery("import", tmp_path / name)
        assert (done.returncode, done.stdout) == (1, "")
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_killed_import_goes_on(tmp_path: Path, lfw_sample: Path) -> None:
    facegallery = Facegallery(tmp_path / "gallery")
    facegallery("migrate")
    (tmp_path / "people").mkdir()
    for person in sorted(lfw_sample.iterdir())[:60]:
        (tmp_path / "people" / person.name).symlink_to(person)
    store = GalleryStore(open_engine(f"sqlite:///{(tmp_path / 'gallery' / 'facegallery.db').as_posix()}", timeout=30))

    def templates() -> int:
        try:
            return store.size(store.gallery("default")).templates
        except GalleryNotFound:
            return 0

    command = [
        sys.executable,
        "-c",
        "from app.cli import main; main()",
        "import",
        str(tmp_path / "people"),
        "--largest",
    ]
    process = subprocess.Popen(command, env=facegallery.environment)
    while not templates():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = templates()
    report = json.loads(facegallery("import", tmp_path / "people", "--largest", "--json").stdout)
    total = sum(len(list(person.iterdir())) for person in (tmp_path / "people").iterdir())
    assert 0 < done < total
    assert report["passed_over"] + report["known"] == done
    assert report["added"] + done + len(report["refused"]) == total == templates() + len(report["refused"])
    store.close()


def test_an_import_that_is_stopped_says_how_it_goes_on(tmp_path: Path, lfw_sample: Path) -> None:
    facegallery = Facegallery(tmp_path / "gallery")
    facegallery("migrate")
    store = GalleryStore(open_engine(f"sqlite:///{(tmp_path / 'gallery' / 'facegallery.db').as_posix()}", timeout=30))
    program = (  # an interrupt reaches a process in the background, too
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom app.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "import", str(lfw_sample), "--largest"]
    process = subprocess.Popen(command, env=facegallery.environment, stderr=subprocess.PIPE, text=True)
    while not store.galleries():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped; what was stored stays, and running it again goes on from there"
    assert "Traceback" not in said
    store.close()


def test_a_backup_comes_back(facegallery: Facegallery, people: Path, tmp_path: Path) -> None:
    assert "run `facegallery migrate`" in facegallery("backup", tmp_path / "copy.db").stderr
    facegallery("migrate")
    facegallery("import", people)
    assert facegallery("backup", tmp_path / "copy.db").returncode == 0
    assert facegallery("backup", tmp_path / "copy.db").returncode == 2
    (tmp_path / "moved.db-wal").touch()  # of a copy that was moved away without it
    assert facegallery("backup", tmp_path / "moved.db").returncode == 2
    assert not (tmp_path / "moved.db").exists()
    assert facegallery("backup", tmp_path / "moved.db", "--replace").returncode == 0
    assert [path.name for path in tmp_path.glob("moved.db*")] == ["moved.db"]
    other = Facegallery(tmp_path / "other")
    done = other("restore", tmp_path / "copy.db")
    assert (done.returncode, done.stdout) == (
        0,
        "restored 1 galleries; every index is built anew on its next use\n",
    )
    closed = other("identify", people / "Eileen Collins" / "1.png")
    assert (closed.returncode, "restore the vault from its backup" in closed.stderr) == (1, True)
    assert facegallery("backup", "--vault", tmp_path / "vault.db").returncode == 0
    (tmp_path / "vault.db").replace(tmp_path / "other" / "vault.db")
    shutil.copy(tmp_path / "gallery" / "master.key", tmp_path / "other")
    missing = other("identify", people / "Eileen Collins" / "1.png")
    assert (missing.returncode, "the pepper is missing" in missing.stderr) == (1, True)
    shutil.copy(tmp_path / "gallery" / "key-pepper", tmp_path / "other")
    (face,) = json.loads(other("identify", people / "Eileen Collins" / "1.png", "--json").stdout)
    assert face["subject"] == "Eileen Collins"
    assert other("restore").returncode == 0


def test_with_an_older_vault_an_import_says_whom_to_erase_and_takes_the_others(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("migrate")
    photo = people / "Eileen Collins" / "1.png"
    for name in ("Ada", "Zoe"):
        (people / name).mkdir()
    shutil.copy(photo, people / "Ada")
    shutil.copy(photo, people / "Zoe")
    facegallery("import", people, "--json")
    facegallery("forget", "Eileen Collins")
    facegallery("forget", "Zoe")
    facegallery("backup", "--vault", tmp_path / "vault.db")
    facegallery("import", people)
    facegallery("forget", "Zoe")
    for file in (tmp_path / "gallery").glob("vault.db*"):
        file.unlink()
    (tmp_path / "vault.db").replace(tmp_path / "gallery" / "vault.db")
    done = facegallery("import", people, "--report", tmp_path / "report.json", "--json")
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome) == (3, json.loads((tmp_path / "report.json").read_text()))
    assert (outcome["added"], outcome["known"], outcome["passed_over"]) == (1, 0, 1)
    assert [(one["photo"], one["reason"]) for one in outcome["refused"]] == [
        ("Eileen Collins/1.png", "key-unavailable"),
        ("Eileen Collins/2.png", "key-unavailable"),
    ]
    assert "erase the subject and enroll it anew" in outcome["refused"][0]["detail"]
    assert facegallery("forget", "Eileen Collins").returncode == 0
    assert json.loads(facegallery("import", people, "--json").stdout)["added"] == 2
    (face,) = json.loads(facegallery("identify", people / "Eileen Collins" / "2.png", "--json").stdout)
    assert face["subject"] == "Eileen Collins"


def test_an_archive_into_a_gallery_erases_first_whose_time_is_over(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("migrate")
    facegallery("import", people)
    facegallery("export", tmp_path / "a.zip")
    with closing(sqlite3.connect(tmp_path / "gallery" / "facegallery.db")) as database:
        database.execute("UPDATE subject SET expires_at = '2020-01-01 00:00:00'")
        database.commit()
    assert json.loads(facegallery("import", tmp_path / "a.zip", "--json").stdout)["added"] == 2
    with closing(sqlite3.connect(tmp_path / "gallery" / "facegallery.db")) as database:
        assert database.execute("SELECT id, expires_at FROM subject").fetchall() == [(2, None)]


def test_an_export_that_cannot_be_written_stands_not_in_the_audit_log(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("migrate")
    facegallery("import", people)
    done = facegallery("export", tmp_path / "nowhere" / "a.zip")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path / 'nowhere' / 'a.zip'} cannot be written: No such file or directory\n"
    assert facegallery("export", tmp_path / "a.zip", "--gallery", "nobody").returncode == 1
    assert facegallery("export", tmp_path / "a.zip").returncode == 0
    entries = [json.loads(line)["entry"] for line in facegallery("audit", "export").stdout.splitlines()]
    assert [entry["action"] for entry in entries].count("export") == 1


def test_an_export_for_which_there_is_no_room_names_the_file(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("migrate")
    facegallery("import", people)
    full = (
        "import resource, signal\n"
        "import app.commands.export_gallery as command\n"
        "write = command.write_archive\n"
        "def limited(*given, **named):\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "    return write(*given, **named)\n"
        "command.write_archive = limited"
    )
    (tmp_path / "there").mkdir()
    done = facegallery("export", tmp_path / "there" / "a.zip", before=full)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path / 'there' / 'a.zip'} cannot be written: File too large\n"
    assert list((tmp_path / "there").iterdir()) == []


def test_in_a_terminal_it_is_shown_how_far_they_are(tmp_path: Path, people: Path) -> None:
    facegallery = Facegallery(tmp_path / "gallery", FORCE_COLOR="1", COLUMNS="120")
    facegallery("migrate")
    facegallery("import", people)
    for words, works in (
        (("export", tmp_path / "a.zip"), {"writing subjects": "1/1", "writing templates": "2/2"}),
        (("backup", tmp_path / "a.db"), {"copying, in MiB": "1/1"}),
        (("restore", tmp_path / "a.db"), {"copying, in MiB": "1/1", "restoring, in MiB": "1/1"}),
        (("check",), {"reading templates": "2/2"}),
    ):
        done = facegallery(*words)
        assert (done.returncode, bars_of(done)) == (0, works)


def bars_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """How far each piece of work was when it was shown last."""
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", done.stderr).splitlines()
    shown = [re.fullmatch(r"(.+?) [━╸╺]+ +(\d+/\d+) .*", line) for line in lines]
    return {one[1]: one[2] for one in shown if one}


@pytest.mark.parametrize("command", ["export", "backup"])
def test_out_of_nothing_comes_nothing(facegallery: Facegallery, tmp_path: Path, command: str) -> None:
    assert facegallery(command, tmp_path / "x").returncode == 1
    assert not (tmp_path / "x").exists()


def test_a_gallery_moves_to_another_extractor_and_back(tmp_path: Path, people: Path, two_extractors: Path) -> None:
    settings = {"FACEGALLERY_WEIGHTS_DIR": str(two_extractors), "FACEGALLERY_KEEP_CROPS": "true"}
    facegallery = Facegallery(tmp_path / "gallery", **settings)
    after = Facegallery(tmp_path / "gallery", **settings, FACEGALLERY_EXTRACTOR="other")
    photo = people / "Eileen Collins" / "1.png"
    facegallery("migrate")
    facegallery("import", people)
    assert facegallery("reembed").returncode == 2
    done = facegallery("reembed", "--extractor", "nobody")
    assert (done.returncode, "there is no network 'nobody'" in done.stderr) == (1, True)
    done = facegallery("reembed", "--extractor", "other", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["moved"], document["embedded"], document["enroll_again"]) == (0, True, 2, [])
    assert document["extractor"].startswith("other@")
    (face,) = json.loads(after("identify", photo, "--json").stdout)
    assert face["subject"] == "Eileen Collins"
    assert "belongs to extractor other@" in facegallery("identify", photo).stderr
    facegallery("export", tmp_path / "person.zip", "--subject", "Eileen Collins")
    with zipfile.ZipFile(tmp_path / "person.zip") as archive:
        old = [json.loads(line) for line in archive.read("old_embeddings.jsonl").splitlines()]
    assert [one["extractor"].partition("@")[0] for one in old] == ["sface", "sface"]
    assert facegallery("reembed", "--back").returncode == 0
    (face,) = json.loads(facegallery("identify", photo, "--json").stdout)
    assert face["subject"] == "Eileen Collins"
    done = facegallery("reembed", "--discard", before=TELLING)
    assert (done.stdout, done.stderr.startswith("erasing: 1 of 2")) == ("2 old embeddings erased\n", True)
    with closing(sqlite3.connect(tmp_path / "gallery" / "facegallery.db")) as database:
        ((owed,),) = database.execute("SELECT erasure FROM gallery")
    assert owed  # of the snapshots, which the service erases
    done = facegallery("reembed", "--back")
    assert (done.returncode, "no embeddings of an earlier extractor" in done.stderr) == (1, True)


def test_without_crops_it_says_who_must_be_enrolled_again(tmp_path: Path, people: Path, two_extractors: Path) -> None:
    facegallery = Facegallery(tmp_path / "gallery", FACEGALLERY_WEIGHTS_DIR=str(two_extractors))
    facegallery("migrate")
    facegallery("import", people)
    done = facegallery("reembed", "--extractor", "other")
    assert done.returncode == 3
    assert done.stderr == (
        "enroll again: Eileen Collins (2 of 2 templates)\n"
        "set FACEGALLERY_KEEP_CROPS=true and send their photos again (`facegallery import`, POST /enroll), or add "
        "--without-missing\n"
    )
    assert "stays with sface@" in done.stdout
    facegallery("import", people)
    assert facegallery("reembed", "--extractor", "other").returncode == 3
    done = facegallery("reembed", "--extractor", "other", "--without-missing")
    assert (done.returncode, "belongs to other@" in done.stdout) == (3, True)
    assert done.stderr == "enroll again: Eileen Collins (2 of 2 templates)\n"


def test_photos_that_are_sent_again_let_their_templates_follow_as_it_is_said(
    tmp_path: Path, people: Path, two_extractors: Path
) -> None:
    settings = {"FACEGALLERY_WEIGHTS_DIR": str(two_extractors)}
    facegallery = Facegallery(tmp_path / "gallery", **settings)
    facegallery("migrate")
    facegallery("import", people)
    keeping = Facegallery(tmp_path / "gallery", **settings, FACEGALLERY_KEEP_CROPS="true")
    keeping("import", people)
    done = facegallery("reembed", "--extractor", "other")
    assert (done.returncode, "2 templates were embedded" in done.stdout, done.stderr) == (0, True, "")


def test_it_is_told_how_far_a_look_for_doubles_is(facegallery: Facegallery, people: Path) -> None:
    facegallery("migrate")
    (people / "Mirror").mkdir()
    (people / "Eileen Collins" / "2.png").rename(people / "Mirror" / "2.png")
    facegallery("import", people)
    done = facegallery("duplicates", before=TELLING)
    assert [line.partition(" of 2")[0] for line in done.stderr.splitlines()] == [
        "reading templates: 1",
        "comparing subjects: 1",
        "comparing templates: 1",
    ]


def test_doubles_and_misplaced_photos_are_listed(tmp_path: Path, lfw_sample: Path) -> None:
    facegallery = Facegallery(tmp_path / "gallery")
    facegallery("migrate")
    several = [sorted(one.iterdir()) for one in sorted(lfw_sample.iterdir()) if len(list(one.iterdir())) >= 5][:4]
    people = {photos[0].parent.name: photos[:4] for photos in several}
    first, second, *_ = people
    people["double"] = [several[0][4]]
    people[second] = [*several[1][:3], several[2][4]]  # the last is somebody else
    with (tmp_path / "people.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["subject", "file"])
        table.writerows((key, photo) for key, photos in people.items() for photo in photos)
    facegallery("import", tmp_path / "people.csv", "--largest")
    found = json.loads(facegallery("duplicates", "--json").stdout)
    assert {found["pairs"][0]["subject"], found["pairs"][0]["other"]} == {first, "double"}
    assert found["pairs"][0]["distance"] <= found["threshold"]
    assert found["templates"][0]["subject"] == second
    assert found["templates"][0]["nearest"] == several[2][0].parent.name
    assert found["templates"][0]["nearest_distance"] < found["templates"][0]["distance"]
    assert first in facegallery("duplicates", "--most", "1").stdout
    merged = facegallery("duplicates", "--merge", "double", first)
    assert (merged.returncode, merged.stdout) == (0, f"double is {first} now, with 5 templates\n")
    third = several[2][0].parent.name
    merged = facegallery("duplicates", "--merge", second, third, "--json")
    assert json.loads(merged.stdout) == {"gallery": "default", "merged": second, "into": third, "templates": 8}
    pairs = json.loads(facegallery("duplicates", "--json").stdout)["pairs"]
    assert [pair for pair in pairs if first in (pair["subject"], pair["other"])] == []


def test_a_gallery_that_moves_while_doubles_are_looked_for_is_not_compared_with_itself(
    tmp_path: Path, people: Path, two_extractors: Path
) -> None:
    settings = {"FACEGALLERY_WEIGHTS_DIR": str(two_extractors), "FACEGALLERY_KEEP_CROPS": "true"}
    facegallery = Facegallery(tmp_path / "gallery", **settings)
    facegallery("migrate")
    facegallery("import", people)
    between = (
        "import os, subprocess, sys\n"
        "from app.commands import duplicates\n"
        "compare = duplicates.alike_pairs\n"
        "def compare_and_move(*arguments, **options):\n"
        "    pairs = compare(*arguments, **options)\n"
        "    move = 'from app.cli import main; main()'\n"
        "    subprocess.run([sys.executable, '-c', move, 'reembed', '--extractor', 'other'], check=True,\n"
        "                   stdout=subprocess.DEVNULL)\n"
        "    return pairs\n"
        "duplicates.alike_pairs = compare_and_move"
    )
    done = facegallery("duplicates", before=between)
    assert (done.returncode, "moved to other@" in done.stderr, done.stdout) == (1, True, "")


def test_a_fixed_distance_that_comes_with_another_extractors_embeddings_is_told(tmp_path: Path, people: Path) -> None:
    facegallery = Facegallery(tmp_path / "gallery", FACEGALLERY_KEEP_CROPS="true")
    facegallery("migrate")
    facegallery("import", people)
    store = GalleryStore(open_engine(f"sqlite:///{(tmp_path / 'gallery' / 'facegallery.db').as_posix()}", timeout=30))
    store.change_gallery("default", {"policy": FixedDistance(0.9)})
    own = store.gallery("default").extractor
    store.close()
    facegallery("export", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, zipfile.ZipFile(tmp_path / "b.zip", "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name).replace(own.encode(), b"older@0123456789ab"))
    for archive_file, told in (("a.zip", False), ("b.zip", True)):
        done = facegallery("import", tmp_path / archive_file, "--gallery", archive_file)
        assert (done.returncode, "is a fixed distance, which means something else now" in done.stderr) == (0, told)


def test_a_backup_from_before_encryption_says_what_it_needs(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("migrate")
    facegallery("import", people)
    facegallery("migrate", "0004", "--yes")  # opens what is sealed
    facegallery("backup", tmp_path / "old.db")
    for done in (facegallery("restore", tmp_path / "old.db"), facegallery("check")):
        assert "1 subjects are from before encryption" in done.stderr
        assert "`facegallery master-key seal`" in done.stderr
    assert facegallery("master-key", "seal").returncode == 0
    done = facegallery("check")
    assert (done.returncode, "encryption" in done.stderr) == (0, False)
    (face,) = json.loads(facegallery("identify", people / "Eileen Collins" / "1.png", "--json").stdout)
    assert face["subject"] == "Eileen Collins"
