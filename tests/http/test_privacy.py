"""Consent, retention, forgetting and damaged rows through the whole service."""

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from app.access.audit_log import AuditLog
from app.gallery.erasure.receipts import check_receipt
from app.gallery.errors import KeyUnavailable, MasterKeyMissing
from app.gallery.moving.import_sources import people_of_folder
from app.gallery.moving.importing import PeopleImport
from app.gallery.photos import AlignedFace
from app.gallery.records import Gallery, GalleryChanges, Subject
from app.gallery.sealing.master_keys import MasterKey
from app.gallery.service import GalleryService
from app.gallery.snapshots.private_folder import private_base
from app.main import create_app
from app.settings import Settings
from tests.http.conftest import Enroll, running
from tests.http.test_bad_input import is_problem

Identify = Callable[..., httpx.Response]
CONSENT = {"purpose": "the lab", "granted_at": "2026-01-01T09:00:00Z"}


def service_of(client: TestClient) -> GalleryService:
    service: GalleryService = client.app.state.service  # type: ignore[attr-defined]
    return service


def names(answer: httpx.Response) -> list[str | None]:
    return [face["identity"] and face["identity"]["subject"] for face in answer.json()["faces"]]


def send(client: TestClient, subject: str, photo: bytes, **fields: Any) -> httpx.Response:
    answer: httpx.Response = client.post("/enroll", data={"subject": subject, **fields}, files={"images": photo})
    return answer


def settings_of(folder: Path, **values: Any) -> Settings:
    return Settings(data_dir=folder, sweep_interval=0, _env_file=None, **values)


# -- consent and retention


def test_a_consent_is_kept_shown_changed_and_taken_away(
    client: TestClient, gallery: str, enroll: Enroll, portrait: bytes
) -> None:
    full = CONSENT | {"reference": "form 7", "expires_at": "2999-01-01T00:00:00+01:00"}
    shown = enroll("ada", portrait, consent=json.dumps(full), expires_at="2998-01-01T00:00:00Z").json()["subject"]
    assert shown["consent"] == full | {"expires_at": "2998-12-31T23:00:00Z"}
    assert shown["expires_at"] == "2998-01-01T00:00:00Z"
    address = f"/galleries/{gallery}/subjects/ada"
    assert client.get(address).json() == shown
    changed = client.patch(address, json={"expires_at": None, "consent": CONSENT}).json()
    assert (changed["expires_at"], changed["consent"]) == (None, CONSENT | {"reference": None, "expires_at": None})
    assert client.patch(address, json={"metadata": {}}).json()["consent"] == changed["consent"]
    assert client.patch(address, json={"consent": None}).json()["consent"] is None


@pytest.mark.parametrize(
    ("consent", "expires_at"),
    [
        ("x", None), ("[]", None), ('{"purpose": "x"}', None), (json.dumps(CONSENT | {"extra": 1}), None),
        (json.dumps(CONSENT | {"purpose": ""}), None), (json.dumps(CONSENT | {"purpose": "a\u0000"}), None),
        (json.dumps(CONSENT | {"granted_at": "2026-01-01T09:00:00"}), None),
        (json.dumps(CONSENT | {"granted_at": "2999-01-01T09:00:00Z"}), None),
        (json.dumps(CONSENT | {"expires_at": "2026-01-02T09:00:00Z"}), None),
        (json.dumps(CONSENT | {"granted_at": "0001-01-01T00:00:00+01:00"}), None),
        (json.dumps(CONSENT | {"granted_at": 1767258000}), None), (json.dumps(CONSENT | {"granted_at": True}), None),
        (json.dumps(CONSENT | {"granted_at": "20260101"}), None),
        (json.dumps(CONSENT | {"expires_at": "9999-12-31T23:59:59-05:00"}), None),
        (None, "9999-12-31T23:59:59-05:00"), (None, "32503680000"),
        (None, "2020-01-01T00:00:00Z"), (None, "2999-01-01T00:00:00"), (None, "soon"),
    ],
)  # fmt: skip
def test_terms_that_make_no_sense_are_refused(
    client: TestClient, gallery: str, enroll: Enroll, portrait: bytes, consent: str | None, expires_at: str | None
) -> None:
    fields = {name: value for name, value in (("consent", consent), ("expires_at", expires_at)) if value}
    assert is_problem(enroll("ada", portrait, **fields), 422, "invalid-input")
    assert client.get(f"/galleries/{gallery}").status_code == 404


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-05:00", 32503680000, True])
def test_a_change_to_a_moment_that_makes_no_sense_is_refused(
    client: TestClient, gallery: str, enroll: Enroll, portrait: bytes, moment: object
) -> None:
    before = enroll("ada", portrait).json()["subject"]
    address = f"/galleries/{gallery}/subjects/ada"
    for body in ({"expires_at": moment}, {"consent": CONSENT | {"expires_at": moment}}):
        assert is_problem(client.patch(address, json=body), 422, "invalid-input")
    assert client.get(address).json() == before


def test_a_gallery_that_requires_consent_takes_nobody_without(
    client: TestClient, gallery: str, enroll: Enroll, portrait: bytes, mirrored: bytes
) -> None:
    made = client.post("/galleries", json={"name": gallery, "require_consent": True, "keep_days": 30}).json()
    assert (made["require_consent"], made["keep_days"], made["unseen_days"]) == (True, 30, None)
    assert is_problem(enroll("ada", portrait), 422, "consent-required")
    assert client.get(f"/galleries/{gallery}").json()["subjects"] == 0
    assert enroll("ada", portrait, consent=json.dumps(CONSENT)).status_code == 201
    assert enroll("ada", mirrored).status_code == 201  # the consent that is there is good still
    address = f"/galleries/{gallery}/subjects/ada"
    assert is_problem(client.patch(address, json={"consent": None}), 422, "consent-required")
    changed = client.patch(f"/galleries/{gallery}", json={"require_consent": False, "unseen_days": 7}).json()
    assert (changed["require_consent"], changed["keep_days"], changed["unseen_days"]) == (False, 30, 7)
    assert client.patch(f"/galleries/{gallery}", json={"keep_days": None}).json()["keep_days"] is None


def test_changes_of_a_gallery_at_the_same_moment_are_all_kept(tmp_path: Path) -> None:
    with running(settings_of(tmp_path)) as client:
        client.post("/galleries", json={"name": "people"})
        store, met = service_of(client).store, threading.Barrier(3)
        change = store.change_gallery

        def all_at_once(name: str, changes: GalleryChanges) -> Gallery:
            met.wait(60)
            return change(name, changes)

        store.change_gallery = all_at_once  # type: ignore[method-assign]
        bodies = [{"require_consent": True}, {"keep_days": 30}, {"policy": 0.5, "unseen_days": 7}]
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda body: client.patch("/galleries/people", json=body), bodies))
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        found = client.get("/galleries/people").json()
        audit = store.journal
        assert isinstance(audit, AuditLog)
        told = [json.loads(line)["entry"]["details"] for line in audit.entries()]
    assert [found[name] for name in ("require_consent", "keep_days", "unseen_days", "policy")] == [True, 30, 7, 0.5]
    assert len([one for one in told if "policy" in one and "unseen_days" in one]) == 1  # both in one transaction


@pytest.mark.parametrize(
    "body", [{}, {"keep_days": 0}, {"keep_days": "7"}, {"unseen_days": 1.5}, {"require_consent": 1}, {"keep": 1}]
)
def test_rules_that_make_no_sense_are_refused(client: TestClient, gallery: str, body: dict[str, Any]) -> None:
    client.post("/galleries", json={"name": gallery})
    assert is_problem(client.patch(f"/galleries/{gallery}", json=body), 422, "invalid-input")


def test_a_person_past_the_retention_is_not_named_even_before_the_sweep(
    tmp_path: Path, portrait: bytes, mirrored: bytes
) -> None:
    with running(settings_of(tmp_path)) as client:
        service = service_of(client)
        send(client, "ada", portrait, expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
        assert names(client.post("/identify", files={"image": portrait})) == ["ada"]
        service.retention.clock = lambda: datetime.now(UTC) + timedelta(days=2)
        answer = client.post("/identify", data={"all_candidates": "true"}, files={"image": portrait})
        assert answer.json()["faces"][0]["candidates"] == []
        verified = client.post("/verify", data={"subject": "ada"}, files={"image": portrait})
        assert is_problem(verified, 404, "subject-not-found")
        again = send(client, "ada", mirrored).json()  # erased, then enrolled as a new person
        assert (again["subject"]["templates"], again["subject"]["expires_at"]) == (1, None)
        assert service.retention.sweep().expired == {}


def test_nobody_past_the_retention_is_merged_and_a_merge_leaves_no_key_to_a_sweep(
    tmp_path: Path, portrait: bytes, mirrored: bytes
) -> None:
    with running(settings_of(tmp_path)) as client:
        service = service_of(client)
        address = "/galleries/default/subjects"
        send(client, "eileen", portrait)
        send(client, "ada", mirrored)
        send(client, "bob", mirrored, expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
        assert client.patch(f"{address}/ada", json={"merge_into": "eileen"}).status_code == 200
        wrapped = service.forgetting.vault.wrapped_by()
        service.forgetting.destroy_keys()
        assert service.forgetting.vault.wrapped_by() == wrapped  # nothing was left for a sweep
        service.retention.clock = lambda: datetime.now(UTC) + timedelta(days=2)
        for key, into, part in (("bob", "eileen", "subject"), ("eileen", "bob", "merge_into")):
            merged = client.patch(f"{address}/{key}", json={"merge_into": into})
            assert is_problem(merged, 404, "subject-not-found")
            assert merged.json()["part"] == part
        assert service.retention.sweep().expired == {"default": 1}
        assert client.get(f"{address}/eileen").json()["templates"] == 2


def test_who_becomes_due_while_the_photos_of_an_enrolment_are_worked_on_is_enrolled_anew(
    tmp_path: Path, portrait: bytes, mirrored: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(settings_of(tmp_path, snapshot_interval=0)) as client:
        service = service_of(client)
        send(client, "ada", portrait, expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
        keys = service.forgetting.vault.wrapped_by()
        embed = service.reader.embed

        def a_day_passes(faces: Sequence[AlignedFace]) -> NDArray[np.float32]:
            service.retention.clock = lambda: datetime.now(UTC) + timedelta(days=2)
            return embed(faces)

        monkeypatch.setattr(service.reader, "embed", a_day_passes)
        answer = send(client, "ada", mirrored)
        assert answer.status_code == 201
        shown = answer.json()["subject"]
        assert (shown["templates"], shown["expires_at"]) == (1, None)
        assert service.forgetting.vault.wrapped_by() == keys  # the key of the one that was erased is gone
        assert service.retention.sweep().expired == {}
        assert names(client.post("/identify", files={"image": mirrored})) == ["ada"]


def test_who_becomes_due_while_the_photos_of_an_import_are_worked_on_is_imported_anew(
    tmp_path: Path, portrait: bytes, mirrored: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "people" / "ada").mkdir(parents=True)
    (tmp_path / "people" / "ada" / "1.jpg").write_bytes(mirrored)
    with running(settings_of(tmp_path)) as client:
        service = service_of(client)
        send(client, "ada", portrait, expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
        embed = service.reader.embed

        def a_day_passes(faces: Sequence[AlignedFace]) -> NDArray[np.float32]:
            service.retention.clock = lambda: datetime.now(UTC) + timedelta(days=2)
            return embed(faces)

        monkeypatch.setattr(service.reader, "embed", a_day_passes)
        job = PeopleImport(
            service.store, service.reader, "default", workers=1, max_bytes=10**7, retention=service.retention
        )
        assert job.run(people_of_folder(tmp_path / "people")).added == 1
        assert client.get("/galleries/default/subjects/ada").json()["expires_at"] is None
        assert service.retention.sweep().expired == {}
        assert names(client.post("/identify", files={"image": mirrored})) == ["ada"]


def test_who_is_enrolled_anew_by_two_at_once_loses_nothing(tmp_path: Path, portrait: bytes, mirrored: bytes) -> None:
    with running(settings_of(tmp_path)) as client:
        service = service_of(client)
        send(client, "ada", portrait, expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
        service.retention.clock = lambda: datetime.now(UTC) + timedelta(days=2)
        is_due, between = service.retention.is_due, list[httpx.Response]()

        def another_comes_between(gallery: Gallery, subject: Subject) -> bool:
            found = is_due(gallery, subject)
            if not between:
                between.append(httpx.Response(500))
                between[0] = send(client, "ada", mirrored)
            return found

        service.retention.is_due = another_comes_between  # type: ignore[method-assign]
        answer = send(client, "ada", portrait).json()
        assert between[0].json()["subject"]["templates"] == 1
        assert answer["subject"]["templates"] == 2


def test_an_identification_is_noted_where_a_rule_asks(tmp_path: Path, portrait: bytes) -> None:
    with running(settings_of(tmp_path)) as client:
        send(client, "ada", portrait)
        client.post("/identify", files={"image": portrait})
        service_of(client).retention.write_seen()
        assert client.get("/galleries/default/subjects/ada").json()["seen_at"] is None
        client.patch("/galleries/default", json={"unseen_days": 30})
        client.post("/identify", files={"image": portrait})
        service_of(client).retention.write_seen()
        assert client.get("/galleries/default/subjects/ada").json()["seen_at"] is not None


# -- forgetting


def test_forgetting_answers_a_signed_receipt(tmp_path: Path, portrait: bytes, mirrored: bytes) -> None:
    with running(settings_of(tmp_path, snapshot_interval=0)) as client:
        send(client, "team/ada", portrait)
        send(client, "team/ada", mirrored)
        assert names(client.post("/identify", files={"image": portrait})) == ["team/ada"]
        answer = client.post("/galleries/default/subjects/team/ada/forget")
        assert answer.status_code == 200
        key = client.get("/receipts/key").json()
        assert key["algorithm"] == "Ed25519"
        receipt = check_receipt(answer.json(), key["public_key"])
        assert receipt["erased"] == {"subjects": 1, "templates": 2, "keys": 1, "snapshots": 0}
        assert (receipt["gallery"], receipt["subject"]) == ("default", "team/ada")
        assert names(client.post("/identify", files={"image": portrait})) == [None]
        assert is_problem(client.post("/galleries/default/subjects/team/ada/forget"), 404, "subject-not-found")


def test_this_process_forgets_the_vector_at_once(
    client: TestClient, gallery: str, enroll: Enroll, identify: Identify, portrait: bytes
) -> None:
    enroll("ada", portrait)
    identify(portrait)
    service = service_of(client)
    before = service.replicas.up_to_date(gallery).templates
    client.delete(f"/galleries/{gallery}/subjects/ada")
    (replica,) = (one for one in service.replicas.all() if one.name == gallery)
    assert (before, replica.templates) == (1, 0)


def test_after_forgetting_no_snapshot_holds_the_vector_in_memory_or_on_the_disk(
    tmp_path: Path, portrait: bytes, mirrored: bytes
) -> None:
    memory = tmp_path.with_name(f"{tmp_path.name}-memory")
    settings = settings_of(tmp_path, runtime_dir=memory)
    with running(settings) as client:
        send(client, "ada", portrait)
        send(client, "mirror", mirrored)
        client.post("/identify", files={"image": portrait})
        vectors = [service_of(client).store.subject_embeddings(one).embeddings.tobytes() for one in (1, 2)]
    assert content_of(memory) == b""  # nothing lies open where no service runs
    with running(settings) as client:
        (replica,) = service_of(client).replicas.all()
        assert replica.snapshots is not None
        assert replica.snapshots.lead()
        before = content_of(memory)
        assert all(vector in before for vector in vectors)
        receipt = client.post("/galleries/default/subjects/ada/forget").json()
        assert (receipt["erased"]["snapshots"], receipt["pending"]) == (1, [])
        after = content_of(memory)
        assert [vector in after for vector in vectors] == [False, True]
        assert not any(vector in content_of(tmp_path / "index") for vector in vectors)
        assert names(client.post("/identify", files={"image": mirrored})) == ["mirror"]
    with running(settings) as client:
        assert names(client.post("/identify", files={"image": portrait})) == ["mirror"]  # who looks much like her


def content_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_where_another_process_leads_the_receipt_says_what_is_to_come(tmp_path: Path, portrait: bytes) -> None:
    with running(settings_of(tmp_path)) as client:
        send(client, "ada", portrait)
        client.post("/identify", files={"image": portrait})
        gallery = service_of(client).store.gallery("default")
        other = service_of(client).indexes.snapshots_of(gallery)
        own = service_of(client).replicas.of(gallery).snapshots
        assert other is not None
        assert own is not None
        while not other.lead():  # the service looks once a second, and may have been first
            own.resign()
        assert client.post("/galleries/default/subjects/ada/forget").json()["pending"] == ["snapshots"]
        assert service_of(client).store.gallery("default").erasure is not None
        other.resign()


@pytest.mark.parametrize("fault", ["others may enter it", "no file can be made in it"])
def test_without_a_private_folder_in_memory_there_are_no_snapshots(
    tmp_path: Path, portrait: bytes, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    memory = tmp_path.with_name(f"{tmp_path.name}-open")
    memory.mkdir(mode=0o700)
    if fault == "others may enter it":
        memory.chmod(0o755)
    else:
        (private_base(memory) / ".facegallery.lock").mkdir()
    with running(settings_of(tmp_path, runtime_dir=memory)) as client:
        send(client, "ada", portrait)
        assert names(client.post("/identify", files={"image": portrait})) == ["ada"]
    assert "snapshots.off" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()


def test_the_data_folder_is_no_folder_in_memory_and_loses_nothing(
    tmp_path: Path, portrait: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o700)
    for _ in range(2):
        with running(settings_of(tmp_path, runtime_dir=tmp_path)) as client:
            send(client, "ada", portrait)
            assert names(client.post("/identify", files={"image": portrait})) == ["ada"]
        assert "must lie apart from" in capsys.readouterr().err
    assert {"facegallery.db", "vault.db", "master.key"} <= {path.name for path in tmp_path.iterdir()}


def test_what_erases_people_is_written_down(tmp_path: Path, portrait: bytes) -> None:
    with running(settings_of(tmp_path)) as client:
        service = service_of(client)
        client.post("/galleries", json={"name": "default", "keep_days": 60})
        client.patch("/galleries/default", json={"keep_days": 30})
        send(client, "ada", portrait, consent=json.dumps(CONSENT))
        client.patch("/galleries/default/subjects/ada", json={"consent": None})
        client.post("/galleries/default/subjects/ada/forget")
        send(client, "bob", portrait)
        service.retention.clock = lambda: datetime.now(UTC) + timedelta(days=31)
        assert service.retention.sweep().expired == {"default": 1}
        audit = service.store.journal
        assert isinstance(audit, AuditLog)
        found = [json.loads(line)["entry"] for line in audit.entries()]
    known = [(entry["action"], entry["subjects"], entry["details"]) for entry in found if entry["gallery"]]
    rules = {"require_consent": False, "keep_days": 30, "unseen_days": None}
    added = {"added": 1, "known": 0, "created": True}
    assert known == [
        ("create-gallery", [], {"policy": None}),
        ("change-gallery", [], rules | {"keep_days": 60}),
        ("change-gallery", [], rules),
        ("enroll", ["ada"], added | {"consent": True}),
        ("change-subject", ["ada"], {"metadata": False, "consent": True}),
        ("forget", ["ada"], {"templates": 1}),
        ("enroll", ["bob"], added),
        ("expire", ["bob"], {"templates": 1}),
    ]


def test_a_backup_restored_after_forgetting_names_nobody(tmp_path: Path, portrait: bytes) -> None:
    with running(settings_of(tmp_path)) as client:
        send(client, "ada", portrait)
        source, target = tmp_path / "facegallery.db", tmp_path / "backup"
        with closing(sqlite3.connect(source)) as reader, closing(sqlite3.connect(target)) as writer:
            reader.backup(writer)
        client.post("/galleries/default/subjects/ada/forget")
    for path in tmp_path.glob("facegallery.db*"):
        path.unlink()
    shutil.copy(tmp_path / "backup", tmp_path / "facegallery.db")
    with running(settings_of(tmp_path)) as client:
        assert names(client.post("/identify", files={"image": portrait})) == [None]
        assert service_of(client).retention.sweep().came_back == 1
        assert is_problem(client.get("/galleries/default/subjects/ada"), 404, "subject-not-found")


# -- the start


def test_the_first_start_makes_key_and_vault_and_the_next_finds_everybody(tmp_path: Path, portrait: bytes) -> None:
    with running(settings_of(tmp_path)) as client:
        send(client, "ada", portrait)
        vector = service_of(client).store.subject_embeddings(1).embeddings.tobytes()
        files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert vector not in files
    with running(settings_of(tmp_path)) as client:
        assert names(client.post("/identify", files={"image": portrait})) == ["ada"]
    assert {"facegallery.db", "vault.db", "master.key"} <= {path.name for path in tmp_path.iterdir()}


def test_a_wrong_or_missing_key_or_vault_stops_the_start(tmp_path: Path, portrait: bytes) -> None:
    with running(settings_of(tmp_path)) as client:
        send(client, "ada", portrait)
    with pytest.raises(MasterKeyMissing, match="the vault's keys are wrapped by master key"):
        create_app(settings_of(tmp_path, master_key=MasterKey.make().written))
    (tmp_path / "master.key").rename(tmp_path / "elsewhere")
    with pytest.raises(MasterKeyMissing, match="there is no master key"):
        create_app(settings_of(tmp_path))
    with running(settings_of(tmp_path, master_key_file=tmp_path / "elsewhere")) as client:
        assert names(client.post("/identify", files={"image": portrait})) == ["ada"]
    for path in tmp_path.glob("vault.db*"):
        path.unlink()
    with pytest.raises(KeyUnavailable, match="the vault is empty; restore the vault"):
        create_app(settings_of(tmp_path, master_key_file=tmp_path / "elsewhere"))
    with pytest.raises(MasterKeyMissing, match="must not lie in the gallery's database"):
        create_app(settings_of(tmp_path, vault_url=f"sqlite:///{(tmp_path / 'facegallery.db').as_posix()}"))


def test_a_tampered_template_is_never_named_and_the_others_are(
    tmp_path: Path, portrait: bytes, mirrored: bytes
) -> None:
    with running(settings_of(tmp_path)) as client:
        send(client, "ada", portrait)
        send(client, "mirror", mirrored)
    with closing(sqlite3.connect(tmp_path / "facegallery.db")) as database:
        one, two = database.execute("SELECT embedding FROM template ORDER BY id").fetchall()
        database.execute("UPDATE template SET embedding = ? WHERE id = 1", two)
        database.commit()
    with running(settings_of(tmp_path)) as client:
        data = {"all_candidates": "true"}
        (face,) = client.post("/identify", data=data, files={"image": portrait}).json()["faces"]
        assert [candidate["subject"] for candidate in face["candidates"]] == ["mirror"]
        assert 'facegallery_damaged_templates_total{reason="tampered"}' in client.get("/metrics").text
    assert one != two


def test_with_an_older_vault_a_known_photo_is_refused_until_the_person_is_erased(
    tmp_path: Path, portrait: bytes, mirrored: bytes
) -> None:
    with running(settings_of(tmp_path)) as client:
        send(client, "ada", portrait)
        send(client, "mirror", mirrored)
    with closing(sqlite3.connect(tmp_path / "facegallery.db")) as database:
        (key_id,) = database.execute("SELECT key_id FROM subject WHERE key = 'ada'").fetchone()
    with closing(sqlite3.connect(tmp_path / "vault.db")) as vault:
        vault.execute("DELETE FROM data_key WHERE id = ?", (key_id,))
        vault.commit()
    shutil.rmtree(tmp_path / "indexes", ignore_errors=True)
    with running(settings_of(tmp_path)) as client:
        for photo in (portrait, mirrored):
            answer = send(client, "ada", photo)
            assert is_problem(answer, 503, "key-unavailable")
            assert "erase the subject and enroll it anew" in answer.json()["detail"]
        assert client.delete("/galleries/default/subjects/ada").status_code == 204
        assert send(client, "ada", portrait).status_code == 201
        assert names(client.post("/identify", files={"image": portrait})) == ["ada"]
