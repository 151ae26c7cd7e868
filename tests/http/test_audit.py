"""What is written down about calls, and the commands that check and print it."""

import json
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner, Result

from app.access.audit_log import AuditLog
from app.access.errors import KeyNotFound
from app.access.keys import ALL_SCOPES
from app.cli import cli
from app.gallery.errors import InvalidInput, StorageUnwritable
from app.settings import Settings
from tests.http.conftest import Server, running


class Facegallery:
    """The command line, in this process."""

    def __init__(self, folder: Path) -> None:
        self._environment = {"FACEGALLERY_DATA_DIR": str(folder)}

    def __call__(self, *words: str) -> Result:
        return CliRunner().invoke(cli, words, env=self._environment)


def entries(client: TestClient) -> list[dict[str, Any]]:
    audit: AuditLog = client.app.state.service.store.journal  # type: ignore[attr-defined]
    audit.flush()
    assert audit.verify().flaws == ()
    return [json.loads(line)["entry"] for line in audit.entries()]


def test_calls_are_written_down_by_key_address_and_request(tmp_path: Path, portrait: bytes, no_face: bytes) -> None:
    settings = Settings(data_dir=tmp_path, authentication="keys", _env_file=None)
    with running(settings) as client:
        made, key = client.app.state.gate.keys.create("desk", ALL_SCOPES)  # type: ignore[attr-defined]
        client.headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "order-66"}
        start = len(entries(client))
        client.post("/enroll", data={"subject": "eileen"}, files={"images": portrait})
        client.post("/enroll", data={"subject": "nobody"}, files={"images": no_face})
        client.post("/identify", files={"image": portrait})
        client.post("/identify", json={"embedding": [1.0] + [0.0] * 127})
        client.post("/verify", data={"subject": "eileen"}, files={"image": portrait})
        client.patch("/galleries/default", json={"policy": {"fpir": 0.1}})
        client.delete("/galleries/default/subjects/eileen")
        client.delete("/galleries/default/subjects/eileen")
        found = entries(client)

    assert [entry["action"] for entry in found[:start]] == ["settings", "create-key", "create-key"]
    known = found[start:]
    assert sorted(entry["action"] for entry in known) == sorted(
        ["enroll", "identify", "identify", "verify", "change-gallery", "delete-subject"]
    )
    assert {(entry["by"], entry["address"], entry["request"]) for entry in known} == {
        (made.id, "testclient", "order-66")
    }
    by_action = {entry["action"]: entry for entry in known}
    assert by_action["enroll"]["details"] == {"added": 1, "created": True, "known": 0}
    identified = [(one["subjects"], one["details"]) for one in known if one["action"] == "identify"]
    assert identified == [
        (["eileen"], {"identified": 1, "probes": 1}),
        ([], {"identified": 0, "probes": 1}),
    ]
    assert by_action["verify"]["details"] == {"match": True}
    assert by_action["change-gallery"]["details"] == {"policy": {"fpir": 0.1}}
    assert by_action["delete-subject"]["details"] == {"templates": 1}
    assert key not in json.dumps(found)


def test_settings_are_written_down_where_they_changed(tmp_path: Path) -> None:
    for max_images in (20, 20, 5):
        settings = Settings(
            data_dir=tmp_path, max_images=max_images, key_pepper="a planted pepper of 32 characters", _env_file=None
        )
        with running(settings) as client:
            found = [entry for entry in entries(client) if entry["action"] == "settings"]
    assert [entry["details"]["changed"] for entry in found][1:] == [["max_images"]]
    assert "planted" not in json.dumps(found)


def test_the_commands_make_keys_check_the_log_and_print_it(tmp_path: Path) -> None:
    facegallery = Facegallery(tmp_path)
    facegallery("migrate")
    made = json.loads(facegallery("keys", "create", "desk", "--scope", "read", "--days", "1", "--json").stdout)
    assert made["scopes"] == ["read"]
    plain = facegallery("keys", "create", "door", "--scope", "identify,read", "--gallery", "staff")
    assert plain.stdout.count("\n") == 1
    assert facegallery("keys", "rotate", made["id"], "--grace", "60").stdout.startswith(f"fg_{made['id']}_")
    assert facegallery("keys", "revoke", made["id"]).exit_code == 0
    assert isinstance(facegallery("keys", "revoke", "none").exception, KeyNotFound)
    assert isinstance(facegallery("keys", "create", "x", "--scope", "write").exception, InvalidInput)
    listed = json.loads(facegallery("keys", "list", "--json").stdout)
    assert [(key["name"], bool(key["revoked_at"])) for key in listed] == [("desk", True), ("door", False)]
    assert "staff" in facegallery("keys", "list").stdout

    done = facegallery("audit", "verify")
    assert (done.exit_code, done.stdout.split(",")[0]) == (0, "4 entries")
    head = done.stdout.split()[-1]
    exported = [json.loads(line)["entry"] for line in facegallery("audit", "export").stdout.splitlines()]
    assert [entry["action"] for entry in exported] == ["create-key", "create-key", "rotate-key", "revoke-key"]
    assert all(entry["by"].startswith("cli:") for entry in exported)
    assert facegallery("audit", "verify", "--expect", head).exit_code == 0
    old = tmp_path / "old.jsonl"
    done = facegallery("audit", "prune", "--before", "2020-01-01", "--archive", str(old))
    assert (done.exit_code, done.stdout, old.exists()) == (0, "0 entries removed\n", False)
    old.touch()
    assert isinstance(
        facegallery("audit", "prune", "--before", "2090-01-01", "--archive", str(old)).exception, StorageUnwritable
    )
    assert facegallery("audit", "verify").stdout.startswith("4 entries")
    done = facegallery("audit", "prune", "--before", "2090-01-01", "--archive", str(tmp_path / "older.jsonl"))
    assert done.stdout == "3 entries removed\n"
    archived = [json.loads(line)["entry"] for line in (tmp_path / "older.jsonl").read_text().splitlines()]
    assert (archived, (tmp_path / "older.jsonl").stat().st_mode & 0o777) == (exported, 0o600)
    assert facegallery("audit", "verify", "--expect", head).exit_code == 0
    with closing(sqlite3.connect(tmp_path / "facegallery.db", isolation_level=None)) as database:
        database.execute("UPDATE audit SET entry = replace(entry, 'before', 'behind') WHERE number = 5")
    done = facegallery("audit", "verify")
    assert (done.exit_code, done.stdout.split(", ")[1]) == (1, "1 flaws")
    assert facegallery("audit", "verify", "--expect", "head").exit_code == 2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_process_that_ends_leaves_a_whole_log(
    tmp_path: Path, portrait: bytes, serve: Callable[..., Server], how: signal.Signals
) -> None:
    server = serve(tmp_path)
    for _ in range(3):
        server.client.post("/enroll", data={"subject": "eileen"}, files={"images": portrait}).raise_for_status()
        server.client.post("/identify", files={"image": portrait}).raise_for_status()
    server.stop(how)
    facegallery = Facegallery(tmp_path)
    assert facegallery("audit", "verify").exit_code == 0
    exported = [json.loads(line)["entry"]["action"] for line in facegallery("audit", "export").stdout.splitlines()]
    assert exported.count("enroll") == 3
    if how is signal.SIGTERM:
        assert exported.count("identify") == 3
    assert json.loads(facegallery("audit", "verify", "--json").stdout)["flaws"] == []
    assert facegallery("audit", "export", "--subject", "nobody").stdout == ""
