"""GalleryStore: the only code that speaks SQL.

A write takes its gallery's row lock, raises the revision by one and writes its change rows in the same transaction, so
revisions become visible in order and without gaps.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Engine, delete, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.gallery.consent import PrivacyRules, Terms, check_consent, consent_from_json, rules_from_json
from app.gallery.encryption import PlainRows, RowSeals
from app.gallery.errors import (
    ExtractorMismatch,
    GalleryExists,
    InvalidInput,
    SubjectExists,
    TemplateNotFound,
)
from app.gallery.journal import Event, Journal, NoJournal
from app.gallery.policy import ThresholdPolicy, policy_to_json
from app.gallery.records import (
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
from app.gallery.resealing import hand_over
from app.gallery.rows import (
    Sessions,
    apply_terms,
    erase_subject,
    gallery_of,
    gallery_row,
    keep_crops,
    record_changes,
    seal_embeddings,
    subject_row,
    template_block,
    template_row,
    template_rows,
)
from app.gallery.tables import GalleryRow, SubjectRow, TemplateRow, now
from model.quality import Quality


class GalleryStore:
    """Galleries, subjects, templates and their history in one database; safe to call from many threads."""

    def __init__(self, engine: Engine, *, journal: Journal | None = None, seals: RowSeals | None = None) -> None:
        self.engine = engine
        self.journal = journal or NoJournal()
        self._sessions = Sessions(engine)
        self.seals = seals or PlainRows()

    # -- galleries

    def galleries(self) -> tuple[Gallery, ...]:
        """All galleries, by name."""
        with self._sessions.reading() as session:
            return tuple(gallery_of(row) for row in session.scalars(select(GalleryRow).order_by(GalleryRow.name)))

    def gallery(self, name: str) -> Gallery:
        """The gallery with its present revision.

        Raises:
            GalleryNotFound: no gallery has that name.
        """
        with self._sessions.reading() as session:
            return gallery_of(gallery_row(session, name))

    def create_gallery(self, name: str, *, extractor: str, dimension: int, policy: ThresholdPolicy | None) -> Gallery:
        """Make an empty gallery.

        Raises:
            GalleryExists: the name is taken.
        """
        with self._sessions.writing() as session:
            if not self._insert_gallery(session, name, extractor, dimension, policy):
                raise GalleryExists(f"gallery {name!r} exists already", part="name")
            details = {"policy": None if policy is None else policy_to_json(policy)}
            self.journal.write(session, Event("create-gallery", name, details=details))
            return gallery_of(gallery_row(session, name))

    def set_policy(self, name: str, policy: ThresholdPolicy | None) -> Gallery:
        """Give a gallery its own threshold policy, or none."""
        with self._sessions.writing() as session:
            row = gallery_row(session, name, lock=True)
            row.policy = None if policy is None else policy_to_json(policy)
            session.flush()
            self.journal.write(session, Event("change-gallery", name, details={"policy": row.policy}))
            return gallery_of(row)

    def set_privacy(self, name: str, rules: PrivacyRules) -> Gallery:
        """Give a gallery its rules of consent and retention."""
        with self._sessions.writing() as session:
            row = gallery_row(session, name, lock=True)
            row.privacy = rules.to_json()
            session.flush()
            self.journal.write(session, Event("change-gallery", name, details=row.privacy))
            return gallery_of(row)

    def delete_gallery(self, name: str) -> None:
        """Erase a gallery with all that is in it."""
        with self._sessions.writing() as session:
            session.delete(gallery_row(session, name, lock=True))
            session.flush()
            self.journal.write(session, Event("delete-gallery", name))

    def size(self, gallery_id: int) -> GallerySize:
        """Subjects and templates of a gallery."""
        with self._sessions.reading() as session:
            subjects = session.scalar(select(func.count()).where(SubjectRow.gallery_id == gallery_id))
            templates = session.scalar(select(func.count()).where(TemplateRow.gallery_id == gallery_id))
            return GallerySize(subjects or 0, templates or 0)

    # -- subjects

    def subjects(self, gallery: str, *, after: int, limit: int) -> Page[Subject]:
        """Subjects in the order of their ids, from the one behind `after`."""
        with self._sessions.reading() as session:
            row = gallery_row(session, gallery)
            found = _subjects(session, row.id, SubjectRow.id > after, limit=limit + 1)
            return _page(found, limit, lambda subject: subject.id)

    def subject(self, gallery: str, key: str) -> Subject:
        """One subject.

        Raises:
            GalleryNotFound, SubjectNotFound: as named.
        """
        with self._sessions.reading() as session:
            return _subject(session, gallery_row(session, gallery), key)

    def subjects_by_id(self, ids: Sequence[int]) -> dict[int, Subject]:
        """The subjects with these ids; those that are gone are left out."""
        with self._sessions.reading() as session:
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
        terms: Terms | None = None,
    ) -> Enrolment:
        """Add templates to a subject; make the gallery and the subject on first use.

        A template whose crop the subject has already is not stored again; only the crop itself is, where it is given
        and was not kept yet. `metadata` and `terms`, where given, replace the old.

        Raises:
            ConsentRequired: the gallery requires a consent, and neither the terms nor the subject have a good one.
            KeyUnavailable: the subject's key is not in the vault.
            ExtractorMismatch: the gallery belongs to another extractor.
            GalleryNotFound: PostgreSQL alone: the gallery was there and another transaction erased it while this one
                waited for its row; nothing was stored, and the next call makes it anew.
        """
        with self._sessions.writing() as session:
            self._insert_gallery(session, gallery, extractor, dimension, None)
            owner = gallery_row(session, gallery, lock=True)
            check_extractor(gallery_of(owner), extractor)
            row = session.scalar(select(SubjectRow).filter_by(gallery_id=owner.id, key=key))
            created = row is None
            check_consent(
                rules_from_json(owner.privacy), terms or {}, consent_from_json(row.consent) if row else None, now()
            )
            if row is None:
                (key_id,) = self.seals.new_keys(1)
                row = SubjectRow(gallery_id=owner.id, key=key, details={}, key_id=key_id)
                session.add(row)
                session.flush()
            if metadata is not None:
                row.details = metadata
            apply_terms(row, terms or {})
            stored = {
                template.crop_sha256: template
                for template in session.scalars(select(TemplateRow).filter_by(subject_id=row.id))
            }
            known = {one.crop_sha256: stored[one.crop_sha256] for one in templates if one.crop_sha256 in stored}
            new: dict[str, NewTemplate] = {}
            for template in templates:
                if template.crop_sha256 not in stored:
                    new.setdefault(template.crop_sha256, template)
            added = {digest: template_row(owner.id, row.id, one.quality, digest) for digest, one in new.items()}
            seal_embeddings(self.seals, row.key_id, list(added.values()), [one.embedding for one in new.values()])
            session.add_all(added.values())
            session.flush()
            crops = {template.crop_sha256: template.crop for template in templates if template.crop is not None}
            kept = [(made, row.key_id, crops[crop]) for crop, made in (added | known).items() if crop in crops]
            keep_crops(session, self.seals, kept)
            if added or metadata is not None or terms:
                row.updated_at = now()
            if added:
                record_changes(session, owner, "add", [(template.id, row.id) for template in added.values()])
            session.flush()
            counts = {"added": len(added), "known": len(known), "created": created} | dict.fromkeys(terms or {}, True)
            self.journal.write(session, Event("enroll", gallery, (key,), counts))
            return Enrolment(
                subject=_subject(session, owner, key),
                created=created,
                added=tuple(_template(template, key) for template in added.values()),
                known=tuple(_template(template, key) for template in known.values()),
            )

    def update_subject(
        self,
        gallery: str,
        key: str,
        *,
        new_key: str | None = None,
        metadata: dict[str, Any] | None = None,
        terms: Terms | None = None,
    ) -> Subject:
        """Rename a subject, replace its metadata, its consent, its expiry.

        Raises:
            GalleryNotFound, SubjectNotFound, SubjectExists: as named.
            ConsentRequired: the gallery requires a consent, and the terms take it away.
        """
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            row = subject_row(session, owner, key)
            if new_key is not None and new_key != key:
                if session.scalar(select(SubjectRow.id).filter_by(gallery_id=owner.id, key=new_key)) is not None:
                    raise SubjectExists(f"gallery {gallery!r} has a subject {new_key!r} already", part="subject")
                row.key = new_key
            if metadata is not None:
                row.details = metadata
            if terms:
                check_consent(rules_from_json(owner.privacy), terms, consent_from_json(row.consent), now())
                apply_terms(row, terms)
            row.updated_at = now()
            session.flush()
            keys = tuple(dict.fromkeys((key, row.key)))
            changed = {"metadata": metadata is not None} | dict.fromkeys(terms or {}, True)
            self.journal.write(session, Event("change-subject", gallery, keys, changed))
            return _subject(session, owner, row.key)

    def merge_subjects(self, gallery: str, key: str, into: str) -> Subject:
        """Move the templates of one subject to another and erase the first; the other keeps its key and metadata.

        Crops that the other has already are dropped. The templates that move are removed in one revision and added
        with their new owner in the next, both in this transaction, so that no process ever sees the first alone: a
        known template that is added again keeps its owner (see `TemplateOwners.add`).

        Raises:
            GalleryNotFound, SubjectNotFound: as named.
            InvalidInput: both are one.
            TemplateTampered: something of the first does not open.
            KeyUnavailable: the other's key is not in the vault.
        """
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            gone, kept = subject_row(session, owner, key), subject_row(session, owner, into, part="merge_into")
            if gone.id == kept.id:
                raise InvalidInput("a subject cannot be merged into itself", part="merge_into")
            known = set(session.scalars(select(TemplateRow.crop_sha256).filter_by(subject_id=kept.id)))
            templates = session.scalars(select(TemplateRow).filter_by(subject_id=gone.id)).all()
            moved = [template for template in templates if template.crop_sha256 not in known]
            if templates:
                record_changes(session, owner, "remove", [(template.id, gone.id) for template in templates])
            if moved:
                record_changes(session, owner, "add", [(template.id, kept.id) for template in moved])
            hand_over(session, self.seals, moved, source=gone, target=kept)
            session.flush()
            session.execute(delete(TemplateRow).where(TemplateRow.subject_id == gone.id))
            session.delete(gone)
            kept.updated_at = now()
            session.flush()
            self.journal.write(session, Event("merge-subjects", gallery, (key, into), {"templates": len(moved)}))
            return _subject(session, owner, into)

    def delete_subject(self, gallery: str, key: str) -> int:
        """Erase a subject with its templates; answers how many templates that were."""
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            row = subject_row(session, owner, key)
            templates = erase_subject(session, owner, row)
            session.flush()
            self.journal.write(session, Event("delete-subject", gallery, (key,), {"templates": templates}))
            return templates

    # -- templates

    def templates(self, gallery: str, *, subject: str | None, after: int, limit: int) -> Page[Template]:
        """Templates of a gallery or of one subject, in the order of their ids, from the one behind `after`."""
        with self._sessions.reading() as session:
            owner = gallery_row(session, gallery)
            query = (
                select(TemplateRow, SubjectRow.key)
                .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
                .where(TemplateRow.gallery_id == owner.id, TemplateRow.id > after)
                .order_by(TemplateRow.id)
                .limit(limit + 1)
            )
            if subject is not None:
                query = query.where(TemplateRow.subject_id == subject_row(session, owner, subject).id)
            found = [_template(row, key) for row, key in session.execute(query)]
            return _page(found, limit, lambda template: template.id)

    def delete_template(self, gallery: str, template_id: int) -> None:
        """Erase one template; its subject stays.

        Raises:
            GalleryNotFound, TemplateNotFound: as named.
        """
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            row = session.scalar(select(TemplateRow).filter_by(gallery_id=owner.id, id=template_id))
            if row is None:
                raise TemplateNotFound(f"gallery {gallery!r} has no template {template_id}", part="template")
            record_changes(session, owner, "remove", [(row.id, row.subject_id)])
            key = session.scalars(select(SubjectRow.key).filter_by(id=row.subject_id)).one()
            session.delete(row)
            session.flush()
            self.journal.write(session, Event("delete-template", gallery, (key,), {"template": template_id}))

    def subject_embeddings(self, subject_id: int) -> TemplateBlock:
        """All templates of one subject; one that does not open is left out."""
        with self._sessions.reading() as session:
            rows = template_rows(session, TemplateRow.subject_id == subject_id, after=0, limit=None)
            dimension = session.scalar(select(GalleryRow.dimension).join(SubjectRow).where(SubjectRow.id == subject_id))
        return template_block(rows, self.seals, dimension=dimension or 0)

    def record(self, event: Event) -> None:
        """Keep an event of its own in the journal, such as an export, at once."""
        with self._sessions.writing() as session:
            self.journal.write(session, event)

    def ping(self) -> None:
        """Ask the database for an answer.

        Raises:
            DatabaseUnavailable: there is none.
        """
        with self._sessions.reading() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Have the journal keep what it was told, and give all connections back."""
        self.journal.close()
        self.engine.dispose()

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
        insert = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert
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
            consent=consent_from_json(row.consent),
            expires_at=row.expires_at,
            seen_at=row.seen_at,
        )
        for row, count in session.execute(query)
    ]


def _subject(session: Session, owner: GalleryRow, key: str) -> Subject:
    row = subject_row(session, owner, key)
    return _subjects(session, owner.id, SubjectRow.id == row.id, limit=1)[0]


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


def _page(found: list[Item], limit: int, id_of: Callable[[Item], int]) -> Page[Item]:
    items = found[:limit]
    return Page(tuple(items), id_of(items[-1]) if len(found) > limit else None)
