"""GalleryService: enroll, identify, verify, delete; joins the store, the indexes and the networks."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.consent import Terms, check_consent, check_terms
from app.gallery.crops import encode_crop
from app.gallery.deadline import check_deadline
from app.gallery.errors import (
    ExtractorMismatch,
    GalleryNotFound,
    InvalidInput,
    PhotosRefused,
    RefusedPhoto,
    SubjectNotFound,
    TimedOut,
)
from app.gallery.forgetting import Forgetting
from app.gallery.history import GalleryHistory
from app.gallery.index_source import IndexSource
from app.gallery.journal import Event
from app.gallery.matching import DEFAULT_RULE, Candidate, MatchingRule, decide, distance_between, subject_distances
from app.gallery.names import normalise_gallery_name, normalise_name
from app.gallery.photos import AlignedFace, FaceChoice, Photo, PhotoReader
from app.gallery.policy import DEFAULT_POLICY, FixedDistance, ThresholdPolicy, threshold_for
from app.gallery.records import Enrolment, Gallery, GallerySize, NewTemplate, Page, Subject, Template
from app.gallery.replica import GalleryReplica
from app.gallery.retention import Retention
from app.gallery.store import GalleryStore, check_extractor
from app.gallery.upkeep import Upkeep
from app.telemetry import (
    DECISIONS_TOTAL,
    PHOTOS_REFUSED_TOTAL,
    TEMPLATES_ADDED_TOTAL,
    stage,
)
from model.errors import FacegalleryError

DEFAULT_GALLERY = "default"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NamedCandidate:
    """A candidate with its subject."""

    subject: Subject
    template_id: int
    distance: float


@dataclass(frozen=True, slots=True)
class Match:
    """What was decided about one probe: `identity` is None where the probe is unknown."""

    identity: NamedCandidate | None
    candidates: tuple[NamedCandidate, ...]


@dataclass(frozen=True, slots=True)
class Identification:
    """The decision on every face of a photo; `faces` is empty where an embedding was sent."""

    gallery: Gallery
    subjects: int
    threshold: float
    faces: tuple[AlignedFace, ...]
    matches: tuple[Match, ...]


@dataclass(frozen=True, slots=True)
class EnrolmentReport:
    """What an enrolment stored and which photos it refused."""

    gallery: str
    enrolment: Enrolment
    photo_of: dict[str, str]
    refused: tuple[RefusedPhoto, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """A one-to-one comparison: a match if the distance is within the threshold."""

    distance: float
    threshold: float

    @property
    def match(self) -> bool:
        """Whether both are taken for one person."""
        return self.distance <= self.threshold


class GalleryService:
    """The one place where photos, galleries and decisions meet; every method may be called from any thread."""

    def __init__(
        self,
        store: GalleryStore,
        history: GalleryHistory,
        reader: PhotoReader,
        indexes: IndexSource,
        *,
        forgetting: Forgetting,
        retention: Retention,
        policy: ThresholdPolicy | None = None,
        rule: MatchingRule = DEFAULT_RULE,
        keep_crops: bool = False,
    ) -> None:
        self.store = store
        self.history = history
        self.forgetting = forgetting
        self.retention = retention
        forgetting.connect(follow=self._follow, erase_traces=self.erase_traces)
        self.reader = reader
        self.indexes = indexes
        self._policy = policy or DEFAULT_POLICY
        self._rule = rule
        self._keep_crops = keep_crops
        self._replicas: dict[int, GalleryReplica] = {}
        self._replicas_lock = threading.Lock()
        self._upkeep: Upkeep | None = None

    @property
    def extractor(self) -> str:
        """Identity of the extractor: its name and the digest of its file."""
        return self.reader.networks.extractor.card.identity

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.reader.networks.extractor.dimension

    # -- start

    def start(self) -> None:
        """Load the index of every gallery that belongs to this extractor, log the others as refused, tend them all."""
        self._upkeep = Upkeep(
            self.replicas, self.history, self.indexes, chores=[self.retention.look, self.store.journal.tidy]
        )
        for gallery in self.store.galleries():
            try:
                self._replica(gallery).catch_up(gallery.revision)
            except FacegalleryError as error:
                _log.error("gallery.refused", gallery=gallery.name, reason=str(error))
        self._upkeep.start()

    def replicas(self) -> list[GalleryReplica]:
        """The galleries that this process has an index of."""
        with self._replicas_lock:
            return list(self._replicas.values())

    def replica(self, gallery: str) -> GalleryReplica:
        """This process's view of a gallery, brought up to date."""
        found = self.store.gallery(normalise_gallery_name(gallery))
        replica = self._replica(found)
        replica.catch_up(found.revision)
        return replica

    def lag(self) -> int:
        """How many revisions this process is behind, in the gallery where it is most; its next call makes it up."""
        present = {gallery.id: gallery.revision for gallery in self.store.galleries()}
        behind = [present.get(one.gallery_id, 0) - one.applied_revision for one in self.replicas()]
        return max(0, *behind) if behind else 0

    def close(self) -> None:
        """End the upkeep, with a last snapshot of what has changed, and give all connections back."""
        if self._upkeep is not None:
            self._upkeep.stop()
        for replica in self.replicas():
            if replica.snapshots is not None:
                replica.snapshots.resign()
        self.retention.write_seen()
        self.indexes.close()
        self.store.close()
        self.forgetting.vault.close()

    # -- the way of a photo

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
    ) -> EnrolmentReport:
        """Store a template of every usable photo; the gallery and the subject are made on first use.

        Photos that were refused before they were read (`unread`) are reported with those that are refused here.

        Raises:
            PhotosRefused: no photo could be used; nothing was stored.
            ConsentRequired: the gallery requires a consent, and there is no good one; nothing was stored.
            GalleryNotFound: PostgreSQL alone: the gallery was erased while this waited for it; nothing was stored.
            InvalidInput, ExtractorMismatch, Busy, TimedOut: as named; nothing was stored.
        """
        gallery, subject = normalise_gallery_name(gallery), normalise_name(subject, part="subject")
        terms = check_terms(terms or {}, self.retention.clock())
        with suppress(GalleryNotFound):  # refused before any photo is worked on; the store looks again
            self._check_enrolment(self.store.gallery(gallery), subject, terms)
        usable: list[tuple[Photo, AlignedFace]] = []
        refused = list(unread)
        with self.reader.worker():
            for photo in photos:
                try:
                    found = self.reader.one_face(photo, face, part=photo.name)
                    self.reader.require_quality(found, part=photo.name)
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
            embeddings = self.reader.embed([found for _, found in usable])
        check_deadline()
        templates = [
            NewTemplate(
                embedding, found.quality, found.crop_sha256, encode_crop(found.crop) if self._keep_crops else None
            )
            for embedding, (_, found) in zip(embeddings, usable, strict=True)
        ]
        photo_of: dict[str, str] = {}
        for template, (photo, _) in zip(templates, usable, strict=True):
            photo_of.setdefault(template.crop_sha256, photo.name)
        with stage("store"):
            enrolment = self.store.enroll(
                gallery,
                subject,
                templates,
                metadata=metadata,
                extractor=self.extractor,
                dimension=self.dimension,
                terms=terms,
            )
        TEMPLATES_ADDED_TOTAL.inc(len(enrolment.added))
        return EnrolmentReport(gallery, enrolment, photo_of, tuple(refused))

    def identify(
        self,
        gallery: str,
        photo: Photo,
        *,
        threshold: float | None = None,
        top_k: int = 5,
        max_faces: int = 20,
        all_candidates: bool = False,
    ) -> Identification:
        """Decode → detect → align → embed → search → decide → name, for every face of a photo.

        Raises:
            GalleryNotFound, ExtractorMismatch, UnsupportedImage, ImageTooLarge, Busy: as named.
        """
        check_extractor(self.store.gallery(normalise_gallery_name(gallery)), self.extractor)
        with self.reader.worker():
            faces = self.reader.faces(photo, at_most=max_faces)
            embeddings = self.reader.embed(faces)
        return self._search(gallery, tuple(faces), embeddings, threshold, top_k, all_candidates)

    def identify_embedding(
        self,
        gallery: str,
        embedding: Sequence[float],
        *,
        threshold: float | None = None,
        top_k: int = 5,
        all_candidates: bool = False,
    ) -> Identification:
        """As `identify`, for a caller that embeds on its own; the embedding's length is normalised.

        Raises:
            InvalidInput: a wrong number of values, a value that is not finite, or all zeros.
        """
        vector = np.array(embedding, np.float64)
        if vector.shape != (self.dimension,):
            raise InvalidInput(
                f"an embedding has {self.dimension} numbers, this one has {vector.size}", part="embedding"
            )
        with np.errstate(over="ignore"):  # a length beyond all numbers is refused below
            length = float(np.linalg.norm(vector))
        if not 0 < length < np.inf:
            raise InvalidInput("an embedding has finite numbers that are not all zero", part="embedding")
        probes = (vector / length).astype(np.float32)[None]
        return self._search(gallery, (), probes, threshold, top_k, all_candidates)

    def _search(
        self,
        gallery: str,
        faces: tuple[AlignedFace, ...],
        embeddings: NDArray[np.float32],
        threshold: float | None,
        top_k: int,
        all_candidates: bool,
    ) -> Identification:
        found = self.store.gallery(normalise_gallery_name(gallery))
        replica = self._replica(found)
        behind = replica.applied_revision < found.revision
        with stage("replay"):
            replica.catch_up(found.revision)
        with stage("search"):
            ranked = replica.search(embeddings, top_k=top_k, rule=self._rule)
        if behind:  # rows may have been read after the gallery moved to another extractor
            check_extractor(self.store.gallery(found.name), self.extractor)
        limit = self._threshold(found, threshold, replica.subjects)
        with stage("name"):
            named = self._name(found, ranked)
        matches = []
        for candidates in named:
            best = decide(candidates, limit)
            shown = candidates if all_candidates else [one for one in candidates if one.distance <= limit]
            matches.append(Match(best, tuple(shown)))
            DECISIONS_TOTAL.labels("unknown" if best is None else "identified").inc()
        identified = [match.identity.subject for match in matches if match.identity]
        counts = {"probes": len(matches), "identified": len(identified)}
        self.store.journal.note(
            Event("identify", found.name, tuple(sorted({subject.key for subject in identified})), counts)
        )
        self.retention.saw(found, identified)
        return Identification(found, replica.subjects, limit, faces, tuple(matches))

    def _name(self, gallery: Gallery, ranked: Sequence[Sequence[Candidate]]) -> list[list[NamedCandidate]]:
        """Give candidates their subjects; one that was erased a moment ago or whose time is over is left out."""
        ids = {candidate.subject_id for candidates in ranked for candidate in candidates}
        found = self.store.subjects_by_id(sorted(ids)) if ids else {}
        subjects = {key: subject for key, subject in found.items() if not self.retention.is_due(gallery, subject)}
        return [
            [
                NamedCandidate(subjects[candidate.subject_id], candidate.template_id, candidate.distance)
                for candidate in candidates
                if candidate.subject_id in subjects
            ]
            for candidates in ranked
        ]

    def verify(
        self, image: Photo, reference: Photo, *, threshold: float | None = None, face: FaceChoice = "single"
    ) -> Verification:
        """Compare the faces of two photos.

        Raises:
            NoFace, SeveralFaces, UnsupportedImage, ImageTooLarge, Busy: as named.
        """
        with self.reader.worker():
            faces = [
                self.reader.one_face(image, face, part="image"),
                self.reader.one_face(reference, face, part="reference"),
            ]
            first, second = self.reader.embed(faces)
        verified = Verification(distance_between(first, second), self._threshold(None, threshold, 1))
        self.store.journal.note(Event("verify", details={"match": verified.match}))
        return verified

    def verify_subject(
        self, image: Photo, gallery: str, subject: str, *, threshold: float | None = None, face: FaceChoice = "single"
    ) -> Verification:
        """Compare the face of a photo with a subject, by the same rule that identifies.

        Raises:
            GalleryNotFound, SubjectNotFound, ExtractorMismatch: as named; and as `verify`.
        """
        found = self.store.gallery(normalise_gallery_name(gallery))
        check_extractor(found, self.extractor)
        claimed = self.store.subject(found.name, normalise_name(subject, part="subject"))
        with self.reader.worker():
            (probe,) = self.reader.embed([self.reader.one_face(image, face, part="image")])
        stored = self.store.subject_embeddings(claimed.id).embeddings
        check_extractor(self.store.gallery(found.name), self.extractor)  # it may have moved meanwhile
        if self.retention.is_due(found, claimed):
            raise SubjectNotFound(f"subject {claimed.key!r} is past its retention", part="subject")
        if not len(stored):
            raise SubjectNotFound(f"subject {claimed.key!r} has no template to compare with", part="subject")
        (distance,) = subject_distances(probe, stored, np.zeros(1, np.intp), self._rule)
        verified = Verification(float(distance), self._threshold(found, threshold, 1))
        self.store.journal.note(Event("verify", found.name, (claimed.key,), {"match": verified.match}))
        return verified

    def detect(self, photo: Photo, *, max_faces: int) -> list[AlignedFace]:
        """The faces of a photo, largest first."""
        with self.reader.worker():
            return self.reader.faces(photo, at_most=max_faces)

    def embed(self, photo: Photo, *, max_faces: int) -> tuple[list[AlignedFace], NDArray[np.float32]]:
        """The faces of a photo, largest first, and their embeddings (N, D)."""
        with self.reader.worker():
            faces = self.reader.faces(photo, at_most=max_faces)
            return faces, self.reader.embed(faces)

    # -- galleries and people

    def create_gallery(self, name: str, policy: ThresholdPolicy | None) -> Gallery:
        """Make an empty gallery for this extractor."""
        name = normalise_gallery_name(name)
        return self.store.create_gallery(name, extractor=self.extractor, dimension=self.dimension, policy=policy)

    def describe(self, gallery: Gallery) -> tuple[GallerySize, ThresholdPolicy, float | None]:
        """Size, policy in force, and the threshold that follows (None where the gallery has another extractor)."""
        size = self.store.size(gallery.id)
        policy = gallery.policy or self._policy
        served = gallery.extractor == self.extractor
        return size, policy, self._threshold(gallery, None, size.subjects) if served else None

    def delete_gallery(self, name: str) -> None:
        """Erase a gallery with all that is in it."""
        gallery = self.store.gallery(normalise_gallery_name(name))
        self.indexes.forget(gallery)  # first: what SQL has forgotten, nobody would look for in an engine
        self.store.delete_gallery(gallery.name)
        with self._replicas_lock:
            self._replicas.pop(gallery.id, None)
        self.indexes.erase_snapshots(gallery)  # one may have been written meanwhile
        self.forgetting.finish(gallery)

    def update_subject(
        self,
        gallery: str,
        key: str,
        *,
        new_key: str | None,
        metadata: dict[str, Any] | None,
        terms: Terms | None = None,
    ) -> Subject:
        """Give a subject another key, other metadata, another consent or expiry."""
        return self.store.update_subject(
            normalise_gallery_name(gallery),
            normalise_name(key, part="subject"),
            new_key=None if new_key is None else normalise_name(new_key, part="subject"),
            metadata=metadata,
            terms=check_terms(terms or {}, self.retention.clock()),
        )

    def merge_subjects(self, gallery: str, key: str, into: str) -> Subject:
        """Move the templates of one subject to another, and erase the first with its key; answers the other.

        Raises:
            GalleryNotFound, SubjectNotFound, InvalidInput, TemplateTampered, KeyUnavailable: as the store's; a subject
                whose time is over is not found, so that a merge prolongs nobody's retention.
        """
        name = normalise_gallery_name(gallery)
        key, into = normalise_name(key, part="subject"), normalise_name(into, part="merge_into")
        found = self.store.gallery(name)
        if self.retention.is_due(found, self.store.subject(name, key)):
            raise SubjectNotFound(f"subject {key!r} is past its retention", part="subject")
        merged = self.store.merge_subjects(name, key, into)
        self.forgetting.finish(self.store.gallery(name))
        return merged

    def delete_subject(self, gallery: str, key: str) -> int:
        """Erase a subject with its key; answers how many templates went with it."""
        return self.forgetting.erase(normalise_gallery_name(gallery), normalise_name(key, part="subject"))

    def forget(self, gallery: str, key: str) -> dict[str, Any]:
        """As `delete_subject`; answers a signed receipt (see `receipts`)."""
        return self.forgetting.forget(normalise_gallery_name(gallery), normalise_name(key, part="subject"))

    def erase_traces(self, gallery: Gallery, at_once: bool) -> int | None:
        """Erase what this machine's snapshots of a gallery's index remember of what was erased.

        Returns:
            How many snapshots; None where it is left to the upkeep of the process that leads, within seconds.
        """
        if self.indexes.folder is None or self.indexes.engine is not None:
            return 0
        try:
            present = self.store.gallery(gallery.name)
            if present.id != gallery.id:
                return 0
            replica = self._replica(present)
        except GalleryNotFound:
            return 0  # and its snapshots with it
        except ExtractorMismatch:
            self.indexes.erase_snapshots(gallery)
            return 0
        if replica.snapshots is None:
            return 0
        # A command has no upkeep: either it leads, or a service does.
        if (at_once or self._upkeep is None) and replica.snapshots.lead():
            return replica.erase_snapshots()
        replica.snapshots.wish_erasure()
        return None

    def delete_template(self, gallery: str, template_id: int) -> None:
        """Erase one template; its subject stays."""
        name = normalise_gallery_name(gallery)
        self.store.delete_template(name, template_id)
        self.forgetting.finish(self.store.gallery(name))

    def subject(self, gallery: str, key: str) -> Subject:
        """One subject."""
        return self.store.subject(normalise_gallery_name(gallery), normalise_name(key, part="subject"))

    def templates(self, gallery: str, *, subject: str | None, after: int, limit: int) -> Page[Template]:
        """A page of templates, of a gallery or of one subject."""
        subject = None if subject is None else normalise_name(subject, part="subject")
        return self.store.templates(normalise_gallery_name(gallery), subject=subject, after=after, limit=limit)

    # -- inside

    def _check_enrolment(self, gallery: Gallery, subject: str, terms: Terms) -> None:
        """Refuse what the store would refuse, and erase a subject of that key whose time is over."""
        check_extractor(gallery, self.extractor)
        known: Subject | None = None
        with suppress(SubjectNotFound):
            known = self.store.subject(gallery.name, subject)
            if self.retention.is_due(gallery, known):
                self.retention.erase_if_due(gallery, known.id)
                known = None
                known = self.store.subject(gallery.name, subject)  # enrolled anew or prolonged by another request
        check_consent(gallery.privacy, terms, known.consent if known else None, self.retention.clock())

    def _follow(self, gallery: Gallery) -> None:
        """Bring this process's index up to date after an erasure, if it has one, or an engine that keeps one."""
        with self._replicas_lock:
            replica = self._replicas.get(gallery.id)
        with suppress(GalleryNotFound, ExtractorMismatch):
            present = self.store.gallery(gallery.name)
            if replica is None and self.indexes.engine is not None:
                replica = self._replica(present)
            if replica is not None and (replica.applied_revision >= 0 or self.indexes.engine is not None):
                replica.catch_up(present.revision)

    def _replica(self, gallery: Gallery) -> GalleryReplica:
        check_extractor(gallery, self.extractor)
        with self._replicas_lock:
            replica = self._replicas.get(gallery.id)
            if replica is None:
                replica = self._replicas[gallery.id] = GalleryReplica(
                    gallery,
                    self.history,
                    partial(self.indexes.make, gallery),
                    self.indexes.snapshots_of(gallery),
                    tended=self._upkeep is not None,
                )
            return replica

    def _threshold(self, gallery: Gallery | None, wanted: float | None, subjects: int) -> float:
        """The request's threshold; else the gallery's policy; else the settings'; else the card's default."""
        if wanted is not None:
            return FixedDistance(wanted).distance
        policy = (gallery.policy if gallery else None) or self._policy
        return threshold_for(policy, self.reader.networks.extractor.card.thresholds, subjects)
