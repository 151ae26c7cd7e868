"""People out of an archive into the database, as they were."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.gallery.consent import (
    PrivacyRules,
    Terms,
    check_consent,
    check_terms,
    consent_from_json,
    expiry,
    rules_from_json,
)
from app.gallery.errors import ConsentRequired, InvalidInput, KeyUnavailable
from app.gallery.extractor_check import check_extractor
from app.gallery.journal import Event, Journal
from app.gallery.moving.portable import PortableSubject, PortableTemplate, RefusedSubject, Stored
from app.gallery.records import Gallery, Subject
from app.gallery.sealing.encryption import RowSeals
from app.gallery.sql.rows import (
    Sessions,
    apply_terms,
    gallery_of,
    gallery_row,
    keep_crops,
    record_changes,
    seal_embeddings,
    template_row,
)
from app.gallery.sql.subjects import find_subjects
from app.gallery.sql.templates import closed_templates
from app.gallery.tables import GalleryRow, SubjectRow, TemplateRow, now


def people_there(engine: Engine, gallery: Gallery, keys: Collection[str]) -> tuple[Gallery, list[Subject]]:
    """A gallery as it is now, and its subjects that have one of some keys.

    Raises:
        GalleryNotFound: the gallery was erased, also where another one has its name.
    """
    with Sessions(engine).reading() as session:
        owner = gallery_row(session, gallery.name, gallery_id=gallery.id)
        there = find_subjects(session, SubjectRow.key.in_(keys), limit=len(keys), gallery_id=owner.id)
        return gallery_of(owner), there


def restore_people(
    engine: Engine,
    gallery: Gallery,
    subjects: Sequence[PortableSubject],
    *,
    extractor: str,
    journal: Journal,
    seals: RowSeals,
) -> Stored:
    """Store people as they were, in one transaction; a subject that is there gets what it lacks: templates, and crops.

    Such a subject keeps its own metadata and expiry, which may be newer, and its consent, unless it has none or one
    that was granted earlier. A template of it that does not open any more is sealed anew and counts as added.

    Told in the answer and not stored is whoever has no good consent where the gallery requires one, whoever the next
    sweep would erase again, and whose key is missing or destroyed.

    Raises:
        GalleryNotFound: the gallery was erased, also where another one has its name.
        ExtractorMismatch: the gallery belongs to another extractor.
        KeyUnavailable: the key of a new subject was lost while it was stored.
    """
    with Sessions(engine).writing() as session:
        owner = gallery_row(session, gallery.name, lock=True, gallery_id=gallery.id)
        check_extractor(gallery_of(owner), extractor)
        keys = {subject.key for subject in subjects}
        there = select(SubjectRow).where(SubjectRow.gallery_id == owner.id, SubjectRow.key.in_(keys))
        rows = {row.key: row for row in session.scalars(there)}
        refused = _refused(owner, subjects, rows)
        subjects = [subject for subject in subjects if subject.key not in refused]
        templates_of, closed = _stored_templates(session, seals, owner, rows.values(), subjects)
        made, crops = list[TemplateRow](), dict[TemplateRow, tuple[str | None, bytes]]()
        known = consents = 0
        key_ids = iter(seals.new_keys(len({subject.key for subject in subjects} - rows.keys())))
        for subject in subjects:
            row = rows.get(subject.key)
            # Made of this archive, and not touched since: what comes now is the rest of a large one.
            as_written = row is None or (row.created_at, row.updated_at) == (subject.created_at, subject.updated_at)
            is_new = row is None
            if row is None:
                row = rows[subject.key] = _subject_row(owner, subject, next(key_ids))
                session.add(row)
                session.flush()
            own = templates_of.setdefault(row.id, {})
            wanted = {
                one.crop_sha256: one
                for one in subject.templates
                if one.crop_sha256 not in own or own[one.crop_sha256] in closed
            }
            try:
                templates = _sealed(row, wanted, own, seals)
            except KeyUnavailable as error:  # nothing of a subject that was there has been touched yet
                if is_new:
                    raise
                refused[subject.key] = RefusedSubject(subject.key, error.slug, str(error))
                continue
            own |= templates
            closed -= set(templates.values())
            made += templates.values()
            for one in subject.templates:
                if one.crop is not None:
                    crops[own[one.crop_sha256]] = row.key_id, one.crop
            known += sum(one.crop_sha256 not in wanted for one in subject.templates)
            terms = _newer_consent(row, subject)
            apply_terms(row, terms)
            consents += len(terms)
            if (templates or terms) and not as_written:
                row.updated_at = now()
        session.add_all(made)
        session.flush()
        keep_crops(session, seals, [(template, key_id, crop) for template, (key_id, crop) in crops.items()])
        if made:
            record_changes(session, owner, "add", [(template.id, template.subject_id) for template in made])
        session.flush()
        counts = {"added": len(made), "known": known} | ({"consents": consents} if consents else {})
        journal.write(session, Event("import", owner.name, tuple(sorted(keys - refused.keys())), counts))
        return Stored(len(made), known, tuple(refused.values()))


def _refused(
    owner: GalleryRow, subjects: Sequence[PortableSubject], rows: Mapping[str, SubjectRow]
) -> dict[str, RefusedSubject]:
    """Those whom the gallery's rules do not let in, or would not let stay, by their keys."""
    rules, moment, refused = rules_from_json(owner.privacy), now(), dict[str, RefusedSubject]()
    for subject in subjects:
        row = rows.get(subject.key)
        try:
            end = _end(rules, subject, row, moment)
        except (ConsentRequired, InvalidInput) as error:
            refused[subject.key] = RefusedSubject(subject.key, error.slug, str(error))
            continue
        if end is not None and end <= moment:
            detail = (
                f"the subject's time was over at {end.astimezone(UTC).isoformat(timespec='seconds')}, by its expiry, "
                "its consent or the gallery's rules; the next sweep would erase it again"
            )
            refused[subject.key] = RefusedSubject(subject.key, "expired", detail)
    return refused


def _end(rules: PrivacyRules, subject: PortableSubject, row: SubjectRow | None, moment: datetime) -> datetime | None:
    """When the subject would be erased, as it would be stored.

    Raises:
        ConsentRequired: the gallery requires a consent, and there is no good one.
        InvalidInput: the archive's consent cannot be kept.
    """
    terms: Terms = {"consent": subject.consent} if row is None else _newer_consent(row, subject)
    stored = None if row is None else consent_from_json(row.consent)
    check_consent(rules, terms, stored, moment)
    check_terms(terms, moment)
    dates = subject if row is None else row
    return expiry(
        rules,
        created_at=dates.created_at,
        seen_at=dates.seen_at,
        expires_at=dates.expires_at,
        consent=terms.get("consent", stored),
    )


def _newer_consent(row: SubjectRow, subject: PortableSubject) -> Terms:
    """The archive's consent where the subject has none or one that was granted earlier."""
    stored = consent_from_json(row.consent)
    if subject.consent is None or (stored is not None and subject.consent.granted_at <= stored.granted_at):
        return {}
    return {"consent": subject.consent}


def _subject_row(owner: GalleryRow, subject: PortableSubject, key_id: str | None) -> SubjectRow:
    return SubjectRow(
        gallery_id=owner.id,
        key=subject.key,
        details=subject.metadata,
        created_at=subject.created_at,
        updated_at=subject.updated_at,
        key_id=key_id,
        consent=subject.consent.to_json() if subject.consent else None,
        expires_at=subject.expires_at,
        seen_at=subject.seen_at,
    )


def _sealed(
    row: SubjectRow, wanted: Mapping[str, PortableTemplate], own: Mapping[str, TemplateRow], seals: RowSeals
) -> dict[str, TemplateRow]:
    """Rows for templates of a subject, by their crops: new ones, or its own, whose embeddings are sealed anew."""
    made = {
        digest: own.get(digest) or template_row(row.gallery_id, row.id, one.quality, digest, created_at=one.created_at)
        for digest, one in wanted.items()
    }
    seal_embeddings(seals, row.key_id, list(made.values()), [one.embedding for one in wanted.values()])
    return made


def _stored_templates(
    session: Session,
    seals: RowSeals,
    owner: GalleryRow,
    rows: Iterable[SubjectRow],
    subjects: Sequence[PortableSubject],
) -> tuple[dict[int, dict[str, TemplateRow]], set[TemplateRow]]:
    """What is stored already of what came, by subject and crop, and what of it does not open."""
    key_id_of = {row.id: row.key_id for row in rows}
    crops = {one.crop_sha256 for subject in subjects for one in subject.templates}
    query = select(TemplateRow).where(TemplateRow.subject_id.in_(key_id_of), TemplateRow.crop_sha256.in_(crops))
    found: dict[int, dict[str, TemplateRow]] = {}
    for template in session.scalars(query):
        found.setdefault(template.subject_id, {})[template.crop_sha256] = template
    pairs = [(one, key_id_of[one.subject_id]) for own in found.values() for one in own.values()]
    return found, set(closed_templates(seals, pairs, dimension=owner.dimension))
