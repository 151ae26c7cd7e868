"""People out of an archive into the database, as they were."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.gallery.consent import Terms, check_consent, consent_from_json, rules_from_json
from app.gallery.encryption import RowSeals
from app.gallery.errors import ConsentRequired
from app.gallery.extractor_check import check_extractor
from app.gallery.journal import Event, Journal
from app.gallery.portable import PortableSubject, PortableTemplate, RefusedSubject, Stored
from app.gallery.rows import (
    Sessions,
    gallery_of,
    gallery_row,
    keep_crops,
    record_changes,
    seal_embeddings,
    template_row,
)
from app.gallery.tables import GalleryRow, SubjectRow, TemplateRow, now


def restore_people(
    engine: Engine,
    gallery: str,
    subjects: Sequence[PortableSubject],
    *,
    extractor: str,
    journal: Journal,
    seals: RowSeals,
) -> Stored:
    """Store people as they were, in one transaction; a subject that is there gets the templates it lacks.

    Such a subject keeps its own metadata, consent and expiry, which may be newer. Where the gallery requires a consent,
    whoever has no good one, neither there nor here, is not stored and told in the answer.

    Raises:
        GalleryNotFound: there is no such gallery.
        ExtractorMismatch: the gallery belongs to another extractor.
        KeyUnavailable: a subject's key is not in the vault.
    """
    with Sessions(engine).writing() as session:
        owner = gallery_row(session, gallery, lock=True)
        check_extractor(gallery_of(owner), extractor)
        keys = {subject.key for subject in subjects}
        there = select(SubjectRow).where(SubjectRow.gallery_id == owner.id, SubjectRow.key.in_(keys))
        rows = {row.key: row for row in session.scalars(there)}
        refused = _refused(owner, subjects, rows)
        subjects = [subject for subject in subjects if subject.key not in refused]
        keys -= refused.keys()
        crops_of = _crops_of(session, [row.id for row in rows.values()])
        made: list[tuple[TemplateRow, str | None, bytes | None]] = []
        known = 0
        key_ids = iter(seals.new_keys(len(keys - rows.keys())))
        for subject in subjects:
            row = rows.get(subject.key)
            is_new = row is None
            if row is None:
                row = rows[subject.key] = _subject_row(owner, subject, next(key_ids))
                session.add(row)
                session.flush()
            has = crops_of.setdefault(row.id, set())
            new = [one for one in subject.templates if one.crop_sha256 not in has]
            once = list({one.crop_sha256: one for one in new}.values())
            has |= {one.crop_sha256 for one in once}
            templates = _template_rows(row, once, seals)
            made += [(template, row.key_id, one.crop) for template, one in zip(templates, once, strict=True)]
            if new and not is_new:
                row.updated_at = now()
            known += len(subject.templates) - len(new)
        session.add_all(template for template, _, _ in made)
        session.flush()
        keep_crops(session, seals, [(template, key_id, crop) for template, key_id, crop in made if crop is not None])
        if made:
            record_changes(session, owner, "add", [(template.id, template.subject_id) for template, _, _ in made])
        session.flush()
        counts = {"added": len(made), "known": known}
        journal.write(session, Event("import", gallery, tuple(sorted(keys)), counts))
        return Stored(len(made), known, tuple(refused.values()))


def _refused(
    owner: GalleryRow, subjects: Sequence[PortableSubject], rows: Mapping[str, SubjectRow]
) -> dict[str, RefusedSubject]:
    """Those whom the gallery's rules do not let in, by their keys."""
    rules, refused = rules_from_json(owner.privacy), {}
    for subject in subjects:
        row = rows.get(subject.key)
        try:
            check_consent(rules, Terms(), consent_from_json(row.consent) if row else subject.consent, now())
        except ConsentRequired as error:
            refused[subject.key] = RefusedSubject(subject.key, error.slug, str(error))
    return refused


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


def _template_rows(row: SubjectRow, templates: Sequence[PortableTemplate], seals: RowSeals) -> list[TemplateRow]:
    made = [
        template_row(row.gallery_id, row.id, one.quality, one.crop_sha256, created_at=one.created_at)
        for one in templates
    ]
    seal_embeddings(seals, row.key_id, made, [one.embedding for one in templates])
    return made


def _crops_of(session: Session, subject_ids: Sequence[int]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    query = select(TemplateRow.subject_id, TemplateRow.crop_sha256).where(TemplateRow.subject_id.in_(subject_ids))
    for subject_id, crop in session.execute(query):
        found.setdefault(subject_id, set()).add(crop)
    return found
