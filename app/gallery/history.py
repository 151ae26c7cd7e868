"""GalleryHistory: what a process's index is built from and follows."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from sqlalchemy import Engine, select

from app.gallery.encryption import PlainRows, RowIdentity, RowSeals, SealedRow
from app.gallery.records import Change, Gallery, TemplateBlock
from app.gallery.rows import (
    EMBEDDING,
    Sessions,
    gallery_of,
    gallery_row,
    open_embeddings,
    record_changes,
    template_block,
    template_rows,
)
from app.gallery.tables import ChangeRow, GalleryRow, SubjectRow, TemplateRow

_MANY = 10_000  # rows of one read when an index is built


class GalleryHistory:
    """The templates of galleries in blocks, and their changes by revision."""

    def __init__(self, engine: Engine, seals: RowSeals | None = None) -> None:
        self._sessions = Sessions(engine)
        self._seals = seals or PlainRows()

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        """All templates of a gallery in blocks, in the order of their ids; one that does not open is left out."""
        dimension = self._dimension(gallery_id)
        after = 0
        while True:
            with self._sessions.reading() as session:
                rows = template_rows(session, TemplateRow.gallery_id == gallery_id, after=after, limit=_MANY)
            if not rows:
                return
            block = template_block(rows, self._seals, dimension=dimension)
            if len(block.ids):
                yield block
            after = rows[-1].id

    def changes(self, gallery_id: int, *, after: int, up_to: int) -> list[Change]:
        """The changes of the revisions behind `after`, up to and with `up_to`, in order.

        A template that does not open counts as gone.
        """
        query = (
            select(ChangeRow, TemplateRow.subject_id, TemplateRow.crop_sha256, TemplateRow.embedding, SubjectRow.key_id)
            .outerjoin(TemplateRow, TemplateRow.id == ChangeRow.template_id)
            .outerjoin(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
            .where(ChangeRow.gallery_id == gallery_id, ChangeRow.revision > after, ChangeRow.revision <= up_to)
            .order_by(ChangeRow.revision, ChangeRow.template_id)
        )
        with self._sessions.reading() as session:
            found = session.execute(query).all()
        if not found:
            return []
        sealed = {
            row.template_id: SealedRow(key_id, RowIdentity("template", gallery_id, subject_id, crop_sha256), embedding)
            for row, subject_id, crop_sha256, embedding, key_id in found
            if embedding is not None
        }
        opened = open_embeddings(list(sealed.items()), self._seals, dimension=self._dimension(gallery_id))
        embeddings = dict(zip(sealed, opened, strict=True))
        return [
            Change(
                revision=row.revision,
                kind=cast(Any, row.kind),
                template_id=row.template_id,
                subject_id=row.subject_id,
                embedding=None
                if (value := embeddings.get(row.template_id)) is None
                else np.frombuffer(value, EMBEDDING),
            )
            for row, *_ in found
        ]

    def request_rebuild(self, gallery: str) -> Gallery:
        """Have every process build its index of the gallery anew on its next call."""
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            record_changes(session, owner, "rebuild", [(0, 0)])
            session.flush()
            return gallery_of(owner)

    def _dimension(self, gallery_id: int) -> int:
        with self._sessions.reading() as session:
            return session.scalar(select(GalleryRow.dimension).filter_by(id=gallery_id)) or 0
