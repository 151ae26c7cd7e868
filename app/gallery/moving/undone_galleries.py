"""Galleries that a restore takes away: an engine outside the process has their vectors still."""

import sqlite3
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, select

from app.gallery.engines.protocol import prefix_of, storage_prefix
from app.gallery.sql.database import read_only
from app.gallery.sql.rows import Sessions, gallery_of
from app.gallery.tables import GalleryRow, StorageToDropRow


def storage_beside(database: Path) -> set[str]:
    """What an engine may have of the galleries in an SQLite file, those included that were erased a moment ago.

    They are named as by `storage_prefix`. Of a file that is missing, damaged or another version's there are none.
    """
    found = set[str]()
    if not database.is_file():
        return found
    try:
        with read_only(database) as connection:
            for gallery, moment in connection.execute("SELECT id, created_at FROM gallery"):
                found.add(prefix_of(gallery, datetime.fromisoformat(moment).replace(tzinfo=UTC)))
            found.update(prefix for (prefix,) in connection.execute("SELECT prefix FROM storage_to_drop"))
    except (sqlite3.Error, ValueError):
        pass
    return found


def have_dropped(engine: Engine, prefixes: Collection[str]) -> None:
    """Have services drop what an engine keeps of galleries that a database does not have (see `EngineLeftovers`)."""
    with Sessions(engine).writing() as session:
        there = {storage_prefix(gallery_of(row)) for row in session.scalars(select(GalleryRow))}
        there.update(session.scalars(select(StorageToDropRow.prefix)))
        session.add_all(StorageToDropRow(prefix=prefix) for prefix in sorted(set(prefixes) - there))
