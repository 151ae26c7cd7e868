"""What a gallery has in a table, erased in pieces: others wait for a transaction of millions of rows."""

from typing import Any, cast

from sqlalchemy import CursorResult, delete, select, tuple_
from sqlalchemy.orm import Session

from app.gallery.tables import ChangeRow, SetAsideRow, SpareEmbeddingRow, SubjectRow

Owned = type[SubjectRow] | type[ChangeRow] | type[SpareEmbeddingRow] | type[SetAsideRow]
"""A table whose rows are a gallery's."""


def erase_piece(session: Session, table: Owned, gallery_id: int, *, most: int) -> int:
    """Erase some rows of a gallery, with all that goes with them; answers how many, fewer than `most` at the end."""
    key = table.__mapper__.primary_key
    some = select(*key).where(table.gallery_id == gallery_id).limit(most)
    piece = delete(table).where(tuple_(*key).in_(some))
    erased = session.execute(piece, execution_options={"synchronize_session": False})
    return cast(CursorResult[Any], erased).rowcount
