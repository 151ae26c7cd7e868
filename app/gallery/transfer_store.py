"""TransferStore: the SQL of moving people in and out."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import structlog
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from app.gallery.consent import Terms, check_consent, consent_from_json, rules_from_json
from app.gallery.encryption import Flaw, PlainRows, RowSeals, SealedRow
from app.gallery.journal import Event, Journal, NoJournal
from app.gallery.portable import OldEmbedding, PortableSubject, PortableTemplate, Stored
from app.gallery.records import Gallery
from app.gallery.rows import (
    EMBEDDING,
    Sessions,
    crop_identity,
    gallery_of,
    gallery_row,
    keep_crops,
    record_changes,
    subject_row,
    template_identity,
    template_row,
)
from app.gallery.store import check_extractor
from app.gallery.tables import (
    CropRow,
    GalleryRow,
    ImportedPhotoRow,
    SetAsideRow,
    SpareEmbeddingRow,
    SubjectRow,
    TemplateRow,
    now,
)
from model.quality import Quality

_SUBJECTS = 200  # of one read
_ROWS = 500  # that are opened together
_EPOCH = 2**32  # revisions that a restore skips: more than any process can have seen of the time that was undone
_SKIPPED_GALLERIES = 1_000_000  # ids of galleries that a restore skips, for the same reason
_log = structlog.get_logger()


class GallerySnapshot:
    """One gallery as it was at one moment, read in pieces while others write."""

    def __init__(self, session: Session, name: str, subject: str | None, seals: RowSeals) -> None:
        self.unreadable = 0
        """Templates, crops and old embeddings that did not open so far, and were left out."""
        self._session = session
        self._seals = seals
        owner = gallery_row(session, name)
        self.gallery: Gallery = gallery_of(owner)
        self._only = None if subject is None else subject_row(session, owner, subject).id

    def subjects(self) -> Iterator[PortableSubject]:
        """The subjects in the order of their ids, without their templates."""
        for rows in self._pages():
            for row in rows:
                yield PortableSubject(
                    row.key,
                    row.details,
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
                    SealedRow(key_id, template_identity(row), row.embedding)
                    for key_id, (row, _) in zip(key_ids, block, strict=True)
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

    def old_embeddings(self) -> Iterator[OldEmbedding]:
        """Embeddings of other extractors: spare ones, and those of templates that were set aside."""
        mine = SubjectRow.gallery_id == self.gallery.id
        if self._only is not None:
            mine = mine & (SubjectRow.id == self._only)
        spare = (
            select(
                SubjectRow.key,
                SubjectRow.key_id,
                SpareEmbeddingRow.extractor,
                TemplateRow.gallery_id,
                TemplateRow.subject_id,
                TemplateRow.crop_sha256,
                SpareEmbeddingRow.embedding,
            )
            .join(TemplateRow, TemplateRow.id == SpareEmbeddingRow.template_id)
            .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
            .order_by(TemplateRow.id)
        )
        aside = (
            select(
                SubjectRow.key,
                SubjectRow.key_id,
                SetAsideRow.extractor,
                SetAsideRow.gallery_id,
                SetAsideRow.subject_id,
                SetAsideRow.crop_sha256,
                SetAsideRow.embedding,
            )
            .join(SubjectRow, SubjectRow.id == SetAsideRow.subject_id)
            .order_by(SetAsideRow.id)
        )
        for query in (spare, aside):
            found = self._session.execute(query.where(mine).execution_options(yield_per=_ROWS))
            for block in found.partitions():
                values = self._opened(SealedRow(row.key_id, template_identity(row), row.embedding) for row in block)
                for row, value in zip(block, values, strict=True):
                    if value is not None:
                        yield OldEmbedding(row.key, row.extractor, row.crop_sha256, np.frombuffer(value, EMBEDDING))

    def _opened(self, rows: Iterable[SealedRow]) -> list[bytes | None]:
        """The values of rows; None, counted and logged, for one that does not open."""
        opened = list[bytes | None]()
        sealed = list(rows)
        for row, value in zip(sealed, self._seals.open(sealed), strict=True):
            if isinstance(value, Flaw):
                self.unreadable += 1
                _log.error(str(value), gallery_id=row.identity.gallery_id, crop=row.identity.crop_sha256[:12])
            opened.append(None if isinstance(value, Flaw) else value)
        return opened

    def _pages(self) -> Iterator[list[SubjectRow]]:
        query = select(SubjectRow).where(SubjectRow.gallery_id == self.gallery.id).order_by(SubjectRow.id)
        if self._only is not None:
            query = query.where(SubjectRow.id == self._only)
        after = 0
        while rows := list(self._session.scalars(query.where(SubjectRow.id > after).limit(_SUBJECTS))):
            yield rows
            after = rows[-1].id


class TransferStore:
    """Exports, archives read back, and the journal of imports; safe to call from many threads."""

    def __init__(self, engine: Engine, *, journal: Journal | None = None, seals: RowSeals | None = None) -> None:
        self.engine = engine
        self._sessions = Sessions(engine)
        self._journal = journal or NoJournal()
        self._seals = seals or PlainRows()

    # -- the journal of imports

    def imported(self, gallery: str, subject: str, photo_sha256: str, *, with_crop: bool) -> bool:
        """Whether a photo was imported for a subject whose template of it is still there.

        Args:
            gallery: its name; need not be there.
            subject: its key; need not be there.
            photo_sha256: digest of the photo's bytes.
            with_crop: only if the template's crop is kept, too.
        """
        query = (
            select(ImportedPhotoRow.template_id)
            .join(TemplateRow, TemplateRow.id == ImportedPhotoRow.template_id)
            .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
            .join(GalleryRow, GalleryRow.id == SubjectRow.gallery_id)
            .where(ImportedPhotoRow.photo_sha256 == photo_sha256, SubjectRow.key == subject, GalleryRow.name == gallery)
        )
        if with_crop:
            query = query.join(CropRow, CropRow.template_id == TemplateRow.id)
        with self._sessions.reading() as session:
            return session.scalar(query.limit(1)) is not None

    def remember(self, gallery: str, photos: Iterable[tuple[int, str]]) -> None:
        """Write down which templates came from which photos; templates that are gone by now are passed over.

        Raises:
            GalleryNotFound: the gallery was erased meanwhile.
        """
        wanted = set(photos)
        if not wanted:
            return
        with self._sessions.writing() as session:
            gallery_row(session, gallery, lock=True)  # keeps the templates where they are
            ids = {template_id for template_id, _ in wanted}
            there = set(session.scalars(select(TemplateRow.id).where(TemplateRow.id.in_(ids))))
            known = session.execute(
                select(ImportedPhotoRow.template_id, ImportedPhotoRow.photo_sha256).where(
                    ImportedPhotoRow.template_id.in_(ids)
                )
            )
            wanted -= {(row.template_id, row.photo_sha256) for row in known}
            session.add_all(
                ImportedPhotoRow(template_id=template_id, photo_sha256=photo)
                for template_id, photo in wanted
                if template_id in there
            )

    # -- out

    @contextmanager
    def snapshot(self, gallery: str, *, subject: str | None = None) -> Iterator[GallerySnapshot]:
        """A gallery, or one of its subjects, as of now.

        Raises:
            GalleryNotFound, SubjectNotFound: as named.
        """
        with self._sessions.reading() as session:
            if self.engine.dialect.name != "sqlite":  # whose transactions see one moment anyway
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield GallerySnapshot(session, gallery, subject, self._seals)

    # -- in

    def restore(self, gallery: str, subjects: Sequence[PortableSubject], *, extractor: str) -> Stored:
        """Store people as they were, all or none of them; a subject that is there gets the templates it lacks.

        Such a subject keeps its own metadata, consent and expiry, which may be newer.

        Raises:
            GalleryNotFound: there is no such gallery.
            ExtractorMismatch: the gallery belongs to another extractor.
            ConsentRequired: the gallery requires a consent, and one of them has no good one, neither there nor here.
            KeyUnavailable: a subject's key is not in the vault.
        """
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            check_extractor(gallery_of(owner), extractor)
            rules = rules_from_json(owner.privacy)
            keys = {subject.key for subject in subjects}
            rows = {
                row.key: row
                for row in session.scalars(
                    select(SubjectRow).where(SubjectRow.gallery_id == owner.id, SubjectRow.key.in_(keys))
                )
            }
            crops_of = self._crops_of(session, [row.id for row in rows.values()])
            made: list[tuple[TemplateRow, str | None, bytes | None]] = []
            known = 0
            key_ids = iter(self._seals.new_keys(len(keys - rows.keys())))
            for subject in subjects:
                row = rows.get(subject.key)
                is_new = row is None
                stored = consent_from_json(row.consent) if row else subject.consent
                check_consent(rules, Terms(), stored, now())
                if row is None:
                    row = rows[subject.key] = SubjectRow(
                        gallery_id=owner.id,
                        key=subject.key,
                        details=subject.metadata,
                        created_at=subject.created_at,
                        updated_at=subject.updated_at,
                        key_id=next(key_ids),
                        consent=subject.consent.to_json() if subject.consent else None,
                        expires_at=subject.expires_at,
                        seen_at=subject.seen_at,
                    )
                    session.add(row)
                    session.flush()
                there = crops_of.setdefault(row.id, set())
                new = [one for one in subject.templates if one.crop_sha256 not in there]
                once = list({one.crop_sha256: one for one in new}.values())
                there |= {one.crop_sha256 for one in once}
                templates = [
                    template_row(owner.id, row.id, one.quality, one.crop_sha256, created_at=one.created_at)
                    for one in once
                ]
                values = [
                    (template_identity(template), one.embedding.astype(EMBEDDING).tobytes())
                    for template, one in zip(templates, once, strict=True)
                ]
                for template, sealed in zip(
                    templates, self._seals.seal(row.key_id, values) if values else (), strict=True
                ):
                    template.embedding = sealed
                made += [(template, row.key_id, one.crop) for template, one in zip(templates, once, strict=True)]
                if new and not is_new:
                    row.updated_at = now()
                known += len(subject.templates) - len(new)
            session.add_all(template for template, _, _ in made)
            session.flush()
            kept = [(template, key_id, crop) for template, key_id, crop in made if crop is not None]
            keep_crops(session, self._seals, kept)
            if made:
                record_changes(session, owner, "add", [(template.id, template.subject_id) for template, _, _ in made])
            session.flush()
            counts = {"added": len(made), "known": known}
            self._journal.write(session, Event("import", gallery, tuple(sorted(keys)), counts))
            return Stored(added=len(made), known=known)

    def begin_epoch(self) -> int:
        """Tell every process and every snapshot of an index that the database was set back; answers the galleries.

        A database that was restored repeats revisions and ids that were given out before, for other content. So each
        gallery's revision leaps past all that can have been seen, with a change that has indexes built anew, and so
        do the ids that new galleries get.
        """
        with self._sessions.writing() as session:
            names = session.scalars(select(GalleryRow.name).order_by(GalleryRow.id)).all()
            for name in names:
                owner = gallery_row(session, name, lock=True)
                owner.revision += _EPOCH
                record_changes(session, owner, "rebuild", [(0, 0)])
            if self.engine.dialect.name == "sqlite":
                statement = "UPDATE sqlite_sequence SET seq = seq + :skipped WHERE name = 'gallery'"
            else:
                sequence = "pg_get_serial_sequence('gallery', 'id')"
                statement = f"SELECT setval({sequence}, nextval({sequence}) + :skipped)"
            session.execute(text(statement), {"skipped": _SKIPPED_GALLERIES})
            return len(names)

    @staticmethod
    def _crops_of(session: Session, subject_ids: Sequence[int]) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        query = select(TemplateRow.subject_id, TemplateRow.crop_sha256).where(TemplateRow.subject_id.in_(subject_ids))
        for subject_id, crop in session.execute(query):
            found.setdefault(subject_id, set()).add(crop)
        return found
