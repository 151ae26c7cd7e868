"""Many photos into a gallery: read and searched for faces side by side, embedded in batches, stored by subject."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from app.gallery.consent import Terms
from app.gallery.crops import encode_crop
from app.gallery.erasure.retention import Retention
from app.gallery.errors import (
    ClockDoubtful,
    ConsentRequired,
    GalleryNotFound,
    InvalidInput,
    KeyUnavailable,
    RefusedPhoto,
    SubjectNotFound,
)
from app.gallery.extractor_check import check_extractor
from app.gallery.moving.import_journal import ImportJournal
from app.gallery.moving.import_sources import ListedPhoto, PeopleSource
from app.gallery.photos import AlignedFace, FaceChoice, Photo, PhotoReader, read_photo
from app.gallery.records import NewTemplate
from app.gallery.sql.rows import nobody_is_due
from app.gallery.store import GalleryStore
from model.errors import FacegalleryError, UnsupportedImage

_BATCH = 64  # photos whose faces are embedded together, and the most of one transaction


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did.

    Args:
        added: templates stored.
        known: photos whose crop the subject had already.
        passed_over: photos that an earlier import had done.
        refused: photos that could not be used, and why.
    """

    added: int
    known: int
    passed_over: int
    refused: tuple[RefusedPhoto, ...]


@dataclass(frozen=True, slots=True)
class _Read:
    """What became of a photo: a face, a refusal, or neither where it was imported before."""

    photo: ListedPhoto
    photo_sha256: str = ""
    face: AlignedFace | None = None
    refused: RefusedPhoto | None = None
    admitted: bool = True  # whether the gallery takes the subject


Admit = Callable[[str, str, Terms], None]
"""Refuses a subject (gallery, subject, terms) whom the gallery does not take; see `Enroller.admit`."""


class PeopleImport:
    """An import into one gallery; a second one of the same photos adds nothing, and a broken one goes on.

    What has been done stands in the database beside the templates, and goes when they go.

    Args:
        store: of the database.
        reader: reads faces out of photos; its limits hold.
        gallery: normalised name; the gallery is made on first use.
        workers: photos that are read at the same time.
        max_bytes: of one photo.
        face: which face of a photo.
        keep_crops: keep the crops.
        admit: asked for each subject before any photo of it is worked on.
        retention: erases a subject whose time is over by then, where its photos are stored; none: nobody.
    """

    def __init__(
        self,
        store: GalleryStore,
        reader: PhotoReader,
        gallery: str,
        *,
        workers: int,
        max_bytes: int,
        face: FaceChoice = "single",
        keep_crops: bool = False,
        admit: Admit = lambda _gallery, _subject, _terms: None,
        retention: Retention | None = None,
    ) -> None:
        self._admit = admit
        self._retention = retention
        self._store = store
        self._imported = ImportJournal(store.engine, store.seals)
        self._reader = reader
        self._gallery = gallery
        self._workers = workers
        self._max_bytes = max_bytes
        self._face: FaceChoice = face
        self._keep_crops = keep_crops
        self._gallery_id: int | None = None  # once it is there

    def run(self, source: PeopleSource, progress: Callable[[int, int], None] = lambda _, __: None) -> ImportReport:
        """Import; `progress` is told the photos, and how many of them an earlier import had done.

        Raises:
            ExtractorMismatch: the gallery belongs to another extractor.
            GalleryNotFound: it was erased meanwhile; it is not made again, which would be without its rules.
            Busy, DatabaseUnavailable, StorageUnwritable: as named; what was stored before stays, and the next run goes
                on from there.
        """
        self._gallery_id = None
        with suppress(GalleryNotFound):
            found = self._store.gallery(self._gallery)
            check_extractor(found, self._reader.extractor)
            self._gallery_id = found.id
        added = known = passed_over = 0
        refused = list(source.refused)
        results = self._results(source)
        while batch := list(islice(results, _BATCH)):
            stored, there, late = self._store_batch(batch, source)
            added, known = added + stored, known + there
            refused += [*late, *(one.refused for one in batch if one.refused is not None)]
            done_before = sum(one.refused is None and one.face is None for one in batch)
            passed_over += done_before
            progress(len(batch), done_before)
        return ImportReport(added, known, passed_over, tuple(refused))

    def _results(self, source: PeopleSource) -> Iterator[_Read]:
        """Every photo read, in order, a bounded number ahead of what is being embedded and stored."""
        waiting: deque[Future[_Read]] = deque()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="import") as pool:
            left = self._begun(source, pool)
            try:
                # So that workers have something to do while a batch is embedded and stored.
                waiting.extend(islice(left, 2 * _BATCH + self._workers))
                while waiting:
                    yield waiting.popleft().result()
                    waiting.extend(islice(left, 1))
            finally:
                pool.shutdown(cancel_futures=True)

    def _begun(self, source: PeopleSource, pool: ThreadPoolExecutor) -> Iterator[Future[_Read]]:
        """Every photo as it is begun to be read; those of a subject that the gallery does not take never are."""
        for subject, group in groupby(source.photos, key=lambda one: one.subject):
            photos = list(group)
            try:
                self._admit(self._gallery, subject, self._terms(subject, source, create=True, same=True))
            except (ConsentRequired, InvalidInput, ClockDoubtful) as error:
                for photo in photos:
                    refusal = Future[_Read]()
                    reason = RefusedPhoto(photo.name, error.slug, str(error))
                    refusal.set_result(_Read(photo, refused=reason, admitted=False))
                    yield refusal
            else:
                for photo in photos:
                    yield pool.submit(self._read, photo)

    def _read(self, photo: ListedPhoto) -> _Read:
        try:
            data = read_photo(photo.path, max_bytes=self._max_bytes)
        except UnsupportedImage as error:
            return _Read(photo, refused=RefusedPhoto(photo.name, "file-unreadable", str(error)))
        digest = hashlib.sha256(data).hexdigest()
        if self._imported.has(self._gallery, photo.subject, digest, with_crop=self._keep_crops):
            return _Read(photo, digest)
        try:
            face = self._reader.one_face(Photo(photo.name, data), self._face, part=photo.name)
            self._reader.require_quality(face, part=photo.name)
        except FacegalleryError as error:
            return _Read(photo, digest, refused=RefusedPhoto(photo.name, error.slug, str(error)))
        return _Read(photo, digest, face)

    def _store_batch(self, batch: Sequence[_Read], source: PeopleSource) -> tuple[int, int, list[RefusedPhoto]]:
        """Embed a batch and store it, a transaction for each subject.

        Returns:
            Templates added, known photos, and photos of subjects that the gallery did not take after all, or whose key
            is not in the vault.
        """
        faces = [(one, one.face) for one in batch if one.face is not None]
        embeddings = iter(self._reader.embed([face for _, face in faces]))
        added = known = 0
        photos: list[tuple[int, str]] = []
        refused: list[RefusedPhoto] = []
        for subject, group in groupby(batch, key=lambda one: one.photo.subject):
            reads = list(group)
            if not reads[0].admitted:
                continue
            found = [(one.photo_sha256, one.face) for one in reads if one.face is not None]
            templates = [
                NewTemplate(
                    next(embeddings),
                    face.quality,
                    face.crop_sha256,
                    encode_crop(face.crop) if self._keep_crops else None,
                )
                for _, face in found
            ]
            metadata = self._changed_metadata(subject, source, create=bool(templates))
            terms = self._terms(subject, source, create=bool(templates))
            if not templates:
                self._change(subject, metadata, terms)
                continue
            extractor = self._reader.networks.extractor
            try:
                enrolment = self._store.enroll(
                    self._gallery,
                    subject,
                    templates,
                    metadata=metadata,
                    extractor=extractor.card.identity,
                    dimension=extractor.dimension,
                    terms=terms,
                    due=nobody_is_due if self._retention is None else self._retention.is_due_still,
                    gallery_id=self._gallery_id,
                )
            except (
                ConsentRequired,
                KeyUnavailable,
                ClockDoubtful,
            ) as error:  # rules may have changed since they were looked at
                late = [one.photo.name for one in reads if one.face is not None]
                refused += [RefusedPhoto(name, error.slug, str(error)) for name in late]
                continue
            self._gallery_id = enrolment.gallery_id
            if self._retention is not None and enrolment.erased_in is not None:
                self._retention.finish(enrolment.erased_in)
            added += len(enrolment.added)
            known += len(found) - len(enrolment.added)
            ids = {one.crop_sha256: one.id for one in (*enrolment.added, *enrolment.known)}
            photos += [
                (ids[template.crop_sha256], photo) for template, (photo, _) in zip(templates, found, strict=True)
            ]
        self._imported.remember(self._gallery, photos)
        return added, known, refused

    def _change(self, subject: str, metadata: dict[str, Any] | None, terms: Terms) -> None:
        """Change what is known of a subject that is there; who was erased a moment ago is not made again by that."""
        if metadata is not None or terms:
            with suppress(GalleryNotFound, SubjectNotFound, ConsentRequired):
                self._store.update_subject(
                    self._gallery, subject, metadata=metadata, terms=terms, gallery_id=self._gallery_id
                )

    def _terms(self, subject: str, source: PeopleSource, *, create: bool, same: bool = False) -> Terms:
        """The table's consent where it is newer than the stored one, or, where asked, the same."""
        wanted = source.consents.get(subject)
        if wanted is None:
            return {}
        try:
            stored = self._store.subject(self._gallery, subject).consent
        except (GalleryNotFound, SubjectNotFound):
            return {"consent": wanted} if create else {}
        if stored is None or wanted.granted_at > stored.granted_at or (same and wanted == stored):
            return {"consent": wanted}
        return {}

    def _changed_metadata(self, subject: str, source: PeopleSource, *, create: bool) -> dict[str, Any] | None:
        """The subject's metadata where it differs from the stored; nobody is made of metadata alone."""
        wanted = source.metadata.get(subject)
        if wanted is None:
            return None
        try:
            return None if self._store.subject(self._gallery, subject).metadata == wanted else wanted
        except (GalleryNotFound, SubjectNotFound):
            return wanted if create else None
