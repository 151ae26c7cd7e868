"""Subjects in SQL: found, made, changed, merged; the caller has the transaction and keeps the journal."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from app.gallery.consent import Terms, check_consent, consent_from_json, rules_from_json
from app.gallery.errors import InvalidInput, SubjectExists, SubjectNotFound
from app.gallery.metadata import stored_metadata
from app.gallery.records import Subject
from app.gallery.sealing.encryption import RowSeals
from app.gallery.sealing.resealing import hand_over
from app.gallery.sql.rows import (
    Due,
    apply_terms,
    gallery_of,
    no_subject,
    nobody_is_due,
    record_changes,
    subject_row,
)
from app.gallery.sql.shared_crops import complete_twins
from app.gallery.tables import GalleryRow, InheritedKeyRow, SubjectRow, TemplateRow, now


def find_subjects(
    session: Session, where: ColumnElement[bool], *, limit: int, gallery_id: int | None = None
) -> list[Subject]:
    """The subjects for which something holds, of one gallery or of all, in the order of their ids."""
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
            metadata=stored_metadata(row.details),
            templates=count,
            created_at=row.created_at,
            updated_at=row.updated_at,
            consent=consent_from_json(row.consent),
            expires_at=row.expires_at,
            seen_at=row.seen_at,
        )
        for row, count in session.execute(query)
    ]


def found_subject(session: Session, owner: GalleryRow, key: str) -> Subject:
    """One subject, read by one statement: somebody may erase it between two.

    Raises:
        SubjectNotFound: as named.
    """
    found = find_subjects(session, SubjectRow.key == key, limit=1, gallery_id=owner.id)
    if not found:
        raise no_subject(owner, key)
    return found[0]


def subject_for_enrolment(
    session: Session, seals: RowSeals, owner: GalleryRow, key: str, terms: Terms
) -> tuple[SubjectRow, bool]:
    """The subject's row, made where it is missing, and whether it was made; `owner` is locked.

    Raises:
        ConsentRequired: the gallery requires a consent, and neither the terms nor the subject have a good one.
    """
    row = session.scalar(select(SubjectRow).filter_by(gallery_id=owner.id, key=key))
    known = consent_from_json(row.consent) if row else None
    check_consent(rules_from_json(owner.privacy), terms, known, now())
    if row is not None:
        return row, False
    (key_id,) = seals.new_keys(1)
    row = SubjectRow(gallery_id=owner.id, key=key, details={}, key_id=key_id)
    session.add(row)
    session.flush()
    return row, True


def change_subject(
    session: Session,
    owner: GalleryRow,
    key: str,
    *,
    new_key: str | None,
    metadata: dict[str, Any] | None,
    terms: Terms,
    earlier_end: Callable[[], None],
) -> str:
    """Rename a subject, replace its metadata, its consent, its expiry; answers its key. `owner` is locked.

    `earlier_end` is that of `apply_terms`.

    Raises:
        SubjectNotFound, SubjectExists: as named.
        ConsentRequired: the gallery requires a consent, and the terms take it away.
    """
    row = subject_row(session, owner, key)
    if new_key is not None and new_key != key:
        if session.scalar(select(SubjectRow.id).filter_by(gallery_id=owner.id, key=new_key)) is not None:
            raise SubjectExists(f"gallery {owner.name!r} has a subject {new_key!r} already", part="subject")
        row.key = new_key
    if metadata is not None:
        row.details = metadata
    if terms:
        check_consent(rules_from_json(owner.privacy), terms, consent_from_json(row.consent), now())
        apply_terms(row, terms, earlier_end)
    row.updated_at = now()
    session.flush()
    return row.key


def merge_subjects(
    session: Session, seals: RowSeals, owner: GalleryRow, key: str, into: str, due: Due = nobody_is_due
) -> int:
    """Move the templates of one subject to another and erase the first; answers how many moved. `owner` is locked.

    Of crops that both have the other's templates stay, in their rows, with what only the first's have or only they
    open to (see `complete_twins`). The other is kept on the terms of both (see `_keep_on_terms_of_both`). The key of
    the first is kept with the other, as a backup may have to undo the merge, and goes with it. The templates that move
    are removed in one revision and added with their new owner in the next, both in this transaction, so that no process
    ever sees the first alone: a known template that is added again keeps its owner (see `TemplateOwners.add`).

    Raises:
        SubjectNotFound: as named; one who is due counts as gone, so that a merge saves nobody whose time is over, and
            nobody is merged into who is about to be erased.
        InvalidInput: both are one.
        TemplateTampered: something of the first does not open.
        KeyUnavailable: the other's key is not in the vault.
    """
    gone, kept = subject_row(session, owner, key), subject_row(session, owner, into, part="merge_into")
    if gone.id == kept.id:
        raise InvalidInput("a subject cannot be merged into itself", part="merge_into")
    for row, part in ((gone, "subject"), (kept, "merge_into")):
        if due(gallery_of(owner), row):
            raise SubjectNotFound(f"subject {row.key!r} is past its retention", part=part)
    known = {one.crop_sha256: one for one in session.scalars(select(TemplateRow).filter_by(subject_id=kept.id))}
    templates = session.scalars(select(TemplateRow).filter_by(subject_id=gone.id)).all()
    moved = [template for template in templates if template.crop_sha256 not in known]
    twins = [(template, known[template.crop_sha256]) for template in templates if template.crop_sha256 in known]
    mended = complete_twins(session, seals, twins, source=gone, target=kept, dimension=owner.dimension)
    if templates:
        record_changes(session, owner, "remove", [(template.id, gone.id) for template in templates])
    if moved or mended:
        record_changes(session, owner, "add", [(template.id, kept.id) for template in (*moved, *mended)])
    hand_over(session, seals, moved, source=gone, target=kept)
    session.flush()
    session.execute(delete(TemplateRow).where(TemplateRow.subject_id == gone.id))
    leave_keys(session, gone, kept)
    _keep_on_terms_of_both(owner, gone, kept)
    session.delete(gone)
    kept.updated_at = now()
    session.flush()
    return len(moved)


def _keep_on_terms_of_both(owner: GalleryRow, gone: SubjectRow, kept: SubjectRow) -> None:
    """Keep a subject as long as one person may be kept whom a gallery has known under two keys.

    The earlier enrolment, the later sighting, the earlier expiry and the later grant of consent count. Where the
    gallery erases who is not seen, the later enrolment is a sighting: who has just been enrolled is not erased for it.
    """
    both = (gone, kept)
    seen = [one.seen_at for one in both if one.seen_at is not None]
    if rules_from_json(owner.privacy).unseen_days is not None:
        seen += [one.created_at for one in both]
    kept.seen_at = max(seen, default=None)
    kept.created_at = min(one.created_at for one in both)
    kept.expires_at = min((one.expires_at for one in both if one.expires_at is not None), default=None)
    theirs, own = consent_from_json(gone.consent), consent_from_json(kept.consent)
    if theirs is not None and (own is None or theirs.granted_at > own.granted_at):
        kept.consent = gone.consent


def leave_keys(session: Session, gone: SubjectRow, kept: SubjectRow) -> None:
    """Have another subject keep the key of one that is about to go, and those that it has kept itself."""
    inherited = update(InheritedKeyRow).where(InheritedKeyRow.subject_id == gone.id).values(subject_id=kept.id)
    session.execute(inherited, execution_options={"synchronize_session": False})
    if gone.key_id is not None:
        session.add(InheritedKeyRow(key_id=gone.key_id, subject_id=kept.id))
        gone.key_id = None
    session.flush()
