"""What the log says of calls that failed, to whoever runs the service, and what it never says."""

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from app.settings import Settings
from tests.http.conftest import Server, running
from tests.http.test_faults import postgres
from tests.postgresql import postgresql

PASSWORD = "planted-database-password"


def events(log: str, name: str) -> list[dict[str, Any]]:
    """The lines of an event, as their values."""
    lines = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == name]


def test_a_start_says_which_version_runs_and_nothing_of_what_it_found_to_migrate(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    for _ in range(2):
        server = serve(tmp_path, FACEGALLERY_LOG_FORMAT="json")
        server.stop()
        told = [json.loads(line)["event"] for line in server.log.splitlines()]
        assert [event for event in told if event.startswith(("Context impl", "Will assume"))] == []
        (ready,) = events(server.log, "ready")
        assert (ready["version"], ready["extractor"].partition("@")[0]) == (version("facegallery"), "sface")


def test_a_call_that_is_answered_well_is_no_problem(
    tmp_path: Path, portrait: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(Settings(data_dir=tmp_path, log_format="json", _env_file=None)) as client:
        client.post("/enroll", data={"subject": "ada"}, files={"images": portrait}).raise_for_status()
    (line,) = events(capsys.readouterr().err, "request")
    assert line.keys() == {
        "event", "level", "timestamp", "request_id", "by", "method", "route", "status", "seconds",
    }  # fmt: skip
    assert (line["level"], line["status"]) == ("info", 201)


def test_a_call_that_is_refused_is_logged_with_its_problem_and_without_the_person(
    tmp_path: Path, no_face: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(Settings(data_dir=tmp_path, log_format="json", _env_file=None)) as client:
        client.post("/galleries", json={"name": "default"}).raise_for_status()
        asked = client.get("/galleries/default/subjects/planted-name")
        client.post("/enroll", data={"subject": "planted-name"}, files={"images": no_face})
        client.get("/")
        client.get("/galleries", headers={"Host": "elsewhere.example.org"})
    lines = events(capsys.readouterr().err, "request")[1:]
    assert "planted-name" in asked.json()["detail"]
    assert "planted-name" not in json.dumps(lines)
    assert [(one["level"], one["status"], one["problem"], "reason" in one) for one in lines] == [
        ("info", 404, "subject-not-found", False),
        ("info", 422, "no-face", False),
        ("info", 404, "http", False),
        ("info", 403, "forbidden", False),
    ]


def test_an_audit_log_that_is_broken_is_told_with_each_call_that_it_stops(
    tmp_path: Path, portrait: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(Settings(data_dir=tmp_path, log_format="json", _env_file=None)) as client:
        with closing(sqlite3.connect(tmp_path / "facegallery.db", isolation_level=None)) as database:
            database.execute("UPDATE audit_head SET count = 0")
        answer = client.post("/enroll", data={"subject": "ada"}, files={"images": portrait})
    (line,) = events(capsys.readouterr().err, "request")
    assert (answer.status_code, line["status"], line["level"]) == (500, 500, "warning")
    assert line["problem"] == "audit-broken"
    assert line["reason"].startswith("the audit log's head was changed, or sealed with another pepper")


def test_a_bug_is_told_with_the_line_of_its_call(
    tmp_path: Path, portrait: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(Settings(data_dir=tmp_path, log_format="json", _env_file=None)) as client:
        client.post("/enroll", data={"subject": "ada"}, files={"images": portrait}).raise_for_status()
        with closing(sqlite3.connect(tmp_path / "facegallery.db", isolation_level=None)) as database:
            database.execute("UPDATE template SET pose = '{\"jaw\": 1}'")  # a row that no version wrote
        client.get("/galleries/default/templates")
    log = capsys.readouterr().err
    assert len(events(log, "request.failed")) == 1
    line = events(log, "request")[-1]
    assert (line["status"], line["level"], line["problem"]) == (500, "warning", "internal")


def test_what_postgresql_said_is_told_wherever_it_is_away_and_its_password_nowhere(
    tmp_path: Path, portrait: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with postgresql() as server:
        address = make_url(server.address).set(password=PASSWORD).render_as_string(hide_password=False)
        settings = Settings(
            database_url=address, data_dir=tmp_path, database_timeout=3, log_format="json", _env_file=None
        )
        with running(settings) as client:
            client.post("/enroll", data={"subject": "planted-name"}, files={"images": portrait}).raise_for_status()
            client.post("/identify", files={"image": portrait}).raise_for_status()  # its entry is written in a moment
            postgres(server.data, "stop", "-m", "immediate")
            answer = client.post("/enroll", data={"subject": "planted-name"}, files={"images": portrait})
            assert answer.status_code == 503
            log, until = capsys.readouterr().err, time.monotonic() + 60
            while not (events(log, "upkeep.failed") and events(log, "audit.not_written")):
                assert time.monotonic() < until
                time.sleep(0.1)
                log += capsys.readouterr().err
    request = events(log, "request")[-1]
    assert (request["level"], request["problem"]) == ("warning", "database-unavailable")
    for line in (request, events(log, "upkeep.failed")[-1], events(log, "audit.not_written")[-1]):
        assert line["reason"].startswith("the database does not answer; try again (")
        assert "failed" in line["reason"] or "terminating connection" in line["reason"]
    assert PASSWORD not in log
    assert "planted-name" not in log
