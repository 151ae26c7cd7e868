"""GalleryStore: the only code that speaks SQL.

A write takes its gallery's row lock, raises the revision by one and writes its change rows in the same transaction, so
revisions become visible in order and without gaps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from sqlalchemy import ColumnElement, Engine, delete, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.gallery.database import database_errors
from app.gallery.errors import (
    ExtractorMismatch,
    GalleryExists,
    GalleryNotFound,
    SubjectExists,
    SubjectNotFound,
    TemplateNotFound,
)
from app.gallery.policy import ThresholdPolicy, policy_from_json, policy_to_json
from app.gallery.records import (
    Change,
    Enrolment,
    Gallery,
    GallerySize,
    Item,
    NewTemplate,
    Page,
    Subject,
    Template,
    TemplateBlock,
)
from app.gallery.tables import ChangeRow, GalleryRow, SubjectRow, TemplateRow, now
from model.quality import Quality

_EMBEDDING = np.dtype("<f4")
_MANY = 10_000  # rows of one read when an index is built


class GalleryStore:
    """Galleries, subjects, templates and their history in one database; safe to call from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(immediate=True)

    # -- galleries

    def galleries(self) -> tuple[Gallery, ...]:
        """All galleries, by name."""
        with self._read() as session:
            return tuple(_gallery(row) for row in session.scalars(select(GalleryRow).order_by(GalleryRow.name)))

    def gallery(self, name: str) -> Gallery:
        """The gallery with its present revision.

        Raises:
            GalleryNotFound: no gallery has that name.
        """
        with self._read() as session:
            return _gallery(_gallery_row(session, name))

    def create_gallery(self, name: str, *, extractor: str, dimension: int, policy: ThresholdPolicy | None) -> Gallery:
        """Make an empty gallery.

        Raises:
            GalleryExists: the name is taken.
        """
        with self._write() as session:
            if not self._insert_gallery(session, name, extractor, dimension, policy):
                raise GalleryExists(f"gallery {name!r} exists already", part="name")
            return _gallery(_gallery_row(session, name))

    def set_policy(self, name: str, policy: ThresholdPolicy | None) -> Gallery:
        """Give a gallery its own threshold policy, or none."""
        with self._write() as session:
            row = _gallery_row(session, name, lock=True)
            row.policy = None if policy is None else policy_to_json(policy)
            session.flush()
            return _gallery(row)

    def delete_gallery(self, name: str) -> None:
        """Erase a gallery with all that is in it."""
        with self._write() as session:
            session.delete(_gallery_row(session, name, lock=True))

    def size(self, gallery_id: int) -> GallerySize:
        """Subjects and templates of a gallery."""
        with self._read() as session:
            subjects = session.scalar(select(func.count()).where(SubjectRow.gallery_id == gallery_id))
            templates = session.scalar(select(func.count()).where(TemplateRow.gallery_id == gallery_id))
            return GallerySize(subjects or 0, templates or 0)

    # -- subjects

    def subjects(self, gallery: str, *, after: int, limit: int) -> Page[Subject]:
        """Subjects in the order of their ids, from the one behind `after`."""
        with self._read() as session:
            row = _gallery_row(session, gallery)
            found = _subjects(session, row.id, SubjectRow.id > after, limit=limit + 1)
            return _page(found, limit, lambda subject: subject.id)

    def subject(self, gallery: str, key: str) -> Subject:
        """One subject.

        Raises:
            GalleryNotFound, SubjectNotFound: as named.
        """
        with self._read() as session:
            return _subject(session, _gallery_row(session, gallery), key)

    def subjects_by_id(self, ids: Sequence[int]) -> dict[int, Subject]:
        """The subjects with these ids; those that are gone are left out."""
        with self._read() as session:
            return {subject.id: subject for subject in _subjects(session, None, SubjectRow.id.in_(ids), limit=len(ids))}

    def enroll(
        self,
        gallery: str,
        key: str,
        templates: Sequence[NewTemplate],
        *,
        metadata: dict[str, Any] | None,
        extractor: str,
        dimension: int,
    ) -> Enrolment:
        """Add templates to a subject; make the gallery and the subject on first use.

        A template whose crop the subject has already is not stored again. `metadata`, where given, replaces the old.

        Raises:
            ExtractorMismatch: the gallery belongs to another extractor.
            GalleryNotFound: PostgreSQL alone: the gallery was there and another transaction erased it while this one
                waited for its row; nothing was stored, and the next call makes it anew.
        """
        with self._write() as session:
            self._insert_gallery(session, gallery, extractor, dimension, None)
            owner = _gallery_row(session, gallery, lock=True)
            check_extractor(_gallery(owner), extractor)
            row = session.scalar(select(SubjectRow).filter_by(gallery_id=owner.id, key=key))
            created = row is None
            if row is None:
                row = SubjectRow(gallery_id=owner.id, key=key, details={})
                session.add(row)
                session.flush()
            if metadata is not None:
                row.details = metadata
            stored = {
                template.crop_sha256: template
                for template in session.scalars(select(TemplateRow).filter_by(subject_id=row.id))
            }
            added: dict[str, TemplateRow] = {}
            known: dict[str, TemplateRow] = {}
            for template in templates:
                if template.crop_sha256 in stored:
                    known[template.crop_sha256] = stored[template.crop_sha256]
                elif template.crop_sha256 not in added:
                    added[template.crop_sha256] = _template_row(owner.id, row.id, template)
            session.add_all(added.values())
            session.flush()
            if added or metadata is not None:
                row.updated_at = now()
            if added:
                _record(session, owner, "add", [(template.id, row.id) for template in added.values()])
            session.flush()
            return Enrolment(
                subject=_subject(session, owner, key),
                created=created,
                added=tuple(_template(template, key) for template in added.values()),
                known=tuple(_template(template, key) for template in known.values()),
            )

    def update_subject(
        self, gallery: str, key: str, *, new_key: str | None = None, metadata: dict[str, Any] | None = None
    ) -> Subject:
        """Rename a subject, replace its metadata, or both.

        Raises:
            GalleryNotFound, SubjectNotFound, SubjectExists: as named.
        """
        with self._write() as session:
            owner = _gallery_row(session, gallery, lock=True)
            row = _subject_row(session, owner, key)
            if new_key is not None and new_key != key:
                if session.scalar(select(SubjectRow.id).filter_by(gallery_id=owner.id, key=new_key)) is not None:
                    raise SubjectExists(f"gallery {gallery!r} has a subject {new_key!r} already", part="subject")
                row.key = new_key
            if metadata is not None:
                row.details = metadata
            row.updated_at = now()
            session.flush()
            return _subject(session, owner, row.key)

    def delete_subject(self, gallery: str, key: str) -> int:
        """Erase a subject with its templates; answers how many templates that were."""
        with self._write() as session:
            owner = _gallery_row(session, gallery, lock=True)
            row = _subject_row(session, owner, key)
            ids = session.scalars(select(TemplateRow.id).filter_by(subject_id=row.id)).all()
            session.execute(delete(TemplateRow).where(TemplateRow.subject_id == row.id))
            session.delete(row)
            if ids:
                _record(session, owner, "remove", [(template_id, row.id) for template_id in ids])
            return len(ids)

    # -- templates

    def templates(self, gallery: str, *, subject: str | None, after: int, limit: int) -> Page[Template]:
        """Templates of a gallery or of one subject, in the order of their ids, from the one behind `after`."""
        with self._read() as session:
            owner = _gallery_row(session, gallery)
            query = (
                select(TemplateRow, SubjectRow.key)
                .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
                .where(TemplateRow.gallery_id == owner.id, TemplateRow.id > after)
                .order_by(TemplateRow.id)
                .limit(limit + 1)
            )
            if subject is not None:
                query = query.where(TemplateRow.subject_id == _subject_row(session, owner, subject).id)
            found = [_template(row, key) for row, key in session.execute(query)]
            return _page(found, limit, lambda template: template.id)

    def delete_template(self, gallery: str, template_id: int) -> None:
        """Erase one template; its subject stays.

        Raises:
            GalleryNotFound, TemplateNotFound: as named.
        """
        with self._write() as session:
            owner = _gallery_row(session, gallery, lock=True)
            row = session.scalar(select(TemplateRow).filter_by(gallery_id=owner.id, id=template_id))
            if row is None:
                raise TemplateNotFound(f"gallery {gallery!r} has no template {template_id}", part="template")
            _record(session, owner, "remove", [(row.id, row.subject_id)])
            session.delete(row)

    def subject_embeddings(self, subject_id: int) -> TemplateBlock:
        """All templates of one subject."""
        with self._read() as session:
            return _block(session, TemplateRow.subject_id == subject_id, after=0, limit=None)

    # -- history

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        """All templates of a gallery in blocks, in the order of their ids."""
        after = 0
        while True:
            with self._read() as session:
                block = _block(session, TemplateRow.gallery_id == gallery_id, after=after, limit=_MANY)
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
        with self._read() as session:
            return [
                Change(
                    revision=row.revision,
                    kind=cast(Any, row.kind),
                    template_id=row.template_id,
                    subject_id=row.subject_id,
                    embedding=None if embedding is None else np.frombuffer(embedding, _EMBEDDING),
                )
                for row, embedding in session.execute(query)
            ]

    def request_rebuild(self, gallery: str) -> Gallery:
        """Have every process build its index of the gallery anew on its next call."""
        with self._write() as session:
            owner = _gallery_row(session, gallery, lock=True)
            _record(session, owner, "rebuild", [(0, 0)])
            session.flush()
            return _gallery(owner)

    def ping(self) -> None:
        """Ask the database for an answer.

        Raises:
            DatabaseUnavailable: there is none.
        """
        with self._read() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    # -- transactions

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with database_errors(), Session(self._engine) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with database_errors(), Session(self._writing) as session, session.begin():
            yield session

    def _insert_gallery(
        self, session: Session, name: str, extractor: str, dimension: int, policy: ThresholdPolicy | None
    ) -> bool:
        """Insert the gallery unless it is there; two first uses at the same moment make one gallery."""
        values = {
            "name": name,
            "extractor": extractor,
            "dimension": dimension,
            "revision": 0,
            "policy": None if policy is None else policy_to_json(policy),
            "created_at": now(),
        }
        insert = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        statement = insert(GalleryRow).values(values).on_conflict_do_nothing(index_elements=["name"])
        return session.scalar(statement.returning(GalleryRow.id)) is not None


def check_extractor(gallery: Gallery, extractor: str) -> None:
    """Refuse to mix embeddings of two extractors.

    Raises:
        ExtractorMismatch: the gallery belongs to another extractor.
    """
    if gallery.extractor != extractor:
        raise ExtractorMismatch(
            f"gallery {gallery.name!r} belongs to extractor {gallery.extractor}, but {extractor} is running; "
            "run the service with that extractor, or enroll the photos again into a new gallery",
            part="gallery",
        )


def _record(session: Session, owner: GalleryRow, kind: str, templates: Sequence[tuple[int, int]]) -> None:
    """Raise the gallery's revision by one and write what it changed; `owner` is locked."""
    owner.revision += 1
    session.add_all(
        ChangeRow(
            gallery_id=owner.id, revision=owner.revision, template_id=template_id, subject_id=subject_id, kind=kind
        )
        for template_id, subject_id in templates
    )


def _gallery_row(session: Session, name: str, *, lock: bool = False) -> GalleryRow:
    query = select(GalleryRow).filter_by(name=name)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise GalleryNotFound(f"there is no gallery {name!r}", part="gallery")
    return row


def _subject_row(session: Session, owner: GalleryRow, key: str) -> SubjectRow:
    row = session.scalar(select(SubjectRow).filter_by(gallery_id=owner.id, key=key))
    if row is None:
        raise SubjectNotFound(f"gallery {owner.name!r} has no subject {key!r}", part="subject")
    return row


def _gallery(row: GalleryRow) -> Gallery:
    return Gallery(
        id=row.id,
        name=row.name,
        extractor=row.extractor,
        dimension=row.dimension,
        revision=row.revision,
        policy=None if row.policy is None else policy_from_json(row.policy),
        created_at=row.created_at,
    )


def _subjects(session: Session, gallery_id: int | None, where: ColumnElement[bool], *, limit: int) -> list[Subject]:
    templates = (
        select(func.count()).where(TemplateRow.subject_id == SubjectRow.id).correlate(SubjectRow).scalar_subquery()
    )
    query = select(SubjectRow, templates).where(where).order_by(SubjectRow.id).limit(limit)
    if gallery_id is not None:
        query = query.where(SubjectRow.gallery_id == gallery_id)
    return [
        Subject(
            id=row.id,
            key=row.key,
            metadata=row.details,
            templates=count,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )
        for row, count in session.execute(query)
    ]


def _subject(session: Session, owner: GalleryRow, key: str) -> Subject:
    row = _subject_row(session, owner, key)
    return _subjects(session, owner.id, SubjectRow.id == row.id, limit=1)[0]


def _template_row(gallery_id: int, subject_id: int, template: NewTemplate) -> TemplateRow:
    quality = template.quality
    return TemplateRow(
        gallery_id=gallery_id,
        subject_id=subject_id,
        embedding=template.embedding.astype(_EMBEDDING).tobytes(),
        detection_score=quality.detection_score,
        face_size=quality.face_size,
        sharpness=quality.sharpness,
        pose={"yaw": quality.yaw, "pitch": quality.pitch, "roll": quality.roll},
        crop_sha256=template.crop_sha256,
    )


def _template(row: TemplateRow, subject: str) -> Template:
    return Template(
        id=row.id,
        subject=subject,
        quality=Quality(
            detection_score=row.detection_score, face_size=row.face_size, sharpness=row.sharpness, **row.pose
        ),
        crop_sha256=row.crop_sha256,
        created_at=row.created_at,
    )


def _block(session: Session, where: ColumnElement[bool], *, after: int, limit: int | None) -> TemplateBlock:
    columns = select(TemplateRow.id, TemplateRow.subject_id, TemplateRow.embedding)
    rows = session.execute(columns.where(where, TemplateRow.id > after).order_by(TemplateRow.id).limit(limit)).all()
    return TemplateBlock(
        ids=np.array([row.id for row in rows], np.int64),
        subject_ids=np.array([row.subject_id for row in rows], np.int64),
        embeddings=np.frombuffer(b"".join(row.embedding for row in rows), _EMBEDDING).reshape(len(rows), -1)
        if rows
        else np.empty((0, 0), np.float32),
    )


def _page(found: list[Item], limit: int, id_of: Callable[[Item], int]) -> Page[Item]:
    items = found[:limit]
    return Page(tuple(items), id_of(items[-1]) if len(found) > limit else None)
