"""GalleryStore: galleries and who is in them, a transaction for each call, with its entry in the journal.

A write takes its gallery's row lock, raises the revision by one and writes its change rows in the same transaction, so
revisions become visible in order and without gaps.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.gallery.consent import PrivacyRules, Terms
from app.gallery.engines import storage_prefix
from app.gallery.errors import GalleryExists
from app.gallery.extractor_check import check_extractor
from app.gallery.journal import Event, Journal, NoJournal
from app.gallery.policy import ThresholdPolicy, policy_to_json
from app.gallery.records import (
    Enrolment,
    Gallery,
    GalleryChanges,
    GallerySize,
    NewTemplate,
    Page,
    Subject,
    Template,
    TemplateBlock,
)
from app.gallery.sealing.encryption import PlainRows, RowSeals
from app.gallery.sql.erased_galleries import begin_erasure, is_there
from app.gallery.sql.galleries import GallerySizes, change_gallery, find_galleries, insert_gallery
from app.gallery.sql.rows import (
    Due,
    Sessions,
    allowed,
    apply_terms,
    erase_subject,
    gallery_of,
    gallery_row,
    in_parts,
    no_gallery,
    nobody_is_due,
    subject_row,
    template_block,
    template_rows,
)
from app.gallery.sql.subjects import (
    change_subject,
    find_subjects,
    found_subject,
    merge_subjects,
    subject_for_enrolment,
)
from app.gallery.sql.templates import add_templates, erase_template, find_templates, found_template, template_of
from app.gallery.tables import GalleryRow, StorageToDropRow, SubjectRow, TemplateRow, now


class GalleryStore:
    """Galleries, subjects, templates and their history in one database; safe to call from many threads."""

    def __init__(self, engine: Engine, *, journal: Journal | None = None, seals: RowSeals | None = None) -> None:
        self.engine = engine
        self.journal = journal or NoJournal()
        self._sessions = Sessions(engine)
        self._sizes = GallerySizes()
        self.seals = seals or PlainRows()

    # -- galleries

    def galleries(self) -> tuple[Gallery, ...]:
        """All galleries, by name."""
        with self._sessions.reading() as session:
            there = select(GalleryRow).where(is_there()).order_by(GalleryRow.name)
            return tuple(gallery_of(row) for row in session.scalars(there))

    def gallery_page(self, shown: Callable[[str], bool], *, after: str, limit: int) -> tuple[list[Gallery], str | None]:
        """Those of the galleries that are to be shown, page by page; see `sql.galleries.find_galleries`."""
        with self._sessions.reading() as session:
            return find_galleries(session, shown, after=after, limit=limit)

    def gallery(self, name: str) -> Gallery:
        """The gallery with its present revision.

        Raises:
            GalleryNotFound: no gallery has that name.
        """
        with self._sessions.reading() as session:
            return gallery_of(gallery_row(session, name))

    def create_gallery(
        self,
        name: str,
        *,
        extractor: str,
        dimension: int,
        policy: ThresholdPolicy | None,
        privacy: PrivacyRules | None = None,
    ) -> Gallery:
        """Make an empty gallery, with its rules of consent and retention: it never stands there without them.

        Raises:
            GalleryExists: the name is taken.
        """
        with self._sessions.writing() as session:
            if not insert_gallery(session, name, extractor, dimension, policy):
                raise GalleryExists(f"gallery {name!r} exists already", part="name")
            details = {"policy": None if policy is None else policy_to_json(policy)}
            self.journal.write(session, Event("create-gallery", name, details=details))
            row = gallery_row(session, name)
            if privacy is not None:
                row.privacy = privacy.to_json()
                session.flush()
                self.journal.write(session, Event("change-gallery", name, details=row.privacy))
            return gallery_of(row)

    def change_gallery(self, name: str, changes: GalleryChanges) -> Gallery:
        """Give a gallery its own threshold policy, or none, and rules of consent and retention."""
        with self._sessions.writing() as session:
            row = gallery_row(session, name, lock=True)
            details = change_gallery(row, changes)
            session.flush()
            self.journal.write(session, Event("change-gallery", name, details=details))
            return gallery_of(row)

    def delete_gallery(self, name: str) -> Gallery:
        """Erase a gallery with all that is in it, and note that engines have to drop it; answers what it was.

        Of a large one it is a first piece that goes, and nobody finds the rest, which is left to `Forgetting`.
        """
        with self._sessions.writing() as session:
            row = gallery_row(session, name, lock=True)
            gallery = gallery_of(row)
            begin_erasure(session, row)
            session.add(StorageToDropRow(prefix=storage_prefix(gallery)))
            session.flush()
            self.journal.write(session, Event("delete-gallery", name))
            return gallery

    def size(self, gallery: Gallery) -> GallerySize:
        """Subjects and templates of a gallery.

        Raises:
            GalleryNotFound: it was erased since it was read.
        """
        found = self.sizes([gallery])
        if gallery.id not in found:
            raise no_gallery(gallery.name)
        return found[gallery.id]

    def sizes(self, galleries: Sequence[Gallery]) -> dict[int, GallerySize]:
        """The same of several, by id, without those that were erased since they were read."""
        with self._sessions.reading() as session:
            return self._sizes.measure(session, [gallery.id for gallery in galleries])

    # -- subjects

    def subjects(self, gallery: str, *, after: int, limit: int) -> Page[Subject]:
        """Subjects in the order of their ids, from the one behind `after`."""
        with self._sessions.reading() as session:
            row = gallery_row(session, gallery)
            found = find_subjects(session, SubjectRow.id > after, limit=limit + 1, gallery_id=row.id)
            return Page.of(found, limit, lambda subject: subject.id)

    def subject(self, gallery: str, key: str) -> Subject:
        """One subject.

        Raises:
            GalleryNotFound, SubjectNotFound: as named.
        """
        with self._sessions.reading() as session:
            return found_subject(session, gallery_row(session, gallery), key)

    def subjects_by_id(self, ids: Sequence[int]) -> dict[int, Subject]:
        """The subjects with these ids; those that are gone are left out."""
        found: dict[int, Subject] = {}
        with self._sessions.reading() as session:
            for asked in in_parts(ids):
                found |= {one.id: one for one in find_subjects(session, SubjectRow.id.in_(asked), limit=len(asked))}
        return found

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
        due: Due = nobody_is_due,
        earlier_end: Callable[[], None] = allowed,
        gallery_id: int | None = None,
    ) -> Enrolment:
        """Add templates to a subject; make the gallery and the subject on first use.

        A template whose crop the subject has already is not stored again; only the crop itself is, where it is given
        and was not kept yet, or not whole. `metadata` and `terms`, where given, replace the old. A subject who is due
        by now is erased first, and made anew; the caller then calls `Forgetting.finish`. `earlier_end` is called before
        a subject that is there gets an earlier end, and may raise. With `gallery_id` the gallery has to be that one,
        and is not made.

        Raises:
            ConsentRequired: the gallery requires a consent, and neither the terms nor the subject have a good one.
            KeyUnavailable: the subject's key is not in the vault.
            ExtractorMismatch: the gallery belongs to another extractor.
            GalleryNotFound: the gallery with that id was erased. Without an id on PostgreSQL alone: the gallery was
                there and another transaction erased it while this one waited for its row; nothing was stored, and the
                next call makes it anew.
        """
        with self._sessions.writing() as session:
            if gallery_id is None:
                insert_gallery(session, gallery, extractor, dimension, None)
            owner = gallery_row(session, gallery, lock=True, gallery_id=gallery_id)
            check_extractor(gallery_of(owner), extractor)
            erased = self._erase_if_due(session, owner, key, due)
            row, created = subject_for_enrolment(session, self.seals, owner, key, terms or {})
            if metadata is not None:
                row.details = metadata
            apply_terms(row, terms or {}, allowed if created else earlier_end)
            added, known = add_templates(session, self.seals, owner, row, templates)
            if added or metadata is not None or terms:
                row.updated_at = now()
            session.flush()
            counts = {"added": len(added), "known": len(known), "created": created} | dict.fromkeys(terms or {}, True)
            self.journal.write(session, Event("enroll", gallery, (key,), counts))
            return Enrolment(
                gallery_id=owner.id,
                subject=found_subject(session, owner, key),
                created=created,
                added=tuple(template_of(template, key) for template in added),
                known=tuple(template_of(template, key) for template in known),
                erased_in=gallery_of(owner) if erased else None,
            )

    def _erase_if_due(self, session: Session, owner: GalleryRow, key: str, due: Due) -> bool:
        row = session.scalar(select(SubjectRow).filter_by(gallery_id=owner.id, key=key))
        if row is None or not due(gallery_of(owner), row):
            return False
        templates = erase_subject(session, owner, row)
        session.flush()
        self.journal.write(session, Event("expire", owner.name, (key,), {"templates": templates}))
        return True

    def update_subject(
        self,
        gallery: str,
        key: str,
        *,
        new_key: str | None = None,
        metadata: dict[str, Any] | None = None,
        terms: Terms | None = None,
        earlier_end: Callable[[], None] = allowed,
        gallery_id: int | None = None,
    ) -> Subject:
        """Rename a subject, replace its metadata, its consent, its expiry.

        `earlier_end` is called before the subject gets an earlier end, and may raise. With `gallery_id` the gallery has
        to be that one.

        Raises:
            GalleryNotFound, SubjectNotFound, SubjectExists: as named.
            ConsentRequired: the gallery requires a consent, and the terms take it away.
        """
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True, gallery_id=gallery_id)
            new = change_subject(
                session,
                owner,
                key,
                new_key=new_key,
                metadata=metadata,
                terms=terms or {},
                earlier_end=earlier_end,
            )
            keys = tuple(dict.fromkeys((key, new)))
            changed = {"metadata": metadata is not None} | dict.fromkeys(terms or {}, True)
            self.journal.write(session, Event("change-subject", gallery, keys, changed))
            return found_subject(session, owner, new)

    def merge_subjects(self, gallery: str, key: str, into: str, *, due: Due = nobody_is_due) -> Subject:
        """Move the templates of one subject to another and erase the first; the other keeps its key and metadata.

        See `sql.subjects.merge_subjects`, which tells of the two revisions that it takes.

        Raises:
            GalleryNotFound, SubjectNotFound: as named; one who is due counts as gone.
            InvalidInput: both are one.
            TemplateTampered: something of the first does not open.
            KeyUnavailable: the other's key is not in the vault.
        """
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            moved = merge_subjects(session, self.seals, owner, key, into, due)
            self.journal.write(session, Event("merge-subjects", gallery, (key, into), {"templates": moved}))
            return found_subject(session, owner, into)

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
            found = find_templates(session, owner, subject=subject, after=after, limit=limit + 1)
            return Page.of(found, limit, lambda template: template.id)

    def template(self, gallery: str, template_id: int) -> Template:
        """One template.

        Raises:
            GalleryNotFound, TemplateNotFound: as named.
        """
        with self._sessions.reading() as session:
            return found_template(session, gallery_row(session, gallery), template_id)

    def delete_template(self, gallery: str, template_id: int) -> Gallery:
        """Erase one template; its subject stays. Answers the gallery that it was in.

        Raises:
            GalleryNotFound, TemplateNotFound: as named.
        """
        with self._sessions.writing() as session:
            owner = gallery_row(session, gallery, lock=True)
            key = erase_template(session, owner, template_id)
            self.journal.write(session, Event("delete-template", gallery, (key,), {"template": template_id}))
            return gallery_of(owner)

    def subject_embeddings(self, subject_id: int) -> TemplateBlock:
        """All templates of one subject; one that does not open is left out."""
        with self._sessions.reading() as session:
            # First: of a subject that is erased in between there are no rows, instead of rows without a length.
            dimension = session.scalar(select(GalleryRow.dimension).join(SubjectRow).where(SubjectRow.id == subject_id))
            rows = template_rows(session, TemplateRow.subject_id == subject_id, after=0, limit=None)
        return template_block(rows, self.seals, dimension=dimension or 0, sessions=self._sessions)

    def record(self, event: Event) -> None:
        """Keep an event of its own in the journal, such as an export, at once."""
        with self._sessions.writing() as session:
            self.journal.write(session, event)

    def close(self) -> None:
        """Have the journal keep what it was told, and give all connections back."""
        self.journal.close()
        self.engine.dispose()
