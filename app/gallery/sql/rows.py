"""What the stores share: transactions, rows by name, and a gallery's history."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Engine, Row, delete, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.gallery.consent import Terms, consent_from_json, ends_earlier, rules_from_json
from app.gallery.crops import is_whole
from app.gallery.errors import GalleryNotFound, SubjectNotFound
from app.gallery.points import new_mark
from app.gallery.policy import policy_from_json
from app.gallery.records import Gallery, TemplateBlock
from app.gallery.sealing.encryption import Flaw, RowIdentity, RowSeals, SealedRow
from app.gallery.sql.database import database_errors
from app.gallery.tables import (
    ChangeRow,
    CropRow,
    GalleryRow,
    SetAsideRow,
    SpareEmbeddingRow,
    SubjectRow,
    TemplateRow,
    now,
)
from app.gallery.unit_length import of_unit_length
from app.telemetry import DAMAGED_TEMPLATES_TOTAL
from model.quality import Quality

EMBEDDING = np.dtype("<f4")
_ASKED = 500  # ids in one question, below the limits of either database
_log = structlog.get_logger()
Value = TypeVar("Value")
Beside = TypeVar("Beside", CropRow, SpareEmbeddingRow)
StoredTemplate = Row[int, int, int, str, bytes, str | None, int]

Due = Callable[[Gallery, SubjectRow], bool]
"""Whether a subject is to be erased, by its row and its gallery as they are under the gallery's lock."""


def nobody_is_due(_gallery: Gallery, _row: SubjectRow) -> bool:
    """For who keeps no watch over retention."""
    return False


def in_parts(values: Sequence[Value], most: int | None = None) -> Iterator[Sequence[Value]]:
    """So many at a time; else some hundred, as many as one question takes."""
    many = most or _ASKED
    for first in range(0, len(values), many):
        yield values[first : first + many]


def beside_templates(session: Session, table: type[Beside], template_ids: Sequence[int]) -> list[Beside]:
    """What is kept beside some templates, however many: their crops, or their embeddings by other extractors."""
    queries = (select(table).where(table.template_id.in_(asked)) for asked in in_parts(template_ids))
    return [row for query in queries for row in session.scalars(query)]


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
    """Raise the gallery's revision by one, with a new mark, and write what it changed; `owner` is locked."""
    previous = owner.mark
    owner.revision += 1
    owner.mark = new_mark()
    if kind == "remove":
        have_snapshots_erased(owner)
    session.add_all(
        ChangeRow(
            gallery_id=owner.id,
            revision=owner.revision,
            template_id=template_id,
            subject_id=subject_id,
            kind=kind,
            mark=owner.mark,
            previous=previous,
        )
        for template_id, subject_id in templates
    )


def have_snapshots_erased(owner: GalleryRow) -> None:
    """Write down, with what was erased, that snapshots may still hold it; `owner` is locked.

    Whoever leads a gallery's snapshots finds it there, however the process ended that erased (see `Upkeep`).
    """
    owner.erasure = uuid.uuid4().hex


def keep_crops(session: Session, seals: RowSeals, crops: Sequence[tuple[TemplateRow, str | None, bytes]]) -> None:
    """Store crops of templates, sealed with the keys of their subjects; one that is there and whole is kept.

    One that opens need not be the template's: an archive of another program may have brought it.

    Args:
        session: of a transaction that writes.
        seals: with which they are sealed.
        crops: template, id of its subject's key, PNG file.
    """
    ids = [template.id for template, _, _ in crops]
    query = select(CropRow).where(CropRow.template_id.in_(ids))
    rows = {row.template_id: row for row in session.scalars(query)} if ids else {}
    there = [(template, key_id) for template, key_id, _ in crops if template.id in rows]
    opened = seals.open([SealedRow(key_id, crop_identity(one), rows[one.id].image) for one, key_id in there])
    whole = {
        one.id
        for (one, _), image in zip(there, opened, strict=True)
        if not isinstance(image, Flaw) and is_whole(image, sha256=one.crop_sha256)
    }
    by_key: dict[str | None, list[tuple[TemplateRow, bytes]]] = {}
    for template, key_id, image in crops:
        if template.id not in whole:
            by_key.setdefault(key_id, []).append((template, image))
    for key_id, own in by_key.items():
        values = [(crop_identity(template), image) for template, image in own]
        for (template, _), sealed in zip(own, seals.seal(key_id, values), strict=True):
            session.merge(CropRow(template_id=template.id, image=sealed))


def gallery_row(session: Session, name: str, *, lock: bool = False, gallery_id: int | None = None) -> GalleryRow:
    """The gallery's row, locked for a write where asked.

    Raises:
        GalleryNotFound: no gallery has that name, or another one than that with the given id.
    """
    query = select(GalleryRow).filter_by(name=name)
    row = session.scalar(query.with_for_update() if lock else query)
    if gallery_id is not None and (row is None or row.id != gallery_id):
        raise GalleryNotFound(f"gallery {name!r} was erased meanwhile", part="gallery")
    if row is None:
        raise no_gallery(name)
    return row


def no_gallery(name: str) -> GalleryNotFound:
    """The error where no gallery has that name."""
    return GalleryNotFound(f"there is no gallery {name!r}", part="gallery")


def subject_row(session: Session, owner: GalleryRow, key: str, *, part: str = "subject") -> SubjectRow:
    """The subject's row.

    Raises:
        SubjectNotFound: the gallery has no subject with that key.
    """
    row = session.scalar(select(SubjectRow).filter_by(gallery_id=owner.id, key=key))
    if row is None:
        raise no_subject(owner, key, part=part)
    return row


def no_subject(owner: GalleryRow, key: str, *, part: str = "subject") -> SubjectNotFound:
    """The error where the gallery has no subject with that key."""
    return SubjectNotFound(f"gallery {owner.name!r} has no subject {key!r}", part=part)


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
        privacy=rules_from_json(row.privacy),
        erasure=row.erasure,
        mark=row.mark,
    )


def allowed() -> None:
    """For who may give a subject an earlier end."""


def apply_terms(row: SubjectRow, terms: Terms, earlier_end: Callable[[], None] = allowed) -> None:
    """Write what a subject is kept on into its row; what is not given stays.

    Args:
        row: the subject's; its gallery is locked.
        terms: what is to be written.
        earlier_end: called before the subject gets an earlier end than it has; raises where that is not to be.
    """
    if ends_earlier(terms, expires_at=row.expires_at, consent=consent_from_json(row.consent)):
        earlier_end()
    if "consent" in terms:
        row.consent = None if terms["consent"] is None else terms["consent"].to_json()
    if "expires_at" in terms:
        row.expires_at = terms["expires_at"]


def erase_subject(session: Session, owner: GalleryRow, row: SubjectRow) -> int:
    """Erase a subject with its templates; `owner` is locked. Answers how many templates that were.

    A trigger writes down that the subject's key is to be destroyed (see `Forgetting`). Snapshots are to follow also
    where there is no template: of one that was set aside, those of the extractor that the gallery has left remember it.
    """
    ids = session.scalars(select(TemplateRow.id).filter_by(subject_id=row.id)).all()
    session.execute(delete(TemplateRow).where(TemplateRow.subject_id == row.id))
    session.delete(row)
    if ids:
        record_changes(session, owner, "remove", [(template_id, row.id) for template_id in ids])
    have_snapshots_erased(owner)
    return len(ids)


def template_row(
    gallery_id: int, subject_id: int, quality: Quality, crop_sha256: str, *, created_at: datetime | None = None
) -> TemplateRow:
    """A row for a new template, whose embedding is sealed and set afterwards; made now, unless it says when."""
    return TemplateRow(
        gallery_id=gallery_id,
        subject_id=subject_id,
        detection_score=quality.detection_score,
        face_size=quality.face_size,
        sharpness=quality.sharpness,
        pose={"yaw": quality.yaw, "pitch": quality.pitch, "roll": quality.roll},
        crop_sha256=crop_sha256,
        created_at=created_at or now(),
    )


def seal_embeddings(
    seals: RowSeals,
    key_id: str | None,
    templates: Sequence[TemplateRow],
    embeddings: Sequence[NDArray[np.float32]],
) -> None:
    """Seal the embeddings (D,) of new templates of one subject with its key, and set them in their rows.

    Raises:
        KeyUnavailable: the key is not in the vault.
    """
    values = [
        (template_identity(template), embedding.astype(EMBEDDING).tobytes())
        for template, embedding in zip(templates, embeddings, strict=True)
    ]
    for template, sealed in zip(templates, seals.seal(key_id, values) if values else (), strict=True):
        template.embedding = sealed


def sealed_columns(table: type[TemplateRow] | type[SetAsideRow]) -> tuple[InstrumentedAttribute[Any], ...]:
    """The columns by which an embedding opens: where it belongs, and its subject's key.

    The query joins the table with that of subjects.
    """
    return (table.gallery_id, table.subject_id, table.crop_sha256, SubjectRow.key_id)


def template_rows(
    session: Session, where: ColumnElement[bool], *, after: int, limit: int | None
) -> Sequence[StoredTemplate]:
    """Templates as stored, in the order of their ids, from the one behind `after`.

    Each with the dimension of its gallery, read with it: the gallery may move to another extractor at any moment.
    """
    columns = select(
        TemplateRow.id,
        TemplateRow.gallery_id,
        TemplateRow.subject_id,
        TemplateRow.crop_sha256,
        TemplateRow.embedding,
        SubjectRow.key_id,
        GalleryRow.dimension,
    )
    joined = columns.join(SubjectRow, SubjectRow.id == TemplateRow.subject_id).join(
        GalleryRow, GalleryRow.id == TemplateRow.gallery_id
    )
    return session.execute(joined.where(where, TemplateRow.id > after).order_by(TemplateRow.id).limit(limit)).all()


def template_block(
    rows: Sequence[StoredTemplate], seals: RowSeals, *, dimension: int, sessions: Sessions | None = None
) -> TemplateBlock:
    """The templates of rows, opened; one that does not open to D numbers of length 1 is logged and left out.

    See `open_embeddings`.
    """
    values = open_embeddings(
        [(row.id, SealedRow(row.key_id, template_identity(row), row.embedding)) for row in rows],
        seals,
        dimension=dimension,
        sessions=sessions,
    )
    good = [(row, value) for row, value in zip(rows, values, strict=True) if value is not None]
    return TemplateBlock(
        ids=np.array([row.id for row, _ in good], np.int64),
        subject_ids=np.array([row.subject_id for row, _ in good], np.int64),
        embeddings=np.frombuffer(b"".join(value for _, value in good), EMBEDDING).reshape(len(good), dimension),
    )


def open_embeddings(
    rows: Sequence[tuple[int, SealedRow]], seals: RowSeals, *, dimension: int, sessions: Sessions | None = None
) -> list[bytes | None]:
    """Embeddings of (template id, sealed row) as bytes of float32; None, with a line in the log, for a damaged one.

    Args:
        rows: as stored.
        seals: that they were sealed with.
        dimension: D that they must have, and length 1; 0: any.
        sessions: to look again with, where a key was destroyed: a subject that was erased between the reading of its
            rows and that of its key is no damage, and is not logged. None: the caller reads what nobody erases.
    """
    opened, values = list[bytes | None](), usable_embeddings(seals.open([row for _, row in rows]), dimension)
    forgotten = [template_id for (template_id, _), value in zip(rows, values, strict=True) if value is Flaw.FORGOTTEN]
    erased = set[int]()
    if forgotten and sessions is not None:  # most often nobody is
        with sessions.reading() as session:
            for asked in in_parts(forgotten):
                erased.update(asked)
                erased.difference_update(session.scalars(select(TemplateRow.id).where(TemplateRow.id.in_(asked))))
    for (template_id, row), value in zip(rows, values, strict=True):
        flaw = value if isinstance(value, Flaw) and template_id not in erased else None
        if flaw is not None:
            DAMAGED_TEMPLATES_TOTAL.labels(flaw.name.lower()).inc()
            _log.error(str(flaw), template=template_id, gallery_id=row.identity.gallery_id)
        opened.append(value if isinstance(value, bytes) else None)
    return opened


def usable_embeddings(opened: Sequence[bytes | Flaw], dimension: int) -> list[bytes | Flaw]:
    """What rows of embeddings open to, with a flaw for what is not D numbers of length 1.

    Args:
        opened: from `RowSeals.open`.
        dimension: D; 0: unknown, and whatever opens is taken.
    """
    if not dimension:
        return list(opened)
    size = dimension * EMBEDDING.itemsize
    sized = [Flaw.TAMPERED if isinstance(one, bytes) and len(one) != size else one for one in opened]
    values = [one for one in sized if isinstance(one, bytes)]
    vectors = np.frombuffer(b"".join(values), EMBEDDING).reshape(len(values), dimension)
    good = iter(of_unit_length(vectors).tolist())
    return [Flaw.NOT_NORMALISED if isinstance(one, bytes) and not next(good) else one for one in sized]


def template_identity(row: Any) -> RowIdentity:
    """Where a template's embedding belongs; of a `TemplateRow` or of a row with its columns."""
    return RowIdentity("template", row.gallery_id, row.subject_id, row.crop_sha256)


def crop_identity(row: Any) -> RowIdentity:
    """Where a template's crop belongs; of a `TemplateRow` or of a row with its columns."""
    return RowIdentity("crop", row.gallery_id, row.subject_id, row.crop_sha256)
