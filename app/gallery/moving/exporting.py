"""What an export reads: a gallery, or one of its subjects, as it was at one moment."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import structlog
from sqlalchemy import Engine, func, null, select
from sqlalchemy.orm import Session

from app.gallery.consent import consent_from_json
from app.gallery.metadata import stored_metadata
from app.gallery.moving.portable import OldEmbedding, PortableSubject, PortableTemplate
from app.gallery.records import Gallery
from app.gallery.sealing.encryption import Flaw, PlainRows, RowSeals, SealedRow
from app.gallery.sql.rows import (
    EMBEDDING,
    Sessions,
    crop_identity,
    gallery_of,
    gallery_row,
    in_parts,
    sealed_columns,
    subject_row,
    template_identity,
    usable_embeddings,
)
from app.gallery.tables import CropRow, SetAsideRow, SpareEmbeddingRow, SubjectRow, TemplateRow
from model.quality import Quality

_SUBJECTS = 200  # of one read
_ROWS = 500  # that are opened together
_log = structlog.get_logger()


@contextmanager
def open_snapshot(
    engine: Engine, gallery: str, *, subject: str | None = None, seals: RowSeals | None = None
) -> Iterator["GallerySnapshot"]:
    """A gallery, or one of its subjects, as of now.

    Raises:
        GalleryNotFound, SubjectNotFound: as named.
    """
    sessions = Sessions(engine)
    with sessions.reading() as session:
        if engine.dialect.name != "sqlite":  # whose transactions see one moment anyway
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield GallerySnapshot(session, gallery, subject, seals or PlainRows(), sessions)


class GallerySnapshot:
    """One gallery as it was at one moment, read in pieces while others write."""

    def __init__(self, session: Session, name: str, subject: str | None, seals: RowSeals, sessions: Sessions) -> None:
        self.unreadable = 0
        """Templates, crops and old embeddings that did not open so far, and were left out.

        What is of people who were erased since that moment is left out as well, and not counted.
        """
        self._session = session
        self._sessions = sessions
        self._seals = seals
        owner = gallery_row(session, name)
        self.gallery: Gallery = gallery_of(owner)
        self._only = None if subject is None else subject_row(session, owner, subject).id

    def size(self) -> tuple[int, int]:
        """How many subjects and templates there are, with those that do not open."""
        if self._only is not None:
            own = select(func.count()).where(TemplateRow.subject_id == self._only)
            return 1, self._session.scalar(own) or 0
        subjects, templates = (
            self._session.scalar(select(func.count()).where(table.gallery_id == self.gallery.id)) or 0
            for table in (SubjectRow, TemplateRow)
        )
        return subjects, templates

    def subjects(self) -> Iterator[PortableSubject]:
        """The subjects in the order of their ids, without their templates."""
        for rows in self._pages():
            for row in rows:
                yield PortableSubject(
                    row.key,
                    stored_metadata(row.details),
                    row.created_at,
                    row.updated_at,
                    consent=consent_from_json(row.consent),
                    expires_at=row.expires_at,
                    seen_at=row.seen_at,
                )

    def templates(self, *, crops: bool) -> Iterator[tuple[str, PortableTemplate]]:
        """The templates with their subjects' keys, subject after subject in the order of `subjects`."""
        for rows in self._pages():
            subjects = {row.id: row for row in rows}
            query = (
                select(TemplateRow, CropRow.image)
                .outerjoin(CropRow, (CropRow.template_id == TemplateRow.id) & crops)
                .where(TemplateRow.subject_id.in_(subjects))
                .order_by(TemplateRow.subject_id, TemplateRow.id)
            )
            for block in self._session.execute(query.execution_options(yield_per=_ROWS)).partitions():
                key_ids = [subjects[row.subject_id].key_id for row, _ in block]
                embeddings = self._opened(
                    (
                        SealedRow(key_id, template_identity(row), row.embedding)
                        for key_id, (row, _) in zip(key_ids, block, strict=True)
                    ),
                    dimension=self.gallery.dimension,
                )
                there = [at for at, (_, image) in enumerate(block) if image is not None]
                images = self._opened(
                    SealedRow(key_ids[at], crop_identity(block[at][0]), block[at][1] or b"") for at in there
                )
                image_at = dict(zip(there, images, strict=True))
                for at, (row, _) in enumerate(block):
                    embedding = embeddings[at]
                    if embedding is not None:
                        yield (
                            subjects[row.subject_id].key,
                            PortableTemplate(
                                np.frombuffer(embedding, EMBEDDING),
                                Quality(row.detection_score, row.face_size, row.sharpness, **row.pose),
                                row.crop_sha256,
                                row.created_at,
                                image_at.get(at),
                            ),
                        )
            self._session.expunge_all()

    def old_embeddings(self, *, crops: bool) -> Iterator[OldEmbedding]:
        """Embeddings of other extractors: spare ones, and those of templates that were set aside, with their crops."""
        mine = SubjectRow.gallery_id == self.gallery.id
        if self._only is not None:
            mine = mine & (SubjectRow.id == self._only)
        spare = (
            select(
                SubjectRow.key,
                SpareEmbeddingRow.extractor,
                *sealed_columns(TemplateRow),
                SpareEmbeddingRow.embedding,
                null().label("crop"),
            )
            .join_from(SpareEmbeddingRow, TemplateRow, TemplateRow.id == SpareEmbeddingRow.template_id)
            .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
            .order_by(TemplateRow.id)
        )
        aside = (
            select(
                SubjectRow.key,
                SetAsideRow.extractor,
                *sealed_columns(SetAsideRow),
                SetAsideRow.embedding,
                SetAsideRow.crop if crops else null().label("crop"),
            )
            .join_from(SetAsideRow, SubjectRow, SubjectRow.id == SetAsideRow.subject_id)
            .order_by(SetAsideRow.id)
        )
        for query in (spare, aside):
            found = self._session.execute(query.where(mine).execution_options(yield_per=_ROWS))
            for block in found.partitions():
                values = self._opened(SealedRow(row.key_id, template_identity(row), row.embedding) for row in block)
                there = [at for at, row in enumerate(block) if row.crop is not None]
                images = self._opened(
                    SealedRow(block[at].key_id, crop_identity(block[at]), block[at].crop) for at in there
                )
                image_at = dict(zip(there, images, strict=True))
                for at, (row, value) in enumerate(zip(block, values, strict=True)):
                    if value is not None:
                        embedding = np.frombuffer(value, EMBEDDING)
                        yield OldEmbedding(row.key, row.extractor, row.crop_sha256, embedding, image_at.get(at))

    def _opened(self, rows: Iterable[SealedRow], *, dimension: int = 0) -> list[bytes | None]:
        """The values of rows; None for one that does not open, counted and logged unless the subject was erased.

        Of embeddings with a `dimension` also for what no archive may hold (see `usable_embeddings`).
        """
        opened = list[bytes | None]()
        sealed = list(rows)
        pairs = list(zip(sealed, usable_embeddings(self._seals.open(sealed), dimension), strict=True))
        erased = self._erased({row.identity.subject_id for row, value in pairs if value is Flaw.FORGOTTEN})
        for row, value in pairs:
            if isinstance(value, Flaw) and row.identity.subject_id not in erased:
                self.unreadable += 1
                _log.error(str(value), gallery_id=row.identity.gallery_id, crop=row.identity.crop_sha256[:12])
            opened.append(None if isinstance(value, Flaw) else value)
        return opened

    def _erased(self, subjects: set[int]) -> set[int]:
        """Those of some subjects that are there no more; the snapshot has them still."""
        there = set[int]()
        if subjects:
            with self._sessions.reading() as session:
                for asked in in_parts(sorted(subjects)):
                    there.update(session.scalars(select(SubjectRow.id).where(SubjectRow.id.in_(asked))))
        return subjects - there

    def _pages(self) -> Iterator[list[SubjectRow]]:
        query = select(SubjectRow).where(SubjectRow.gallery_id == self.gallery.id).order_by(SubjectRow.id)
        if self._only is not None:
            query = query.where(SubjectRow.id == self._only)
        after = 0
        while rows := list(self._session.scalars(query.where(SubjectRow.id > after).limit(_SUBJECTS))):
            yield rows
            after = rows[-1].id
