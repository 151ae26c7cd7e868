"""Enrolling: photos of a person become templates."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.gallery.consent import Terms, check_consent, check_terms
from app.gallery.crops import encode_crop
from app.gallery.deadline import check_deadline
from app.gallery.erasure.retention import Retention
from app.gallery.errors import GalleryNotFound, PhotosRefused, RefusedPhoto, SubjectNotFound, TimedOut
from app.gallery.extractor_check import check_extractor
from app.gallery.names import normalise_gallery_name, normalise_new_key
from app.gallery.photos import AlignedFace, FaceChoice, Photo, PhotoReader
from app.gallery.records import Enrolment, Gallery, NewTemplate, Subject
from app.gallery.sql.rows import allowed
from app.gallery.store import GalleryStore
from app.telemetry import PHOTOS_REFUSED_TOTAL, TEMPLATES_ADDED_TOTAL, stage
from model.errors import FacegalleryError


@dataclass(frozen=True, slots=True)
class EnrolmentReport:
    """What an enrolment stored, by which photos, and which it refused.

    `photos_of` has the names of the photos by the digest of their crop: the same photo may have been sent twice.
    """

    gallery: str
    enrolment: Enrolment
    photos_of: dict[str, list[str]]
    refused: tuple[RefusedPhoto, ...]


class Enroller:
    """Enrolls people; safe to call from many threads.

    Args:
        store: gets the templates.
        reader: reads faces out of photos.
        retention: tells whose time is over, and erases a subject of those that is enrolled again.
        keep_crops: keep the crops of enrolled faces.
    """

    def __init__(
        self,
        store: GalleryStore,
        reader: PhotoReader,
        *,
        retention: Retention,
        keep_crops: bool,
    ) -> None:
        self._store = store
        self._reader = reader
        self._retention = retention
        self._keep_crops = keep_crops

    def enroll(
        self,
        gallery: str,
        subject: str,
        photos: Sequence[Photo],
        *,
        unread: Sequence[RefusedPhoto] = (),
        metadata: dict[str, Any] | None = None,
        face: FaceChoice = "single",
        terms: Terms | None = None,
        earlier_end: Callable[[], None] = allowed,
    ) -> EnrolmentReport:
        """Store a template of every usable photo; the gallery and the subject are made on first use.

        Photos that were refused before they were read (`unread`) are reported with those that are refused here.
        `earlier_end` is called before a subject that is there gets an earlier end than it has, and may raise; nothing
        is stored then.

        Raises:
            PhotosRefused: no photo could be used; nothing was stored.
            ConsentRequired: the gallery requires a consent, and there is no good one; nothing was stored.
            GalleryNotFound: PostgreSQL alone: the gallery was erased while this waited for it; nothing was stored.
            InvalidInput, ExtractorMismatch, Busy, TimedOut: as named; nothing was stored.
        """
        gallery, subject = normalise_gallery_name(gallery), normalise_new_key(subject)
        terms = terms or {}
        self.admit(gallery, subject, terms)  # before any photo is worked on; the store looks again
        usable: list[tuple[Photo, AlignedFace]] = []
        refused = list(unread)
        with self._reader.worker():
            for photo in photos:
                try:
                    found = self._reader.one_face(photo, face, part=photo.name)
                    self._reader.require_quality(found, part=photo.name)
                except TimedOut:  # no fault of the photo's
                    raise
                except FacegalleryError as error:
                    refused.append(RefusedPhoto(photo.name, error.slug, str(error)))
                    continue
                usable.append((photo, found))
            for one in refused:
                PHOTOS_REFUSED_TOTAL.labels(one.slug).inc()
            if not usable:
                raise PhotosRefused(tuple(refused))
            embeddings = self._reader.embed([found for _, found in usable])
        check_deadline()
        templates = [
            NewTemplate(
                embedding, found.quality, found.crop_sha256, encode_crop(found.crop) if self._keep_crops else None
            )
            for embedding, (_, found) in zip(embeddings, usable, strict=True)
        ]
        photos_of: dict[str, list[str]] = {}
        for template, (photo, _) in zip(templates, usable, strict=True):
            photos_of.setdefault(template.crop_sha256, []).append(photo.name)
        with stage("store"):
            enrolment = self._store.enroll(
                gallery,
                subject,
                templates,
                metadata=metadata,
                extractor=self._reader.extractor,
                dimension=self._reader.dimension,
                terms=terms,
                due=self._retention.is_due_still,  # it may have become so while the photos were worked on
                earlier_end=earlier_end,
            )
        if enrolment.erased_in is not None:
            self._retention.finish(enrolment.erased_in)
        TEMPLATES_ADDED_TOTAL.inc(len(enrolment.added))
        return EnrolmentReport(gallery, enrolment, photos_of, tuple(refused))

    def admit(self, gallery: str, subject: str, terms: Terms) -> None:
        """Refuse whom the store would refuse, and erase a subject of that key whose time is over.

        Args:
            gallery: normalised name; need not be there.
            subject: normalised key.
            terms: that the subject would be enrolled on.

        Raises:
            ConsentRequired: the gallery requires a consent, and there is no good one.
            InvalidInput: the terms make no sense.
            ExtractorMismatch: the gallery belongs to another extractor.
        """
        check_terms(terms, self._retention.clock())
        with suppress(GalleryNotFound):
            self._check(self._store.gallery(gallery), subject, terms)

    def _check(self, gallery: Gallery, subject: str, terms: Terms) -> None:
        check_extractor(gallery, self._reader.extractor)
        known: Subject | None = None
        with suppress(SubjectNotFound):
            known = self._store.subject(gallery.name, subject)
            if self._retention.is_due(gallery, known):
                self._retention.erase_if_due(gallery, known.id)
                known = None
                known = self._store.subject(gallery.name, subject)  # enrolled anew or prolonged by another request
        check_consent(gallery.privacy, terms, known.consent if known else None, self._retention.clock())
