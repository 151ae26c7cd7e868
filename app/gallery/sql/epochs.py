"""What is told to indexes when a database was set back."""

import secrets
import time

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from app.gallery.sql.rows import Sessions, gallery_row, record_changes
from app.gallery.tables import GalleryRow

_BEGINNING = 1_735_689_600  # 2025 in Unix time
# Clients may keep revisions and ids in a double, so both stay below 2**53 until 2058. Of the 30 bits of the seconds
# revisions leave out 6 in favour of chance, as two epochs of one minute must not meet. No 64 seconds give out 2**29
# revisions, and no second 2**22 ids.
_REVISIONS, _IDS = (6, 29), (0, 22)  # bits of the seconds that are left out, bits behind them


def begin_epoch(engine: Engine) -> int:
    """Tell every process and every snapshot of an index that the database was set back; answers the galleries.

    A database that was restored repeats revisions and ids that were given out before, for other content. So each
    gallery's revision leaps to where none has been, with a change that has indexes built anew, and so do the ids that
    new galleries, subjects and templates get. Where that is follows from the time and from chance: the same copy that
    is restored twice begins two epochs, even by a clock that stands still.
    """
    with Sessions(engine).writing() as session:
        names = session.scalars(select(GalleryRow.name).order_by(GalleryRow.id)).all()
        for name in names:
            owner = gallery_row(session, name, lock=True)
            owner.revision = _leap(owner.revision, *_REVISIONS)
            record_changes(session, owner, "rebuild", [(0, 0)])
        for table in ("gallery", "subject", "template"):
            _leap_ids(session, table)
        return len(names)


def _leap(before: int, left_out: int, bits: int) -> int:
    seconds = min(max(int(time.time()) - _BEGINNING, 0), 2**30 - 1)
    return max(before, seconds >> left_out << bits) + (1 << bits) + secrets.randbits(bits)


def _leap_ids(session: Session, table: str) -> None:
    name = {"name": table}
    if session.get_bind().dialect.name == "sqlite":
        before = session.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = :name"), name)
        if before is None:  # nothing was ever inserted
            session.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, 0)"), name)
        statement = "UPDATE sqlite_sequence SET seq = :first WHERE name = :name"
    else:
        before = session.scalar(text("SELECT nextval(pg_get_serial_sequence(:name, 'id'))"), name)
        statement = "SELECT setval(pg_get_serial_sequence(:name, 'id'), :first)"
    session.execute(text(statement), {**name, "first": _leap(before or 0, *_IDS)})
