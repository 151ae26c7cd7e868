"""Engines for SQLite and PostgreSQL, set up alike, and their failures told apart."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from sqlite3 import SQLITE_BUSY
from sqlite3 import Connection as SQLiteConnection
from sqlite3 import OperationalError as SQLiteOperationalError
from sqlite3 import connect as connect_sqlite
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    ExceptionContext,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.gallery.errors import Busy, DriverMissing
from app.gallery.sql.failures import meaning

_PATIENCE = 0.2  # seconds, for what is worth no long wait
_PAUSE = 0.1  # seconds

NO_LIMITS = """
SELECT set_config(name, '0', %(of_transaction)s) FROM pg_settings
WHERE name IN
    ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')
"""
"""Lifts what the role or the address sets for requests, for the transaction alone or for the whole connection."""


def lift_limits(connection: Connection) -> None:
    """On PostgreSQL, have a transaction take as long as it does, whatever the role or the address sets for requests."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(NO_LIMITS, {"of_transaction": True})


def sqlite_address(file: str | Path) -> str:
    """SQLAlchemy address of an SQLite file, whose path may hold what parts an address: `?`, `#`, `%`."""
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def without_password(url: URL) -> str:
    """A database's address for people and logs; drivers take a password in the query, too."""
    kept = {name: value for name, value in url.query.items() if "pass" not in name.lower()}
    return url.set(query=kept).render_as_string(hide_password=True)


def shown_database(engine: Engine) -> str:
    """Which database it is, for people: the file's whole path, or the address without a password."""
    file = engine.url.database or ""
    if engine.dialect.name != "sqlite" or not file or file.startswith("file:"):
        return without_password(engine.url)
    return str(Path(file).absolute())


def open_engine(address: str, *, timeout: float, synchronous: str = "FULL", immediate: bool = False) -> Engine:
    """Engine for a database's address.

    Args:
        address: SQLAlchemy address; `postgresql://` means psycopg 3.
        timeout: seconds to wait for a connection or, on SQLite, for another writer; on PostgreSQL also for an answer,
            once the request that waits is out of time (see `BoundedConnection`).
        synchronous: SQLite's pragma: whether a commit waits for the disk.
        immediate: SQLite: whether every transaction begins as a writer.

    An error's text, which ends up in logs, holds no values: they are names, metadata, templates.

    SQLite: write-ahead log, every commit flushed to the disk, foreign keys enforced, what is deleted is overwritten. A
    transaction begins deferred, or immediate where the connection carries the execution option `immediate`, so that a
    writer never has to upgrade. A new file, and what SQLite keeps beside it, is for its owner alone.

    Raises:
        DriverMissing: the package for PostgreSQL is not installed.
    """
    url = make_url(address)
    if url.drivername in {"postgres", "postgresql"}:
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "postgresql":
        return _open_postgresql(url, timeout)
    file: Path | None = None  # an address of SQLite's own names what is there
    if url.database and not url.database.startswith("file:"):
        file = Path(url.database)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = create_engine(
        url,
        hide_parameters=True,
        json_deserializer=_read_json,
        pool_timeout=timeout,
        pool_size=10,
        max_overflow=40,
        connect_args={"timeout": timeout},
    )

    @event.listens_for(engine, "do_connect")
    def _make_private(*_: Any) -> None:
        if file is not None:
            make_private(file)

    @event.listens_for(engine, "connect")
    def _set_up(connection: SQLiteConnection, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions on its own
        _write_ahead(connection, timeout)
        for pragma in (f"synchronous={synchronous}", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = immediate or connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _write_ahead(connection: SQLiteConnection, patience: float) -> None:
    """Have an SQLite file keep a write-ahead log.

    While others do the same to a new file, SQLite refuses at once, whatever its own patience: two would wait for each
    other.
    """
    latest = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except SQLiteOperationalError as error:
            if error.sqlite_errorcode & 0xFF != SQLITE_BUSY or time.monotonic() > latest:
                raise
            time.sleep(_PATIENCE / 20)
        else:
            return


@contextmanager
def read_only(file: Path) -> Iterator[SQLiteConnection]:
    """A connection to an SQLite file, which may be damaged, that changes nothing of it.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    with closing(connect_sqlite(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        yield connection


def make_private(file: Path) -> None:
    """Make an empty SQLite file for its owner alone, where there is none; SQLite gives its log and journal that mode.

    Where it cannot be made, SQLite says so with the next connection.
    """
    with suppress(OSError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _open_postgresql(url: URL, timeout: float) -> Engine:
    try:  # here, because the driver is an extra
        from app.gallery.sql.bounded_connection import BoundedConnection, TookTooLong, connection_options
    except ImportError as error:
        raise DriverMissing(
            f"PostgreSQL needs the package {error.name or 'psycopg'}; install `facegallery[postgres]`"
        ) from error
    engine = create_engine(
        url,
        hide_parameters=True,
        json_deserializer=_read_json,
        pool_pre_ping=True,
        pool_timeout=timeout,
        pool_size=10,
        max_overflow=30,
        connect_args={**connection_options(timeout, url.query), "patience": timeout},
    )

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> BoundedConnection:
        return BoundedConnection.connect(*arguments, **options)

    @event.listens_for(engine, "handle_error")
    def _judge(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, TookTooLong):  # of this connection; the others are well
            context.invalidate_pool_on_disconnect = False

    return engine


def _read_json(stored: str | bytes) -> Any:
    """What a JSON column holds; metadata of an earlier version may be nested deeper than Python can read: nothing then.

    As it depends on the depth of the calls around, one call would read what the next cannot.
    """
    try:
        return json.loads(stored)
    except RecursionError:
        return {}


def empty_log(engine: Engine) -> bool:
    """Bring SQLite's write-ahead log into the file and cut it to nothing, so that erased rows stand in neither.

    Answers False where another connection still reads from the log: a later call does it. PostgreSQL: does nothing.
    """
    if engine.dialect.name != "sqlite":
        return True
    latest = time.monotonic() + _PATIENCE
    while _run_alone(engine, "PRAGMA wal_checkpoint(TRUNCATE)")[0] != 0:
        if time.monotonic() > latest:
            return False
        time.sleep(_PATIENCE / 20)  # whoever empties it right now is not waited for by SQLite itself
    return True


def rewrite_file(engine: Engine) -> bool:
    """Write SQLite's file anew, so that pages freed before `secure_delete` was on are gone, too.

    Answers False where they may be there still, as there is no room for a second file or others use this one.
    PostgreSQL: does nothing.
    """
    return engine.dialect.name != "sqlite" or (_run_alone(engine, "VACUUM")[0] == 0 and empty_log(engine))


def let_others_write(engine: Engine) -> None:
    """Pause between two transactions of long work: whoever waits for SQLite looks ten times a second if it is free.

    PostgreSQL has them wait in a row, and needs none.
    """
    if engine.dialect.name == "sqlite":
        time.sleep(_PAUSE)


def _run_alone(engine: Engine, statement: str) -> tuple[int, ...]:
    """Run a statement that SQLite takes outside of a transaction only; (1,) where it is busy."""
    with database_errors(), engine.connect() as connection:  # which begins nothing by itself
        driver = connection.connection.driver_connection
        assert isinstance(driver, SQLiteConnection)
        (patience,) = driver.execute("PRAGMA busy_timeout").fetchone()
        driver.execute(f"PRAGMA busy_timeout={1000 * _PATIENCE:.0f}")  # nobody waits long for this
        try:
            found: tuple[int, ...] | None = driver.execute(statement).fetchone()
        except SQLiteOperationalError:  # locked, full, or read-only: what matters is told by the next write
            return (1,)
        finally:
            driver.execute(f"PRAGMA busy_timeout={patience}")
        return found or (0,)


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn a driver's failures into the service's errors; what is a bug stays what it is.

    Raises:
        Busy: another writer holds the lock, or all connections are taken.
        StorageUnwritable: the disk is full or read-only, or the file cannot be opened.
        DatabaseUnavailable: the database cannot be reached.
    """
    try:
        yield
    except PoolTimeout as error:
        raise Busy("all database connections are in use; try again") from error
    except DBAPIError as error:
        away = error.connection_invalidated or isinstance(error, OperationalError)
        translated = meaning(error.orig, away=away)
        if translated is None:
            raise
        raise translated from error


def values_of(session: Session, column: InstrumentedAttribute[Any]) -> Iterator[str]:
    """The values of a column, in order; NULL is none, nor is what is empty.

    Each is looked for in the column's index behind the one before: DISTINCT and GROUP BY go through all rows.
    """
    value = select(func.min(column).label("value")).where(column > "").cte("found", recursive=True)
    behind = select(func.min(column)).where(column > value.c.value).correlate(value).scalar_subquery()
    found = value.union_all(select(behind).where(value.c.value.is_not(None)))
    yield from session.scalars(select(found.c.value).where(found.c.value.is_not(None)))


def another_value(
    session: Session, column: InstrumentedAttribute[Any], than: str, *where: ColumnElement[bool]
) -> str | None:
    """A value of a column other than one, among some rows; NULL is none.

    Looked for at both ends of the column's index: `!=` goes through all rows that have the one.
    """
    query = select(column).where(column.is_not(None), *where).limit(1)
    ends = (session.scalar(query.order_by(end)) for end in (column.asc(), column.desc()))
    return next((value for value in ends if value not in {None, than}), None)
