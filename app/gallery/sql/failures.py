"""What a database's failure means to who asked, whether through SQLAlchemy or the driver alone."""

import re
import sqlite3

from app.gallery.errors import Busy, DatabaseUnavailable, SchemaOutdated, StorageUnwritable
from model.errors import FacegalleryError

CANCELLED = "57014"
"""What PostgreSQL calls a statement that was cancelled, by us (see `BoundedConnection`) or by a limit of its own."""

_DISK_FULL, _READ_ONLY = "53100", "25006"
_OTHER_TABLES = re.compile(
    r"no such (table|column): |table \w+ (has no column named|already exists)|duplicate column name: "
)
_NO_TABLE, _NO_COLUMN = "42P01", "42703"
_LOCKED = {"55P03", "40001", "40P01"}
_ENDED = {"25P03", "25P04"}  # a transaction that took longer than PostgreSQL's own limits, with its connection


def in_words(failure: BaseException | None) -> str:
    """What a driver's failure says; to SQLite a disk without room for its locks is an I/O error."""
    full = getattr(failure, "sqlite_errorname", None) == "SQLITE_IOERR_SHMSIZE"
    return "the disk is full" if full else str(failure)


def in_full(error: Exception) -> str:
    """What an error says, and behind it what PostgreSQL or its driver said where a database counts as away.

    For who runs the service: it names host, role and database. It holds no password.
    """
    cause = error.__cause__
    failure = getattr(cause, "orig", cause)
    if not isinstance(error, DatabaseUnavailable) or not hasattr(failure, "sqlstate"):
        return str(error)
    said = " ".join(str(failure).partition("\n")[0].split())
    return f"{error} ({said})" if said else str(error)


def meaning(failure: BaseException | None, *, away: bool) -> FacegalleryError | None:
    """The service's error for a driver's, or None for what is a bug.

    Args:
        failure: of the driver, SQLite's or PostgreSQL's.
        away: whether a failure that is none of those known means that the database is away.
    """
    # PostgreSQL's words are not looked at: they hold names, as of a host `readonly`.
    text = in_words(failure).lower() if isinstance(failure, sqlite3.Error) else ""
    state = getattr(failure, "sqlstate", None)
    if state == _DISK_FULL or "disk is full" in text or "no space left" in text:
        return StorageUnwritable("the database's disk is full; the change was not stored")
    if state == _READ_ONLY or "readonly" in text:
        return StorageUnwritable("the database is read-only; the change was not stored")
    if "unable to open database file" in text:  # SQLite makes two files beside it, so it needs the folder, too
        return StorageUnwritable("the database's file cannot be opened; its folder must exist and be writable")
    if "malformed" in text or "not a database" in text:
        return DatabaseUnavailable("the database's file is damaged; restore a backup (`facegallery restore`)")
    # To SQLite's driver an operational error, as if the database were away.
    if _OTHER_TABLES.match(text) or state in {_NO_TABLE, _NO_COLUMN}:
        what = str(failure).partition("\n")[0]
        return SchemaOutdated(f"the database's tables are those of another version ({what}); stop what runs of it")
    if state in _LOCKED or "locked" in text:
        return Busy("another request is writing; try again")
    if state == CANCELLED or state in _ENDED:
        return Busy("the database took too long; try again")
    return DatabaseUnavailable("the database does not answer; try again") if away else None
