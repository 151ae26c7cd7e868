"""Sealing again what is stored: rows from before encryption, and rows that change their subject."""

from collections.abc import Sequence
from itertools import groupby

import structlog
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.gallery.database import rewrite_file
from app.gallery.encryption import Flaw, RowIdentity, RowSeals, SealedRow, SealedRows
from app.gallery.errors import KeyUnavailable, TemplateTampered
from app.gallery.rows import Sessions, template_identity
from app.gallery.tables import GalleryRow, SubjectRow, TemplateRow
from app.gallery.vault import Vault

_SUBJECTS = 500  # of one transaction, so that others get their turn
_SAMPLE = 100
_log = structlog.get_logger()


def has_sealed_subjects(engine: Engine) -> bool:
    """Whether a subject of the database has a key in some vault."""
    with Sessions(engine).reading() as session:
        return session.scalar(select(SubjectRow.id).where(SubjectRow.key_id.is_not(None)).limit(1)) is not None


def check_vault(engine: Engine, vault: Vault) -> None:
    """Make sure that the vault is that of the database; some keys may be missing, not all.

    Raises:
        KeyUnavailable: it knows none of the keys.
    """
    with Sessions(engine).reading() as session:
        query = select(SubjectRow.key_id).where(SubjectRow.key_id.is_not(None)).order_by(SubjectRow.id.desc())
        ids = [key_id for key_id in session.scalars(query.limit(_SAMPLE)) if key_id is not None]
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
    vault.note_sealed()


def seal_plain_rows(engine: Engine, seals: RowSeals) -> int:
    """Give every subject without a key one and seal its templates; answers how many subjects that were.

    Batches are committed one by one, under the galleries' locks; what a crash interrupts goes on at the next call.
    SQLite's file is then written anew, as its free pages may hold embeddings.
    """
    sessions, sealed = Sessions(engine), 0
    while True:
        with sessions.writing() as session:
            found = _lock_plain_subjects(session)
            for subject, key_id in zip(found, seals.new_keys(len(found)), strict=True):
                subject.key_id = key_id
            templates = session.scalars(
                select(TemplateRow)
                .where(TemplateRow.subject_id.in_([subject.id for subject in found]))
                .order_by(TemplateRow.subject_id)
            ).all()
            key_of = {subject.id: subject.key_id for subject in found}
            for subject_id, grouped in groupby(templates, key=lambda template: template.subject_id):
                own = list(grouped)
                values = [(template_identity(template), template.embedding) for template in own]
                for template, value in zip(own, seals.seal(key_of[subject_id], values), strict=True):
                    template.embedding = value
        if not found:
            break
        sealed += len(found)
        _log.info("rows.sealing", subjects=sealed)
    if sealed:
        rewrite_file(engine)
        _log.warning("rows.sealed", subjects=sealed, advice="backups from before hold embeddings in the clear")
    return sealed


def reseal_templates(
    seals: RowSeals, templates: Sequence[TemplateRow], *, source: SubjectRow, target: SubjectRow
) -> None:
    """Hand templates of one subject to another: open them with the one's key, seal them with the other's.

    The rows then name the target; nothing is flushed. Crops go the same way through `reseal_values`.

    Raises:
        TemplateTampered: one does not open.
        KeyUnavailable: the target's key is not in the vault.
    """
    values = [(template.crop_sha256, template.embedding) for template in templates]
    sealed = reseal_values(seals, "template", values, source=source, target=target)
    for template, value in zip(templates, sealed, strict=True):
        template.subject_id, template.embedding = target.id, value


def reseal_values(
    seals: RowSeals, kind: str, values: Sequence[tuple[str, bytes]], *, source: SubjectRow, target: SubjectRow
) -> list[bytes]:
    """Sealed values (digest of the crop, bytes) of one subject, sealed for another; `kind` as they were
    sealed.

    Raises:
        TemplateTampered, KeyUnavailable: as `reseal_templates`.
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


def _lock_plain_subjects(session: Session) -> Sequence[SubjectRow]:
    """Some subjects without a key, all of one gallery, whose row is locked."""
    query = select(SubjectRow).where(SubjectRow.key_id.is_(None)).order_by(SubjectRow.gallery_id, SubjectRow.id)
    first = session.scalar(query.limit(1))
    if first is None:
        return []
    session.scalar(select(GalleryRow.id).filter_by(id=first.gallery_id).with_for_update())
    mine = query.where(SubjectRow.gallery_id == first.gallery_id).limit(_SUBJECTS)
    return session.scalars(mine.execution_options(populate_existing=True)).all()
