"""What the stores share: transactions, rows by name, and a gallery's history."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from sqlalchemy import ColumnElement, Engine, select
from sqlalchemy.orm import Session

from app.gallery.database import database_errors
from app.gallery.errors import GalleryNotFound, SubjectNotFound
from app.gallery.policy import policy_from_json
from app.gallery.records import Gallery, TemplateBlock
from app.gallery.tables import ChangeRow, CropRow, GalleryRow, SubjectRow, TemplateRow

EMBEDDING = np.dtype("<f4")


class Sessions:
    """Transactions on one engine, with a driver's failures as the service's errors."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._immediate = engine.execution_options(immediate=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with database_errors(), Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is committed at the end, or rolled back on an error."""
        with database_errors(), Session(self._immediate) as session, session.begin():
            yield session


def record_changes(session: Session, owner: GalleryRow, kind: str, templates: Sequence[tuple[int, int]]) -> None:
    """Raise the gallery's revision by one and write what it changed; `owner` is locked."""
    owner.revision += 1
    session.add_all(
        ChangeRow(
            gallery_id=owner.id, revision=owner.revision, template_id=template_id, subject_id=subject_id, kind=kind
        )
        for template_id, subject_id in templates
    )


def keep_crops(session: Session, crops: Mapping[int, bytes]) -> None:
    """Store crops by template; a template that has one keeps it."""
    if crops:
        kept = set(session.scalars(select(CropRow.template_id).where(CropRow.template_id.in_(crops))))
        session.add_all(CropRow(template_id=one, image=image) for one, image in crops.items() if one not in kept)


def gallery_row(session: Session, name: str, *, lock: bool = False) -> GalleryRow:
    """The gallery's row, locked for a write where asked.

    Raises:
        GalleryNotFound: no gallery has that name.
    """
    query = select(GalleryRow).filter_by(name=name)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise GalleryNotFound(f"there is no gallery {name!r}", part="gallery")
    return row


def subject_row(session: Session, owner: GalleryRow, key: str, *, part: str = "subject") -> SubjectRow:
    """The subject's row.

    Raises:
        SubjectNotFound: the gallery has no subject with that key.
    """
    row = session.scalar(select(SubjectRow).filter_by(gallery_id=owner.id, key=key))
    if row is None:
        raise SubjectNotFound(f"gallery {owner.name!r} has no subject {key!r}", part=part)
    return row


def gallery_of(row: GalleryRow) -> Gallery:
    """The record of a row."""
    return Gallery(
        id=row.id,
        name=row.name,
        extractor=row.extractor,
        dimension=row.dimension,
        revision=row.revision,
        policy=None if row.policy is None else policy_from_json(row.policy),
        created_at=row.created_at,
    )


def template_block(session: Session, where: ColumnElement[bool], *, after: int, limit: int | None) -> TemplateBlock:
    """Templates in the order of their ids, from the one behind `after`."""
    columns = select(TemplateRow.id, TemplateRow.subject_id, TemplateRow.embedding)
    rows = session.execute(columns.where(where, TemplateRow.id > after).order_by(TemplateRow.id).limit(limit)).all()
    return TemplateBlock(
        ids=np.array([row.id for row in rows], np.int64),
        subject_ids=np.array([row.subject_id for row in rows], np.int64),
        embeddings=np.frombuffer(b"".join(row.embedding for row in rows), EMBEDDING).reshape(len(rows), -1)
        if rows
        else np.empty((0, 0), np.float32),
    )
