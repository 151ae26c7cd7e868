"""Templates of one crop that two subjects have: one of the two goes when the subjects are merged."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.gallery.encryption import Flaw, RowIdentity, RowSeals, SealedRow
from app.gallery.stored_templates import closed_templates
from app.gallery.tables import CropRow, SpareEmbeddingRow, SubjectRow, TemplateRow


def complete_twins(
    session: Session,
    seals: RowSeals,
    twins: Sequence[tuple[TemplateRow, TemplateRow]],
    *,
    source: SubjectRow,
    target: SubjectRow,
    dimension: int,
) -> list[TemplateRow]:
    """Give the target's templates what theirs lack and the source's, which are about to go, have.

    That is the embedding, the crop, embeddings of other extractors; what does not open counts as lacking, on both
    sides. Nothing is flushed.

    Args:
        session: of a transaction that writes.
        seals: that the values were sealed with.
        twins: templates of the source, each with the one of the target that has the same crop.
        source: the subject that goes.
        target: the subject that stays.
        dimension: D of their gallery.

    Returns:
        Templates of the target that open by now, and did not.

    Raises:
        KeyUnavailable: the target's key is not in the vault.
    """
    pairs = [(gone.id, kept.id) for gone, kept in twins]
    digests = {kept.id: kept.crop_sha256 for _, kept in twins}
    closed = {
        one.id for one in closed_templates(seals, [(kept, target.key_id) for _, kept in twins], dimension=dimension)
    }
    mended = [(gone, kept) for gone, kept in twins if kept.id in closed]
    useless = {
        one.id for one in closed_templates(seals, [(gone, source.key_id) for gone, _ in mended], dimension=dimension)
    }
    mended = [(gone, kept) for gone, kept in mended if gone.id not in useless]
    values = [(kept.crop_sha256, gone.embedding) for gone, kept in mended]
    for (_, kept), sealed in zip(mended, _sealed_anew(seals, "template", values, source, target), strict=True):
        if sealed is not None:
            kept.embedding = sealed
    _complete_crops(session, seals, pairs, digests, source, target)
    _complete_spares(session, seals, pairs, digests, source, target)
    return [kept for _, kept in mended]


def _complete_crops(
    session: Session,
    seals: RowSeals,
    pairs: Sequence[tuple[int, int]],
    digests: dict[int, str],
    source: SubjectRow,
    target: SubjectRow,
) -> None:
    ids = [one for pair in pairs for one in pair]
    rows = {row.template_id: row for row in session.scalars(select(CropRow).where(CropRow.template_id.in_(ids)))}
    there = [kept for _, kept in pairs if kept in rows]
    opened = _opened(seals, "crop", [(digests[kept], rows[kept].image) for kept in there], target)
    whole = {kept for kept, image in zip(there, opened, strict=True) if image is not None}
    wanted = [(gone, kept) for gone, kept in pairs if gone in rows and kept not in whole]
    values = [(digests[kept], rows[gone].image) for gone, kept in wanted]
    for (_, kept), sealed in zip(wanted, _sealed_anew(seals, "crop", values, source, target), strict=True):
        if sealed is not None:
            session.merge(CropRow(template_id=kept, image=sealed))


def _complete_spares(
    session: Session,
    seals: RowSeals,
    pairs: Sequence[tuple[int, int]],
    digests: dict[int, str],
    source: SubjectRow,
    target: SubjectRow,
) -> None:
    ids = [one for pair in pairs for one in pair]
    query = select(SpareEmbeddingRow).where(SpareEmbeddingRow.template_id.in_(ids))
    rows = {(row.template_id, row.extractor): row for row in session.scalars(query)}
    kept_of = dict(pairs)
    wanted = [(row, kept_of[row.template_id]) for row in rows.values() if row.template_id in kept_of]
    theirs = [(kept, row.extractor) for row, kept in wanted if (kept, row.extractor) in rows]
    opened = _opened(seals, "template", [(digests[one[0]], rows[one].embedding) for one in theirs], target)
    whole = {one for one, value in zip(theirs, opened, strict=True) if value is not None}
    wanted = [(row, kept) for row, kept in wanted if (kept, row.extractor) not in whole]
    values = [(digests[kept], row.embedding) for row, kept in wanted]
    for (row, kept), sealed in zip(wanted, _sealed_anew(seals, "template", values, source, target), strict=True):
        if sealed is not None:
            session.merge(
                SpareEmbeddingRow(
                    template_id=kept,
                    extractor=row.extractor,
                    gallery_id=row.gallery_id,
                    previous=row.previous,
                    embedding=sealed,
                )
            )


def _opened(seals: RowSeals, kind: str, values: Sequence[tuple[str, bytes]], subject: SubjectRow) -> list[bytes | None]:
    """Values (digest of the crop, sealed) of a subject; None for one that does not open."""
    rows = [
        SealedRow(subject.key_id, RowIdentity(kind, subject.gallery_id, subject.id, digest), value)
        for digest, value in values
    ]
    return [None if isinstance(value, Flaw) else value for value in seals.open(rows)]


def _sealed_anew(
    seals: RowSeals, kind: str, values: Sequence[tuple[str, bytes]], source: SubjectRow, target: SubjectRow
) -> list[bytes | None]:
    """Values (digest of the crop, sealed) of one subject, sealed for another; None for one that does not open."""
    opened = _opened(seals, kind, values, source)
    good = [
        (RowIdentity(kind, target.gallery_id, target.id, digest), value)
        for (digest, _), value in zip(values, opened, strict=True)
        if value is not None
    ]
    sealed = iter(seals.seal(target.key_id, good) if good else ())
    return [None if value is None else next(sealed) for value in opened]
