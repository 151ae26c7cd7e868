"""People whom a restore brings back before the vault has destroyed their keys, which would open them again."""

import sqlite3
from collections.abc import Collection
from pathlib import Path

import structlog
from sqlalchemy import Engine, delete, insert, select

from app.gallery.sql.database import read_only
from app.gallery.sql.erased_galleries import ERASED
from app.gallery.sql.failures import in_words
from app.gallery.sql.rows import Sessions, in_parts
from app.gallery.tables import KeyToDestroyRow, SetAsideRow, SubjectRow, TemplateRow

_OF_BEGUN = """
    SELECT subject.key_id FROM subject JOIN gallery ON gallery.id = subject.gallery_id
    WHERE subject.key_id IS NOT NULL AND substr(gallery.name, 1, 1) = :erased
"""
_INHERITED_THERE = """
    SELECT inherited_key.key_id FROM inherited_key JOIN subject ON subject.id = subject_id
    JOIN gallery ON gallery.id = gallery_id WHERE substr(gallery.name, 1, 1) = :erased
"""
_LISTED = "SELECT key_id FROM key_to_destroy WHERE NOT destroyed"
_QUERIES = _OF_BEGUN, _INHERITED_THERE, _LISTED  # what is erased meanwhile goes from the first two to the last
_log = structlog.get_logger()


def keys_beside(database: Path) -> set[str]:
    """The keys that the vault has yet to destroy by an SQLite file, those of galleries included that are being erased.

    Of a file that is missing there are none; what cannot be read, as it is damaged or another version's, is told.
    """
    found = set[str]()
    if not database.is_file():
        return found
    unread = list[str]()
    for query in _QUERIES:
        try:
            with read_only(database) as connection:
                found.update(key for (key,) in connection.execute(query, {"erased": ERASED}))
        except sqlite3.Error as error:
            unread.append(in_words(error))
    if unread:
        _log.warning("erasures.unknown", file=str(database), reason="; ".join(dict.fromkeys(unread)))
    return found


def have_erased(engine: Engine, keys: Collection[str]) -> None:
    """Have the first sweep destroy keys, and erase again whose they are (see `Forgetting`).

    Their templates go at once: a service names people before its first sweep, and a vault's disk may be full for long.
    """
    with Sessions(engine).writing() as session:
        for some in in_parts(list(keys)):
            listed = insert(KeyToDestroyRow).prefix_with("OR IGNORE")
            session.execute(listed, [{"key_id": key} for key in some])
            theirs = select(SubjectRow.id).where(SubjectRow.key_id.in_(some))
            for table in (TemplateRow, SetAsideRow):
                gone = delete(table).where(table.subject_id.in_(theirs))
                session.execute(gone, execution_options={"synchronize_session": False})
