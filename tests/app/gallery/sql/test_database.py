"""How the databases are set up, and what their failures are called; all failures are the databases' own."""

import os
import socket
import stat
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection
from sqlite3 import connect as connect_sqlite
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, make_url
from sqlalchemy.exc import DBAPIError

from app.gallery.deadline import WaitLimit, waiting_at_most, within
from app.gallery.errors import Busy, DatabaseUnavailable, SchemaOutdated, StorageUnwritable
from app.gallery.records import NewTemplate
from app.gallery.sql.database import database_errors, empty_log, open_engine
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore

Templates = Callable[[int], list[NewTemplate]]


@contextmanager
def opened(url: str, *, timeout: float = 30, pragma: str | None = None) -> Iterator[Engine]:
    engine = open_engine(url, timeout=timeout)
    if pragma is not None:

        @event.listens_for(engine, "connect")
        def _set(connection: Connection, _record: Any) -> None:
            connection.execute(f"PRAGMA {pragma}")

    yield engine
    engine.dispose()


def make_gallery(store: GalleryStore, name: str = "people") -> None:
    store.create_gallery(name, extractor="net@1", dimension=8, policy=None)


def test_sqlite_keeps_what_it_has_acknowledged(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/new/folder/gallery.db") as engine, engine.connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys")
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    assert found == ["wal", 2, 1]


def test_a_new_file_that_another_is_setting_up_is_waited_for(tmp_path: Path) -> None:
    with closing(connect_sqlite(tmp_path / "gallery.db", check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")  # as who turns the log on; SQLite's own patience does not hold then
        with opened(f"sqlite:///{tmp_path}/gallery.db") as engine, ThreadPoolExecutor(1) as pool:
            connected = pool.submit(engine.connect)
            with pytest.raises(TimeoutError):
                connected.result(0.5)
            other.rollback()
            with connected.result() as connection:
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_new_file_that_another_does_not_let_go_of_is_busy(tmp_path: Path) -> None:
    with closing(connect_sqlite(tmp_path / "gallery.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with (
            opened(f"sqlite:///{tmp_path}/gallery.db", timeout=0.2) as engine,
            pytest.raises(Busy),
            database_errors(),
        ):
            engine.connect()


def test_a_log_that_two_empty_at_once_is_empty_for_both(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/gallery.db") as engine, ThreadPoolExecutor(4) as pool:
        migrate(engine)
        found = list[bool]()
        for turn in range(100):
            with engine.begin() as connection:
                connection.exec_driver_sql(f"CREATE TABLE of_turn_{turn} (what TEXT)")
            found += pool.map(lambda _: empty_log(engine), range(4))
        assert all(found)
        assert (tmp_path / "gallery.db-wal").stat().st_size == 0


def test_a_log_that_is_read_from_is_not_empty(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/gallery.db") as engine, engine.connect() as reader:
        migrate(engine)
        reader.exec_driver_sql("SELECT count(*) FROM gallery")
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE other (what TEXT)")
        assert not empty_log(engine)
        reader.rollback()
        assert empty_log(engine)


def test_a_log_of_a_file_that_is_gone_is_told_as_any_failure(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with opened(f"sqlite:///{folder}/gallery.db") as engine:
        migrate(engine)
        engine.dispose()  # as where all connections are in use, so that one has to be made
        folder.rename(tmp_path / "moved")
        with pytest.raises(StorageUnwritable, match=r"^the database's file cannot be opened"):
            empty_log(engine)


def test_an_sqlite_database_is_for_its_owner_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    mask = os.umask(0o022)
    try:
        with opened(f"sqlite:///{tmp_path}/gallery.db") as engine:
            migrate(engine)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(mask)
    assert modes == {f"gallery.db{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}


def test_postgresql_is_reached_through_psycopg_3() -> None:
    with opened("postgresql://user:secret@localhost/people") as engine:
        assert engine.url.drivername == "postgresql+psycopg"
        assert engine.url.password == "secret"


@pytest.mark.parametrize(("query", "seconds"), [({}, 7), ({"keepalives_idle": "99"}, 99)])
def test_a_postgresql_that_is_gone_without_a_word_is_noticed(
    postgresql_url: str, query: dict[str, str], seconds: int
) -> None:
    url = make_url(postgresql_url).update_query_dict(query).render_as_string(hide_password=False)
    with opened(url, timeout=7) as engine, engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        asked = driver.info.get_parameters()
    assert (asked["tcp_user_timeout"], asked["keepalives_idle"], asked["connect_timeout"]) == (
        "7000",
        str(seconds),
        "7",
    )


@contextmanager
def database_of(server: str, kind: str) -> Iterator[str]:
    """Address of another database of a server, made with the words of SQL behind its name."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {kind}")
        try:
            yield make_url(server).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_what_a_postgresql_is_set_to_changes_nothing_that_is_read(
    postgresql_server: str, new_templates: Templates
) -> None:
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    with database_of(postgresql_server, "") as address:
        with psycopg.connect(address, autocommit=True) as connection:
            name = connection.info.dbname
            for setting in ("TimeZone = 'Europe/Berlin'", "DateStyle = 'German'", "client_encoding = 'LATIN1'"):
                connection.execute(f"ALTER DATABASE {name} SET {setting}")
        url = make_url(address).update_query_dict({"options": "-c TimeZone=Asia/Tokyo"})  # an address may, too
        with opened(url.render_as_string(hide_password=False)) as engine:
            migrate(engine)
            store = GalleryStore(engine)
            for key in ("anna", "Αννα"):
                store.enroll(
                    "people",
                    key,
                    new_templates(1),
                    metadata=None,
                    extractor="net@1",
                    dimension=8,
                    terms={"expires_at": last},
                )
            with engine.connect() as undone:
                undone.rollback()  # takes nothing of it away
            found = store.subjects("people", after=0, limit=9).items
    assert [(one.key, one.expires_at) for one in found] == [("anna", last), ("Αννα", last)]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_postgresql_that_does_not_hold_every_name_is_refused(postgresql_server: str, encoding: str) -> None:
    with (
        database_of(postgresql_server, f"ENCODING {encoding} LC_COLLATE 'C' LC_CTYPE 'C'") as address,
        opened(address) as engine,
        pytest.raises(DatabaseUnavailable, match=f"^the database has the encoding {encoding}, which does not hold"),
    ):
        migrate(engine)


def test_a_postgresql_that_is_busy_for_longer_than_a_request_may_take(postgresql_url: str) -> None:
    def waiting() -> int:
        with other.connect() as asking:
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 4711"
            return int(asking.exec_driver_sql(query).scalar() or 0)

    with opened(postgresql_url, timeout=0.2) as engine, opened(postgresql_url) as other, other.connect() as holder:
        holder.exec_driver_sql("SELECT pg_advisory_lock(4711)")
        with engine.connect() as one, engine.connect() as two:
            before = {link.exec_driver_sql("SELECT pg_backend_pid()").scalar() for link in (one, two)}
        with (
            within(0.1),
            pytest.raises(Busy, match=r"^the database took too long; try again$"),
            database_errors(),
            engine.connect() as late,
        ):
            late.exec_driver_sql("SELECT pg_advisory_lock(4711)")
        assert waiting() == 0  # it does not wait on in the server
        with engine.connect() as one:
            assert one.exec_driver_sql("SELECT pg_backend_pid()").scalar() in before  # the other is used on
        with engine.connect() as patient, ThreadPoolExecutor(1) as pool:  # outside of requests nothing is bounded
            locking = pool.submit(patient.exec_driver_sql, "SELECT pg_advisory_lock(4711)")
            while not waiting():
                assert not locking.done()
            holder.exec_driver_sql("SELECT pg_advisory_unlock(4711)")
            locking.result(60)


def test_what_a_service_does_of_itself_waits_for_no_answer_for_ever(postgresql_url: str) -> None:
    with opened(postgresql_url, timeout=60) as engine, opened(postgresql_url) as other, other.connect() as holder:
        holder.exec_driver_sql("SELECT pg_advisory_lock(4712)")
        engine.connect().close()  # what is waited for is the lock, not a connection

        def lock(limit: WaitLimit) -> None:
            with waiting_at_most(limit), database_errors(), engine.connect() as late:
                late.exec_driver_sql("SELECT pg_advisory_lock(4712)")

        for limit in (WaitLimit(0.2), WaitLimit(total=0.2)):
            with pytest.raises(Busy, match=r"^the database took too long; try again$"):
                lock(limit)
        with ThreadPoolExecutor(1) as pool:
            limit = WaitLimit()
            locking = pool.submit(lock, limit)
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 4712"
            with other.connect() as asking:
                while not asking.exec_driver_sql(query).scalar():
                    assert not locking.done()
                limit.cut(0)  # as when the process ends
                with pytest.raises(Busy):
                    locking.result(60)
                assert asking.exec_driver_sql(query).scalar() == 0


def test_a_service_that_ends_waits_for_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, and says nothing
        address = f"postgresql://127.0.0.1:{mute.getsockname()[1]}/gallery"
        limit = WaitLimit(total=1)
        with opened(address, timeout=600) as engine:
            for _ in range(100):  # the first waits, the others do not
                with (
                    waiting_at_most(limit),
                    pytest.raises(DatabaseUnavailable),
                    database_errors(),
                    engine.connect(),
                ):
                    pass
        assert limit.left == 0


def test_a_locked_sqlite_database_is_busy(sqlite_url: str) -> None:
    with opened(sqlite_url) as engine, opened(sqlite_url, timeout=0.01) as other:
        migrate(engine)
        with (
            engine.execution_options(immediate=True).begin(),
            pytest.raises(Busy, match=r"^another request is writing; try again$"),
        ):
            make_gallery(GalleryStore(other))
        make_gallery(GalleryStore(other))


def test_readers_do_not_wait_for_a_writer(engine: Engine) -> None:
    store = GalleryStore(engine)
    make_gallery(store)
    with engine.execution_options(immediate=True).begin() as writing:
        writing.exec_driver_sql("UPDATE gallery SET revision = 9")
        assert store.gallery("people").revision == 0


def test_a_full_disk_loses_nothing(sqlite_url: str, new_templates: Templates) -> None:
    with opened(sqlite_url) as engine:
        migrate(engine)
    with opened(sqlite_url, pragma="max_page_count = 1") as engine:  # SQLite takes the present size instead
        store = GalleryStore(engine)
        make_gallery(store)
        with pytest.raises(StorageUnwritable, match=r"^the database's disk is full; the change was not stored$"):
            store.enroll("people", "anna", new_templates(500), metadata=None, extractor="net@1", dimension=8)
        assert [(one.name, one.revision) for one in store.galleries()] == [("people", 0)]
        assert store.subjects("people", after=0, limit=1).items == ()


def test_a_full_disk_of_postgresql_loses_nothing(postgresql_url: str, new_templates: Templates) -> None:
    """The file of a table without rows is the device that is always full, so it is PostgreSQL that says so."""
    with opened(postgresql_url) as engine:
        migrate(engine)
        make_gallery(GalleryStore(engine))
        with engine.connect() as connection:
            query = "SELECT current_setting('data_directory'), pg_relation_filepath('template')"
            folder, name = connection.exec_driver_sql(query).one()
    file = Path(folder, name)
    empty = file.rename(file.with_name(f"{file.name}.empty"))
    file.symlink_to("/dev/full")
    try:
        with opened(postgresql_url) as engine:  # other processes, which have not opened it
            store = GalleryStore(engine)
            with pytest.raises(StorageUnwritable, match="the database's disk is full") as told:
                store.enroll("people", "anna", new_templates(1), metadata=None, extractor="net@1", dimension=8)
    finally:
        empty.replace(file)
    assert isinstance(told.value.__cause__, DBAPIError)
    assert isinstance(told.value.__cause__.orig, psycopg.errors.DiskFull)
    with opened(postgresql_url) as engine:
        store = GalleryStore(engine)
        assert [(one.name, one.revision) for one in store.galleries()] == [("people", 0)]
        assert store.subjects("people", after=0, limit=1).items == ()
        store.enroll("people", "anna", new_templates(1), metadata=None, extractor="net@1", dimension=8)
        assert store.subject("people", "anna").templates == 1


def test_a_read_only_sqlite_database_is_read(sqlite_url: str) -> None:
    with opened(sqlite_url) as engine:
        migrate(engine)
        make_gallery(GalleryStore(engine))
    with opened(sqlite_url, pragma="query_only = ON") as engine:
        store = GalleryStore(engine)
        with pytest.raises(StorageUnwritable, match=r"^the database is read-only; the change was not stored$"):
            make_gallery(store, "others")
        assert [gallery.name for gallery in store.galleries()] == ["people"]


def test_a_read_only_postgresql_database_is_read(postgresql_url: str) -> None:
    url = make_url(postgresql_url)
    read_only = url.update_query_dict({"options": f"{url.query['options']} -cdefault_transaction_read_only=on"})
    with opened(postgresql_url) as engine, opened(read_only.render_as_string(hide_password=False)) as other:
        migrate(engine)
        make_gallery(GalleryStore(engine))
        store = GalleryStore(other)
        with pytest.raises(StorageUnwritable, match=r"^the database is read-only; the change was not stored$"):
            make_gallery(store, "others")
        assert [gallery.name for gallery in store.galleries()] == ["people"]


@pytest.mark.parametrize("folder", ["socket", "readonly", "unlocked"])
def test_a_database_that_is_not_there_is_unavailable_whatever_it_is_called(tmp_path: Path, folder: str) -> None:
    with (
        opened(f"postgresql://postgres@/people?host={tmp_path / folder}") as engine,
        pytest.raises(DatabaseUnavailable, match=r"^the database does not answer; try again$"),
    ):
        GalleryStore(engine).galleries()


@pytest.mark.parametrize(
    "change",
    ["DROP TABLE change", "ALTER TABLE subject DROP COLUMN seen_at", "ALTER TABLE gallery RENAME COLUMN revision TO r"],
)
def test_tables_of_another_version_are_no_database_that_is_away(
    database_url: str, new_templates: Templates, change: str
) -> None:
    with opened(database_url) as engine:
        migrate(engine)
        store = GalleryStore(engine)
        make_gallery(store)
        with engine.begin() as connection:
            connection.exec_driver_sql(change)
        with pytest.raises(SchemaOutdated, match=r"^the database's tables are those of another version \(.*\); stop"):
            store.enroll("people", "anna", new_templates(1), metadata=None, extractor="net@1", dimension=8)


def test_a_database_that_came_back_is_used_again(postgresql_server: str, postgresql_url: str) -> None:
    with opened(postgresql_url) as engine:
        migrate(engine)
        store = GalleryStore(engine)
        make_gallery(store)
        with psycopg.connect(postgresql_server, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert store.gallery("people").revision == 0
