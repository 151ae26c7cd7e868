"""Templates in SQL: added, listed, erased; the caller has the transaction and keeps the journal."""

from collections.abc import Sequence

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from app.gallery.errors import TemplateNotFound
from app.gallery.records import NewTemplate, Template
from app.gallery.sealing.encryption import RowSeals, SealedRow
from app.gallery.sql.rows import (
    keep_crops,
    open_embeddings,
    record_changes,
    seal_embeddings,
    subject_row,
    template_identity,
    template_row,
)
from app.gallery.tables import GalleryRow, SetAsideRow, SubjectRow, TemplateRow
from model.quality import Quality


def template_of(row: TemplateRow, subject: str) -> Template:
    """The record of a row of the subject with that key."""
    return Template(
        id=row.id,
        subject=subject,
        quality=Quality(
            detection_score=row.detection_score, face_size=row.face_size, sharpness=row.sharpness, **row.pose
        ),
        crop_sha256=row.crop_sha256,
        created_at=row.created_at,
    )


def add_templates(
    session: Session, seals: RowSeals, owner: GalleryRow, row: SubjectRow, templates: Sequence[NewTemplate]
) -> tuple[list[TemplateRow], list[TemplateRow]]:
    """Add templates to a subject; answers those that were added and those that were there. `owner` is locked.

    A template whose crop the subject has already is not stored again; only the crop itself is, where it is given
    and was not kept yet. One that does not open any more is sealed anew in its row, which keeps its id, its crop and
    its place in the journal of imports, and counts as added.

    Raises:
        KeyUnavailable: the subject's key is missing or destroyed, also where all crops are known.
    """
    stored = {
        template.crop_sha256: template for template in session.scalars(select(TemplateRow).filter_by(subject_id=row.id))
    }
    known = {one.crop_sha256: stored[one.crop_sha256] for one in templates if one.crop_sha256 in stored}
    closed = closed_templates(seals, [(one, row.key_id) for one in known.values()], dimension=owner.dimension)
    mended = {one.crop_sha256: known.pop(one.crop_sha256) for one in closed}
    new: dict[str, NewTemplate] = {}
    for template in templates:
        if template.crop_sha256 not in known:
            new.setdefault(template.crop_sha256, template)
    added = {
        digest: mended.get(digest) or template_row(owner.id, row.id, one.quality, digest) for digest, one in new.items()
    }
    seal_embeddings(seals, row.key_id, list(added.values()), [one.embedding for one in new.values()])
    session.add_all(added.values())
    session.flush()
    crops = {template.crop_sha256: template.crop for template in templates if template.crop is not None}
    kept = [(made, row.key_id, crops[crop]) for crop, made in (added | known).items() if crop in crops]
    keep_crops(session, seals, kept)
    if added:
        record_changes(session, owner, "add", [(template.id, row.id) for template in added.values()])
    return list(added.values()), list(known.values())


def closed_templates(
    seals: RowSeals, templates: Sequence[tuple[TemplateRow, str | None]], *, dimension: int
) -> list[TemplateRow]:
    """Those of some templates that do not open, or not to so many numbers of length 1; log and metric say why.

    Args:
        seals: with which they were sealed.
        templates: each with the id of its subject's key, of any subjects.
        dimension: D of their gallery.
    """
    rows = [(one.id, SealedRow(key_id, template_identity(one), one.embedding)) for one, key_id in templates]
    values = open_embeddings(rows, seals, dimension=dimension)
    return [one for (one, _), value in zip(templates, values, strict=True) if value is None]


def find_templates(
    session: Session, owner: GalleryRow, *, subject: str | None, after: int, limit: int
) -> list[Template]:
    """Templates of a gallery or of one subject, in the order of their ids, from the one behind `after`.

    Raises:
        SubjectNotFound: as named.
    """
    query = _templates_of(owner)
    if subject is not None:  # alone, else SQLite looks through all templates of the gallery
        query = _with_keys().where(TemplateRow.subject_id == subject_row(session, owner, subject).id)
    query = query.where(TemplateRow.id > after).order_by(TemplateRow.id).limit(limit)
    return [template_of(row, key) for row, key in session.execute(query)]


def found_template(session: Session, owner: GalleryRow, template_id: int) -> Template:
    """One template.

    Raises:
        TemplateNotFound: as named.
    """
    found = session.execute(_templates_of(owner).where(TemplateRow.id == template_id)).first()
    if found is None:
        raise _not_found(owner, template_id)
    row, key = found
    return template_of(row, key)


def _templates_of(owner: GalleryRow) -> Select[TemplateRow, str]:
    """Templates of a gallery, each with the key of its subject."""
    return _with_keys().where(TemplateRow.gallery_id == owner.id)


def _with_keys() -> Select[TemplateRow, str]:
    return select(TemplateRow, SubjectRow.key).join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)


def _not_found(owner: GalleryRow, template_id: int) -> TemplateNotFound:
    return TemplateNotFound(f"gallery {owner.name!r} has no template {template_id}", part="template")


def erase_template(session: Session, owner: GalleryRow, template_id: int) -> str:
    """Erase one template; answers the key of its subject, which stays. `owner` is locked.

    What was set aside of the same photo goes, too: nobody sees that, and it would come back if the gallery goes back.

    Raises:
        TemplateNotFound: as named.
    """
    row = session.scalar(select(TemplateRow).filter_by(gallery_id=owner.id, id=template_id))
    if row is None:
        raise _not_found(owner, template_id)
    record_changes(session, owner, "remove", [(row.id, row.subject_id)])
    key = session.scalars(select(SubjectRow.key).filter_by(id=row.subject_id)).one()
    session.execute(delete(SetAsideRow).filter_by(subject_id=row.subject_id, crop_sha256=row.crop_sha256))
    session.delete(row)
    session.flush()
    return key
