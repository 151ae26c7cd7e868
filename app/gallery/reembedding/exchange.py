"""The exchange of a gallery's embeddings for those of another extractor, in SQL."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, insert, literal, select, update
from sqlalchemy.orm import Session, aliased

from app.gallery.errors import MoveRefused
from app.gallery.sealing.encryption import Flaw, RowSeals, SealedRow
from app.gallery.sql.rows import EMBEDDING, record_changes, sealed_columns, template_identity
from app.gallery.tables import CropRow, GalleryRow, SetAsideRow, SpareEmbeddingRow, SubjectRow, TemplateRow

_LOOKED_AT = 100  # rows of one read


def has_spare(extractor: str) -> ColumnElement[bool]:
    """Whether a template has an embedding of an extractor beside its own."""
    return (
        exists()
        .where(SpareEmbeddingRow.template_id == TemplateRow.id, SpareEmbeddingRow.extractor == extractor)
        .correlate(TemplateRow)
    )


def exchange_embeddings(
    session: Session, seals: RowSeals, owner: GalleryRow, extractor: str, *, dimension: int | None
) -> None:
    """Make the embeddings of another extractor the gallery's own; `owner` is locked.

    The old ones stay beside the new. Templates that cannot follow are set aside with their crops, and those that were
    set aside when the gallery left this extractor come back. Every process loads its index anew, as a revision is left
    out: no change tells what became of those that were set aside, merged meanwhile or erased.

    Args:
        session: of a transaction that writes.
        seals: that the embeddings were sealed with.
        owner: the gallery's row.
        extractor: to which.
        dimension: of its embeddings; None: as those that are there.

    Raises:
        MoveRefused: there is nothing to go back to.
    """
    left, here = owner.extractor, TemplateRow.gallery_id == owner.id
    dimension = dimension or _dimension(session, seals, owner, extractor)
    columns = [column.name for column in TemplateRow.__table__.columns]
    names = [*columns, "extractor", "crop"]
    gone = select(*(getattr(TemplateRow, name) for name in columns), literal(left), CropRow.image)
    gone = gone.outerjoin(CropRow, CropRow.template_id == TemplateRow.id)
    session.execute(insert(SetAsideRow).from_select(names, gone.where(here, ~has_spare(extractor))))
    session.execute(delete(TemplateRow).where(here, ~has_spare(extractor)))
    kept = select(TemplateRow.id, literal(left), TemplateRow.gallery_id, literal(True), TemplateRow.embedding)
    spare_names = ["template_id", "extractor", "gallery_id", "previous", "embedding"]
    session.execute(insert(SpareEmbeddingRow).from_select(spare_names, kept.where(here)))
    new = (
        select(SpareEmbeddingRow.embedding)
        .where(SpareEmbeddingRow.template_id == TemplateRow.id, SpareEmbeddingRow.extractor == extractor)
        .correlate(TemplateRow)
        .scalar_subquery()
    )
    unsynchronised: dict[str, Any] = {"synchronize_session": False}
    session.execute(update(TemplateRow).where(here).values(embedding=new), execution_options=unsynchronised)
    session.execute(
        delete(SpareEmbeddingRow).where(
            SpareEmbeddingRow.gallery_id == owner.id, SpareEmbeddingRow.extractor == extractor
        )
    )
    _bring_back(session, owner, extractor, columns)
    owner.extractor, owner.dimension = extractor, dimension
    owner.revision += 1
    record_changes(session, owner, "rebuild", [(0, 0)])


def _dimension(session: Session, seals: RowSeals, owner: GalleryRow, extractor: str) -> int:
    """Of the embeddings of an extractor that are there; one that opens tells."""
    spare = (
        select(*sealed_columns(TemplateRow), SpareEmbeddingRow.embedding)
        .join_from(SpareEmbeddingRow, TemplateRow, TemplateRow.id == SpareEmbeddingRow.template_id)
        .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
        .where(SpareEmbeddingRow.gallery_id == owner.id, SpareEmbeddingRow.extractor == extractor)
    )
    aside = (
        select(*sealed_columns(SetAsideRow), SetAsideRow.embedding)
        .join_from(SetAsideRow, SubjectRow, SubjectRow.id == SetAsideRow.subject_id)
        .where(SetAsideRow.gallery_id == owner.id, SetAsideRow.extractor == extractor)
    )
    for query in (spare, aside):
        rows = session.execute(query.limit(_LOOKED_AT)).all()
        values = seals.open([SealedRow(row.key_id, template_identity(row), row.embedding) for row in rows])
        for value in values:
            if not isinstance(value, Flaw):
                return len(value) // EMBEDDING.itemsize
    raise MoveRefused(f"gallery {owner.name!r} has no embeddings of {extractor} to go back to")


def _bring_back(session: Session, owner: GalleryRow, extractor: str, columns: Sequence[str]) -> None:
    """Put back what was set aside when the gallery left the extractor; of a photo enrolled since, its crop alone."""
    other = aliased(TemplateRow)
    same = (other.subject_id == SetAsideRow.subject_id) & (other.crop_sha256 == SetAsideRow.crop_sha256)
    mine = (SetAsideRow.gallery_id == owner.id) & (SetAsideRow.extractor == extractor)
    back = select(*(getattr(SetAsideRow, name) for name in columns)).where(mine, ~exists().where(same))
    session.execute(insert(TemplateRow).from_select(list(columns), back))
    # A crop is sealed for its subject and its own digest, so it opens beside either template.
    crops = (
        select(other.id, SetAsideRow.crop)
        .select_from(SetAsideRow)
        .join(other, same)
        .where(mine, SetAsideRow.crop.is_not(None), ~exists().where(CropRow.template_id == other.id))
    )
    session.execute(insert(CropRow).from_select(["template_id", "image"], crops))
    session.execute(delete(SetAsideRow).where(mine))
