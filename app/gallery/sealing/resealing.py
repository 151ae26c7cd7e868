"""Sealing again what is stored: rows from before encryption, and rows that change their subject."""

from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from app.gallery.errors import KeyUnavailable, TemplateTampered
from app.gallery.sealing.encryption import Flaw, RowIdentity, RowSeals, SealedRow, SealedRows
from app.gallery.sealing.vault import Vault
from app.gallery.sql.database import let_others_write, rewrite_file
from app.gallery.sql.rows import Sessions, beside_templates, crop_identity, template_identity
from app.gallery.tables import CropRow, GalleryRow, SetAsideRow, SpareEmbeddingRow, SubjectRow, TemplateRow

_SUBJECTS = 500  # of one transaction, so that others get their turn
_SAMPLE = 100
_log = structlog.get_logger()


def has_sealed_subjects(engine: Engine) -> bool:
    """Whether a subject of the database has a key in some vault."""
    with Sessions(engine).reading() as session:
        return session.scalar(select(SubjectRow.id).where(SubjectRow.key_id.is_not(None)).limit(1)) is not None


def count_plain_subjects(engine: Engine) -> int:
    """How many subjects have rows from before encryption, as where a backup of that time was restored."""
    with Sessions(engine).reading() as session:
        return session.scalar(select(func.count()).where(SubjectRow.key_id.is_(None))) or 0


def check_vault(engine: Engine, vault: Vault) -> None:
    """Make sure that the vault is that of the database; some keys may be missing, not all.

    The oldest and the latest subjects are asked for: an older vault of this database knows the former.

    Raises:
        KeyUnavailable: it knows none of the keys.
    """
    ids: list[str] = []
    with Sessions(engine).reading() as session:
        for order in (SubjectRow.id.asc(), SubjectRow.id.desc()):
            query = select(SubjectRow.key_id).where(SubjectRow.key_id.is_not(None)).order_by(order)
            ids += [key_id for key_id in session.scalars(query.limit(_SAMPLE)) if key_id is not None]
    if ids and not vault.known(ids):
        raise KeyUnavailable(
            "the vault knows none of the keys of the database's subjects: it is another database's, or an old one; "
            "restore the right one, or set FACEGALLERY_VAULT_URL to it"
        )


def seal_at_first_start(engine: Engine, vault: Vault) -> None:
    """Seal the rows from before encryption, once in the life of a vault.

    Later an unsealed row counts as tampered with: otherwise whoever can write to the database could plant one and have
    the next start seal it.
    """
    if vault.sealed:
        with Sessions(engine).reading() as session:
            if session.scalar(select(SubjectRow.id).where(SubjectRow.key_id.is_(None)).limit(1)) is not None:
                _log.error("rows.not_sealed", advice="if an old backup was restored, run `facegallery master-key seal`")
        return
    seal_plain_rows(engine, SealedRows(vault))
    if has_sealed_subjects(engine) and not rewrite_file(engine):  # also where a start broke off over it
        _log.error("rows.file_not_rewritten", advice="make room on the disk and run `facegallery master-key seal`")
    vault.note_sealed()


def seal_plain_rows(engine: Engine, seals: RowSeals) -> int:
    """Give every subject without a key one and seal what is kept of it; answers how many subjects that were.

    Batches are committed one by one, under the galleries' locks; what a crash interrupts goes on at the next call.
    SQLite's file is to be written anew then (`rewrite_file`), as its free pages may hold embeddings.
    """
    sessions, sealed, after = Sessions(engine), 0, 0
    while True:
        with sessions.writing() as session:
            plain = select(SubjectRow.id).where(SubjectRow.key_id.is_(None), SubjectRow.id > after)
            ids = session.scalars(plain.order_by(SubjectRow.id).limit(_SUBJECTS)).all()
            found = _lock_plain_subjects(session, ids)
            for subject, key_id in zip(found, seals.new_keys(len(found)), strict=True):
                subject.key_id = key_id
            _seal_values(session, seals, found)
            sealed += len(found)
        if not ids:
            break
        after = ids[-1]
        _log.info("rows.sealing", subjects=sealed)
        let_others_write(engine)
    if sealed:
        _log.warning("rows.sealed", subjects=sealed, advice="backups from before hold embeddings in the clear")
    return sealed


def hand_over(
    session: Session, seals: RowSeals, templates: Sequence[TemplateRow], *, source: SubjectRow, target: SubjectRow
) -> None:
    """Give templates of one subject, with all that goes with them, to another, sealed with the other's key.

    Crops and embeddings of other extractors go along, and what was set aside of the first subject. Nothing is flushed.

    Raises:
        TemplateTampered: something does not open.
        KeyUnavailable: the target's key is not in the vault.
    """
    crop_of = {template.id: template.crop_sha256 for template in templates}
    crops = beside_templates(session, CropRow, list(crop_of))
    images = [(crop_of[crop.template_id], crop.image) for crop in crops]
    for crop, image in zip(crops, reseal_values(seals, "crop", images, source=source, target=target), strict=True):
        crop.image = image
    aside = _hand_over_crops_aside(session, seals, source=source, target=target)
    spare = beside_templates(session, SpareEmbeddingRow, list(crop_of))
    digests = [
        *(template.crop_sha256 for template in templates),
        *(row.crop_sha256 for row in aside),
        *(crop_of[row.template_id] for row in spare),
    ]
    rows: list[TemplateRow | SetAsideRow | SpareEmbeddingRow] = [*templates, *aside, *spare]
    values = [(digest, row.embedding) for digest, row in zip(digests, rows, strict=True)]
    sealed = reseal_values(seals, "template", values, source=source, target=target)
    for held, value in zip(rows, sealed, strict=True):
        held.embedding = value
    owned: list[TemplateRow | SetAsideRow] = [*templates, *aside]
    for one in owned:
        one.subject_id = target.id


def _hand_over_crops_aside(
    session: Session, seals: RowSeals, *, source: SubjectRow, target: SubjectRow
) -> list[SetAsideRow]:
    """Seal the crops of what was set aside of a subject for another; answers the rows that the other lacks.

    Of those that both have the other's stays, with the crop that either has.
    """
    aside = session.scalars(select(SetAsideRow).filter_by(subject_id=source.id)).all()
    known = {row.crop_sha256: row for row in session.scalars(select(SetAsideRow).filter_by(subject_id=target.id))}
    with_crop = [(row, row.crop) for row in aside if row.crop is not None]
    images = [(row.crop_sha256, image) for row, image in with_crop]
    for (row, _), image in zip(
        with_crop, reseal_values(seals, "crop", images, source=source, target=target), strict=True
    ):
        kept = known.get(row.crop_sha256, row)
        if kept is row or kept.crop is None:
            kept.crop = image
    for row in aside:
        if row.crop_sha256 in known:
            session.delete(row)
    return [row for row in aside if row.crop_sha256 not in known]


def reseal_values(
    seals: RowSeals, kind: str, values: Sequence[tuple[str, bytes]], *, source: SubjectRow, target: SubjectRow
) -> list[bytes]:
    """Sealed values (digest of the crop, bytes) of one subject, sealed for another; `kind` as they were
    sealed.

    Raises:
        TemplateTampered, KeyUnavailable: as `hand_over`.
    """

    def identity(of: SubjectRow, digest: str) -> RowIdentity:
        return RowIdentity(kind, of.gallery_id, of.id, digest)

    opened = seals.open([SealedRow(source.key_id, identity(source, digest), value) for digest, value in values])
    plain = []
    for (digest, _), value in zip(values, opened, strict=True):
        if isinstance(value, Flaw):
            raise TemplateTampered(f"the {kind} of crop {digest[:12]} does not open; erase it first", part="subject")
        plain.append((identity(target, digest), value))
    return seals.seal(target.key_id, plain) if plain else []


def _seal_values(session: Session, seals: RowSeals, subjects: Sequence[SubjectRow]) -> None:
    """Seal all that is kept of some subjects with the keys that they have by now."""
    key_of = {subject.id: subject.key_id for subject in subjects}
    theirs = TemplateRow.subject_id.in_(key_of)
    templates = session.scalars(select(TemplateRow).where(theirs)).all()
    by_id, ids = {template.id: template for template in templates}, select(TemplateRow.id).where(theirs)
    crops = session.scalars(select(CropRow).where(CropRow.template_id.in_(ids))).all()
    spare = session.scalars(select(SpareEmbeddingRow).where(SpareEmbeddingRow.template_id.in_(ids))).all()
    aside = session.scalars(select(SetAsideRow).where(SetAsideRow.subject_id.in_(key_of))).all()
    own: dict[int, list[tuple[Any, str, RowIdentity]]] = {}
    owned: list[TemplateRow | SetAsideRow] = [*templates, *aside]
    for row in owned:
        own.setdefault(row.subject_id, []).append((row, "embedding", template_identity(row)))
    for row in aside:
        if row.crop is not None:
            own.setdefault(row.subject_id, []).append((row, "crop", crop_identity(row)))
    for other in spare:
        template = by_id[other.template_id]
        own.setdefault(template.subject_id, []).append((other, "embedding", template_identity(template)))
    for crop in crops:
        template = by_id[crop.template_id]
        own.setdefault(template.subject_id, []).append((crop, "image", crop_identity(template)))
    for subject_id, held in own.items():
        values = [(identity, getattr(row, column)) for row, column, identity in held]
        for (row, column, _), value in zip(held, seals.seal(key_of[subject_id], values), strict=True):
            setattr(row, column, value)


def _lock_plain_subjects(session: Session, ids: Sequence[int]) -> Sequence[SubjectRow]:
    """Those of some subjects that have no key still, now that the rows of their galleries are locked."""
    some = SubjectRow.id.in_(ids)
    theirs = select(GalleryRow.id).where(GalleryRow.id.in_(select(SubjectRow.gallery_id).where(some)))
    session.scalars(theirs.order_by(GalleryRow.id).with_for_update()).all()
    return session.scalars(select(SubjectRow).where(some, SubjectRow.key_id.is_(None))).all()
