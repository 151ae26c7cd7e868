"""Galleries whose erasure has begun: from its first transaction on nobody finds them, and the rest goes in pieces."""

from collections.abc import Iterator

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.gallery.deadline import is_ending
from app.gallery.sql.database import let_others_write
from app.gallery.sql.pieces import Owned, erase_piece
from app.gallery.sql.rows import Sessions
from app.gallery.tables import ChangeRow, GalleryRow, SubjectRow

ERASED = "\x18"
"""Begins such a gallery's name; a name that somebody gives has no control character."""
_SUBJECTS = 500  # of one transaction, with all that is kept of them, so that others get their turn
_CHANGES = 10_000


def is_there() -> ColumnElement[bool]:
    """Whether a gallery is there, and its erasure has not begun."""
    return ~GalleryRow.name.startswith(ERASED)


def begin_erasure(session: Session, row: GalleryRow) -> bool:
    """Take a gallery away from everybody, whose row is locked, with a first piece; answers whether that was all."""
    row.name = f"{ERASED}{row.id}"
    session.flush()
    return _erase_piece(session, row)


def end_erasures(sessions: Sessions) -> Iterator[None]:
    """Erase the rest of galleries whose erasure has begun, here or where a process died; stops after each piece.

    A process that is ending leaves it to the next.
    """
    with sessions.reading() as session:
        begun = session.scalars(select(GalleryRow.id).where(~is_there()).order_by(GalleryRow.id)).all()
    for gallery_id in begun:
        ended = False
        while not ended and not is_ending():
            with sessions.writing() as session:  # of several who do so each takes a piece
                row = session.scalar(select(GalleryRow).filter_by(id=gallery_id).with_for_update())
                ended = row is None or _erase_piece(session, row)
            yield
            if not ended:
                let_others_write(sessions.engine)


def _erase_piece(session: Session, row: GalleryRow) -> bool:
    """Erase a piece of a gallery whose row is locked; answers whether that was the rest, and the row went with it."""
    pieces: tuple[tuple[Owned, int], ...] = ((SubjectRow, _SUBJECTS), (ChangeRow, _CHANGES))
    for table, most in pieces:
        if erase_piece(session, table, row.id, most=most) == most:
            return False
    session.delete(row)
    session.flush()
    return True
