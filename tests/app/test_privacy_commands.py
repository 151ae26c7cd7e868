import json
import sqlite3
import zipfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.gallery.consent import Consent, PrivacyRules
from app.gallery.held_file import held
from app.gallery.sql.database import open_engine
from app.gallery.store import GalleryStore
from app.settings import Settings
from tests.app.test_cli import Facegallery


@pytest.fixture
def facegallery(tmp_path: Path) -> Facegallery:
    made = Facegallery(tmp_path / "gallery")
    assert made("migrate").returncode == 0
    return made


@pytest.fixture
def people(tmp_path: Path, astronaut: NDArray[np.uint8]) -> Path:
    for name, pixels in (("eileen", astronaut), ("mirror", np.ascontiguousarray(astronaut[:, ::-1]))):
        (tmp_path / "people" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "people" / name / "1.png")
    return tmp_path / "people"


def test_forget_prints_a_receipt_that_can_be_checked_today_and_later(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("import", people)
    done = facegallery("forget", "eileen")
    assert done.returncode == 0
    file = tmp_path / "receipt.json"
    file.write_text(done.stdout)
    assert facegallery("receipt", "verify", file).stdout == "genuine; the subject is not in the gallery\n"
    key = facegallery("receipt", "key").stdout.strip()
    assert facegallery("receipt", "verify", file, "--key", key).stdout == "genuine\n"

    facegallery("import", people)
    replayed = facegallery("receipt", "verify", file)
    assert replayed.returncode == 1
    assert "was enrolled again since" in replayed.stdout

    file.write_text(done.stdout.replace('"templates": 1', '"templates": 2'))
    changed = facegallery("receipt", "verify", file)
    assert (changed.returncode, changed.stderr) == (1, "error: the receipt was changed, or signed by another key\n")
    file.write_text("no JSON")
    assert facegallery("receipt", "verify", file).returncode == 1
    assert "has no subject 'nobody'" in facegallery("forget", "nobody").stderr


def test_the_master_key_is_rotated_and_the_old_one_opens_nothing_afterwards(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("import", people)
    file = tmp_path / "gallery" / "master.key"
    old = file.read_text()
    before = json.loads(facegallery("master-key", "status", "--json").stdout)
    assert before["wrapped"] == {before["wraps"]: 5}  # two people, receipts, the name of a folder, that of the vault
    done = facegallery("master-key", "rotate")
    assert done.returncode == 0
    assert f"backups of the vault from before open with {before['wraps']} only" in done.stderr
    after = json.loads(facegallery("master-key", "status", "--json").stdout)
    assert after["wrapped"] == {after["wraps"]: 5}
    assert after["at_hand"] == [after["wraps"]]
    assert after["wraps"] != before["wraps"]
    (face,) = json.loads(facegallery("identify", people / "eileen" / "1.png", "--json").stdout)
    assert face["subject"] == "eileen"
    file.write_text(old)
    refused = facegallery("identify", people / "eileen" / "1.png")
    assert refused.returncode == 1
    assert "the vault's keys are wrapped by master key" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_rotation_beside_another_one_is_one_line(facegallery: Facegallery, tmp_path: Path) -> None:
    facegallery("master-key", "status")
    file = tmp_path / "gallery" / "master.key"
    before = file.read_text()
    with held(file, refusal=""):
        done = facegallery("master-key", "rotate")
    sentence = "another rotation of the master key is under way; wait until it has ended"
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (1, "", f"error: {sentence}")
    assert file.read_text() == before
    assert facegallery("master-key", "rotate").returncode == 0


def test_keys_are_made_and_old_backups_sealed_by_hand(facegallery: Facegallery) -> None:
    first, second = (facegallery("master-key", "new").stdout for _ in range(2))
    assert (len(first), first != second) == (45, True)
    assert facegallery("master-key", "seal").stdout == "0 subjects sealed\n"


def test_sealing_is_not_done_before_no_embedding_is_left_where_the_file_is_free(
    facegallery: Facegallery, tmp_path: Path
) -> None:
    file, embedding = tmp_path / "gallery" / "facegallery.db", b"an embedding in the clear, " * 200
    with closing(sqlite3.connect(file, isolation_level=None)) as before:  # as a version of before erased
        before.execute("PRAGMA secure_delete=OFF")
        before.execute("INSERT INTO storage_to_drop VALUES (?, '2026-01-01')", (embedding,))
        before.execute("DELETE FROM storage_to_drop")
        before.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert b"in the clear, an embedding" in file.read_bytes()
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM gallery").fetchone()
        done = facegallery("master-key", "seal")
    assert (done.returncode, done.stdout) == (3, "0 subjects sealed\n")
    assert "the database's file could not be written anew" in done.stderr
    assert facegallery("master-key", "seal").returncode == 0
    assert b"in the clear, an embedding" not in file.read_bytes()


def test_all_that_is_held_about_a_person_goes_into_one_archive_and_back(
    facegallery: Facegallery, people: Path, tmp_path: Path
) -> None:
    facegallery("import", people)
    service = Settings(data_dir=tmp_path / "gallery", _env_file=None)
    engine = open_engine(service.sqlalchemy_url, timeout=30)
    consent = Consent("the lab", datetime(2026, 1, 1, tzinfo=UTC), "form 7", datetime(2999, 1, 1, tzinfo=UTC))
    store = GalleryStore(engine)
    store.update_subject(
        "default", "eileen", terms={"consent": consent, "expires_at": datetime(2998, 1, 1, tzinfo=UTC)}
    )
    store.change_gallery("default", {"require_consent": True, "keep_days": 9})
    engine.dispose()
    done = facegallery("export", tmp_path / "e.zip", "--subject", "eileen")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "e.zip") as archive:
        (subject,) = map(json.loads, archive.read("subjects.jsonl").splitlines())
        entries = list(map(json.loads, archive.read("audit.jsonl").splitlines()))
    assert subject["consent"] == consent.to_json()
    assert (subject["expires_at"], subject["seen_at"]) == ("2998-01-01T00:00:00+00:00", None)
    assert [entry["action"] for entry in entries] == ["enroll", "export"]
    assert {"mirror"}.isdisjoint(key for entry in entries for key in entry["subjects"])
    assert facegallery("import", tmp_path / "e.zip", "--gallery", "copy").returncode == 0
    engine = open_engine(service.sqlalchemy_url, timeout=30)
    store = GalleryStore(engine)
    assert store.subject("copy", "eileen").consent == consent
    assert store.gallery("copy").privacy == PrivacyRules(require_consent=True, keep_days=9)
    facegallery("export", tmp_path / "all.zip")
    refused = facegallery("import", tmp_path / "all.zip", "--gallery", "copy", "--report", tmp_path / "report.json")
    assert (refused.returncode, "takes nobody without a consent" in refused.stderr) == (3, True)
    assert refused.stdout.endswith("0 templates added, 1 known, 0 photos imported before, 1 subjects refused\n")
    (reason,) = json.loads((tmp_path / "report.json").read_text())["refused"]
    assert (reason["photo"], reason["reason"]) == ("subject mirror", "consent-required")
    assert [one.key for one in store.subjects("copy", after=0, limit=9).items] == ["eileen"]
    engine.dispose()


def test_the_sweep_by_hand(facegallery: Facegallery, people: Path) -> None:
    facegallery("import", people)
    assert facegallery("retention", "sweep").stdout == "nobody is due\n"
    done = facegallery("retention", "sweep", "--dry-run", "--json")
    assert json.loads(done.stdout) == {"expired": {}, "came_back": 0}
