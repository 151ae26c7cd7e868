"""A database that cannot be written, without a disk to fill: real limits of SQLite and of PostgreSQL."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.pool import Pool

from app.gallery.errors import StorageUnwritable
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import check_schema
from app.settings import Settings
from tests.http.conftest import running
from tests.http.test_bad_input import is_problem
from tests.postgresql import postgresql

NO_LIMIT = {"max_page_count": 2**30, "query_only": 0}


@pytest.fixture
def pragmas() -> Iterator[dict[str, int]]:
    """Pragmas that every connection of SQLite gets whenever it is used."""
    pragmas = dict(NO_LIMIT)

    def apply(connection: Any, _record: Any, _proxy: Any) -> None:
        for name, value in pragmas.items():
            connection.execute(f"PRAGMA {name}={value}").fetchall()

    event.listen(Pool, "checkout", apply)
    yield pragmas
    event.remove(Pool, "checkout", apply)


def enroll(client: TestClient, subject: str, photo: bytes) -> httpx.Response:
    answer: httpx.Response = client.post("/enroll", data={"subject": subject}, files={"images": photo})
    return answer


def people(client: TestClient, photo: bytes) -> tuple[set[str], set[str]]:
    """Who is in SQL, and who the index finds by this very photo."""
    listed = client.get("/galleries/default/subjects", params={"limit": 1000}).json()["subjects"]
    data = {"threshold": "0.01", "top_k": "100"}
    (face,) = client.post("/identify", data=data, files={"image": photo}).json()["faces"]
    return {one["subject"] for one in listed}, {one["subject"] for one in face["candidates"]}


@pytest.mark.parametrize("limit", [{"max_page_count": 1}, {"query_only": 1}], ids=["full", "read-only"])
def test_sqlite_refuses_writes_and_goes_on_reading(
    tmp_path: Path, portrait: bytes, pragmas: dict[str, int], limit: dict[str, int]
) -> None:
    with running(Settings(data_dir=tmp_path, _env_file=None)) as client:
        acknowledged = {"first"}
        assert enroll(client, "first", portrait).status_code == 201
        pragmas |= limit
        for number in range(50):  # pages that are begun have some room left
            answer = enroll(client, f"person {number}", portrait)
            if answer.status_code != 201:
                break
            acknowledged.add(f"person {number}")
        assert is_problem(answer, 507, "storage-unwritable")
        assert "the change was not stored" in answer.json()["detail"]
        assert people(client, portrait) == (acknowledged, acknowledged)
        pragmas |= NO_LIMIT
        assert enroll(client, "last", portrait).status_code == 201
        assert people(client, portrait) == (acknowledged | {"last"}, acknowledged | {"last"})


def test_a_file_that_cannot_be_opened_says_what_it_needs(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path.as_posix()}", timeout=1)  # a folder is no database

    with pytest.raises(StorageUnwritable, match="its folder must exist and be writable"):
        check_schema(engine)


def test_postgresql_that_is_read_only_refuses_writes_and_goes_on_reading(
    own_postgresql: str, portrait: bytes, tmp_path: Path
) -> None:
    def read_only(value: str) -> None:
        with psycopg.connect(own_postgresql, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER DATABASE postgres SET default_transaction_read_only = {value}")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

    with running(
        Settings(database_url=own_postgresql, data_dir=tmp_path, database_timeout=3, _env_file=None)
    ) as client:
        assert enroll(client, "before", portrait).status_code == 201
        read_only("on")
        assert is_problem(enroll(client, "while read-only", portrait), 507, "storage-unwritable")
        assert people(client, portrait) == ({"before"}, {"before"})
        read_only("off")
        assert enroll(client, "after", portrait).status_code == 201
        assert people(client, portrait) == ({"before", "after"}, {"before", "after"})


@pytest.fixture
def own_postgresql() -> Iterator[str]:
    """Address of a server of its own, because its settings are changed."""
    with postgresql() as server:
        yield server.address


@pytest.mark.parametrize("without", [{"snapshot_interval": 0.0}, {"index": "exact"}])
def test_snapshots_that_are_switched_off_are_erased_with_their_keys(
    without: dict[str, Any], portrait: bytes, tmp_path: Path
) -> None:
    def snapshots() -> list[Path]:
        return list((tmp_path / "index").rglob("*.sealed"))

    def keys() -> int:
        with sqlite3.connect(tmp_path / "vault.db") as vault:
            (count,) = vault.execute("SELECT count(*) FROM data_key WHERE purpose LIKE 'snapshot %'").fetchone()
        return int(count)

    with running(Settings(data_dir=tmp_path, _env_file=None)) as client:
        assert enroll(client, "eileen", portrait).status_code == 201
        assert people(client, portrait) == ({"eileen"}, {"eileen"})
    assert (len(snapshots()), keys()) == (1, 1)
    with running(Settings(data_dir=tmp_path, _env_file=None, **without)) as client:
        assert (snapshots(), keys()) == ([], 0)
        assert people(client, portrait) == ({"eileen"}, {"eileen"})
    with running(Settings(data_dir=tmp_path, _env_file=None)) as client:
        assert people(client, portrait) == ({"eileen"}, {"eileen"})
    assert (len(snapshots()), keys()) == (1, 1)
