"""A standby that takes over without some entries: the audit log says so and goes on; a copy by hand stops it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, inspect

from app.access.audit_log import AuditLog
from app.access.errors import AuditBroken
from app.access.timeline import timeline_of
from app.gallery.journal import Event
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import migrate
from app.gallery.sql.rows import Sessions
from tests.app.access.test_audit import PEPPER
from tests.http.test_faults import postgres
from tests.postgresql import PostgreSQL, postgresql


class Cluster:
    """A server, and a copy of it as it was at one moment."""

    def __init__(self, server: PostgreSQL) -> None:
        self._address = server.address
        self._data, self._copy = server.data, server.data.with_name("copy")
        self._options = (server.data / "postmaster.opts").read_text().split('"', 1)[1].strip()

    def copy(self) -> None:
        postgres(self._data, "stop", "-m", "fast")
        subprocess.run(["cp", "-a", self._data, self._copy], check=True)
        self._start()

    def put_back(self, *, promoted: bool) -> None:
        """Have the copy take the server's place, as a standby that is promoted does, or as it lies there."""
        postgres(self._data, "stop", "-m", "immediate")
        shutil.rmtree(self._data)
        self._copy.rename(self._data)
        if promoted:
            with (self._data / "postgresql.auto.conf").open("a") as file:
                file.write("restore_command = 'false'\n")
            shutil.copystat(self._data / "PG_VERSION", self._touched(self._data / "recovery.signal"))
        self._start()
        with psycopg.connect(self._address, autocommit=True) as connection:
            while connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
                assert promoted

    def _touched(self, path: Path) -> Path:
        path.touch()
        owner = self._data.stat()
        shutil.chown(path, owner.st_uid, owner.st_gid)
        return path

    def _start(self) -> None:
        postgres(self._data, "start", "-o", '"' + self._options)


@pytest.fixture
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture
def engine(server: PostgreSQL) -> Iterator[Engine]:
    engine = open_engine(server.address, timeout=10)
    migrate(engine)
    yield engine
    engine.dispose()


def write(engine: Engine, audit: AuditLog, name: str) -> None:
    with Sessions(engine).writing() as session:
        audit.write(session, Event("enroll", "people", (name,)))


def entries(audit: AuditLog) -> list[tuple[str, list[str]]]:
    found = [json.loads(line)["entry"] for line in audit.entries()]
    return [(entry["action"], entry["subjects"]) for entry in found]


def test_a_process_goes_on_after_a_failover_and_the_log_says_where_it_broke_off(
    server: PostgreSQL, engine: Engine
) -> None:
    audit, other, behind = (AuditLog(engine, PEPPER) for _ in range(3))
    cluster = Cluster(server)
    write(engine, behind, "anna")
    cluster.copy()
    engine.dispose()
    write(engine, other, "bob")
    write(engine, audit, "cleo")
    lost = audit.head()
    cluster.put_back(promoted=True)
    engine.dispose()
    write(engine, audit, "dora")
    write(engine, behind, "emil")
    write(engine, other, "fay")  # by now the log is longer than when this process last looked
    write(engine, audit, "gil")
    assert entries(audit) == [
        ("enroll", ["anna"]), ("entries-undone", []), ("enroll", ["dora"]), ("enroll", ["emil"]),
        ("entries-undone", []), ("enroll", ["fay"]), ("enroll", ["gil"]),
    ]  # fmt: skip
    told = json.loads(list(audit.entries())[1])["entry"]
    anna = json.loads(next(iter(audit.entries())))["hash"]
    assert (told["by"], told["details"]["had"], told["details"]["has"]) == ("service", str(lost), f"1:{anna}")
    assert told["details"]["timelines"] == ["00000001", "00000002"]
    assert audit.verify().flaws == ()


def test_a_process_refuses_to_go_on_where_an_earlier_database_was_put_back(server: PostgreSQL, engine: Engine) -> None:
    audit = AuditLog(engine, PEPPER)
    cluster = Cluster(server)
    write(engine, audit, "anna")
    cluster.copy()
    engine.dispose()
    write(engine, audit, "bob")
    cluster.put_back(promoted=False)
    engine.dispose()
    with pytest.raises(AuditBroken, match="has 1 entries and had 2"):
        write(engine, audit, "cleo")
    assert entries(audit) == [("enroll", ["anna"])]


def test_every_role_may_ask_for_the_timeline(postgresql_server: str) -> None:
    engine = open_engine(postgresql_server, timeout=10)
    with Sessions(engine).writing() as session:
        session.connection().exec_driver_sql("CREATE ROLE without_rights")
        session.connection().exec_driver_sql("SET LOCAL ROLE without_rights")
        assert timeline_of(session) == "00000001"
        session.rollback()
    engine.dispose()


def test_a_server_that_does_not_tell_its_timeline_keeps_the_transaction(postgresql_url: str) -> None:
    engine = open_engine(postgresql_url, timeout=10)
    with Sessions(engine).writing() as session:
        connection = session.connection()
        connection.exec_driver_sql("CREATE TABLE kept (id int)")
        connection.exec_driver_sql(
            "CREATE FUNCTION pg_walfile_name(pg_lsn) RETURNS text LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE feature_not_supported; END $$"
        )
        schema = connection.exec_driver_sql("SELECT current_schema()").scalar_one()
        connection.exec_driver_sql(f"SET LOCAL search_path = {schema}, pg_catalog")
        assert timeline_of(session) is None
    assert inspect(engine).get_table_names() == ["kept"]
    engine.dispose()
