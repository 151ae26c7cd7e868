"""GalleryHistory: what a process's index is built from and follows."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from sqlalchemy import Engine, select

from app.gallery.records import Change, Gallery, TemplateBlock
from app.gallery.rows import EMBEDDING, Sessions, gallery_of, gallery_row, record_changes, template_block
from app.gallery.tables import ChangeRow, TemplateRow

_MANY = 10_000  # rows of one read when an index is built


class GalleryHistory:
    """The templates of galleries in blocks, and their changes by revision."""

    def __init__(self, engine: Engine) -> None:
        self._sessions = Sessions(engine)

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        """All templates of a gallery in blocks, in the order of their ids."""
        after = 0
        while True:
            with self._sessions.reading() as session:
                block = template_block(session, TemplateRow.gallery_id == gallery_id, after=after, limit=_MANY)
            if not len(block.ids):
                return
            yield block
            after = int(block.ids[-1])

    def changes(self, gallery_id: int, *, after: int, up_to: int) -> list[Change]:
        """The changes of the revisions behind `after`, up to and with `up_to`, in order."""
        query = (
            select(ChangeRow, TemplateRow.embedding)
            .outerjoin(TemplateRow, TemplateRow.id == ChangeRow.template_id)
            .where(ChangeRow.gallery_id == gallery_id, ChangeRow.revision > after, ChangeRow.revision <= up_to)
            .order_by(ChangeRow.revision, ChangeRow.template_id)
        )
        with self._sessions.reading() as session:
            return [
                Change(
                    revision=row.revision,
                    kind=cast(Any, row.kind),
                    template_id=row.template_id,
                    subject_id=row.subject_id,
                    embedding=None if embedding is None else np.frombuffer(embedding, EMBEDDING),
                )
                for row, embedding in session.execute(query)
            ]

    def request_rebuild(self, gallery: str) -> Gallery:
        """Have every process build its index of the gallery anew on its next call."""
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            record_changes(session, owner, "rebuild", [(0, 0)])
            session.flush()
            return gallery_of(owner)
