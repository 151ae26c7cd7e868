"""Whether a process has a database open that is about to be replaced."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine, inspect, make_url, select
from sqlalchemy.orm import Session

from app.gallery.errors import DatabaseInUse
from app.gallery.sql.database import database_errors, open_engine
from app.gallery.sql.followers import silent
from app.gallery.tables import FollowerRow

_SILENT = timedelta(seconds=60)  # a service reports every 30 s, and takes its rows away when it ends
_LOOK = 0.5  # seconds between two looks whether it does


def refuse_in_use(address: str, *, timeout: float, waiting: Callable[[], None] = lambda: None) -> None:
    """Make sure that no service uses a database.

    SQLite: no other process has it open. PostgreSQL, where anybody may look in: no service that has a gallery loaded
    reports any more. Who has reported within the last minute is waited for, to report again or to be silent for one: it
    may have been killed, or the report may have come with a copy that was put in the database's place.

    Args:
        address: SQLAlchemy address.
        timeout: seconds to wait for PostgreSQL.
        waiting: called where somebody is waited for.

    Raises:
        DatabaseInUse: one does.
        DatabaseUnavailable: PostgreSQL cannot be reached.
    """
    url = make_url(address)
    if url.get_backend_name() == "sqlite":
        used = url.database is not None and _is_open(Path(url.database))
    else:
        engine = open_engine(address, timeout=timeout)
        try:
            used = _is_followed(engine, waiting)
        finally:
            engine.dispose()
    if used:
        raise DatabaseInUse(
            "a service uses the database; stop it first, or add --while-running and lose what it stores"
        )


def _is_open(database: Path) -> bool:
    """Whether another connection has an SQLite file open: each holds a shared lock on it as long as it lives."""
    if not database.is_file():
        return False
    own = f"{database.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(own, uri=True, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:  # what is damaged, or cannot be written, is told by what comes next
            return error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
    return False


def _is_followed(engine: Engine, waiting: Callable[[], None]) -> bool:
    before = _late_reports(engine)
    if before:
        waiting()
    while now := before and _late_reports(engine):
        if now - before:
            return True
        time.sleep(_LOOK)
    return False


def _late_reports(engine: Engine) -> set[tuple[int, str, datetime]]:
    """What processes have reported lately, by the database's clock; snapshots, which are reported too, are none."""
    process = FollowerRow.name.not_like("snapshot %")
    reports = select(FollowerRow.gallery_id, FollowerRow.name, FollowerRow.seen_at).where(process)
    with database_errors(), Session(engine) as session:
        if not inspect(session.connection()).has_table(FollowerRow.__tablename__):
            return set()
        found = session.execute(reports.where(~silent(session, _SILENT)))
        return {(gallery, name, seen_at) for gallery, name, seen_at in found}
