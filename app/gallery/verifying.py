"""Verifying: whether two faces, or a face and an enrolled subject, are one person's."""

from dataclasses import dataclass

import numpy as np

from app.gallery.erasure.retention import Retention
from app.gallery.errors import SubjectNotFound
from app.gallery.extractor_check import check_extractor
from app.gallery.journal import Event
from app.gallery.matching import MatchingRule, distance_between, subject_distances
from app.gallery.names import normalise_gallery_name, normalise_name
from app.gallery.photos import FaceChoice, Photo, PhotoReader
from app.gallery.store import GalleryStore
from app.gallery.thresholds import Thresholds


@dataclass(frozen=True, slots=True)
class Verification:
    """A one-to-one comparison: a match if the distance is within the threshold."""

    distance: float
    threshold: float

    @property
    def match(self) -> bool:
        """Whether both are taken for one person."""
        return self.distance <= self.threshold


class Verifier:
    """Compares faces; safe to call from many threads.

    Args:
        store: has the subjects.
        reader: reads faces out of photos.
        retention: tells whose time is over.
        thresholds: decide.
        rule: by which the templates of a subject make one distance.
    """

    def __init__(
        self,
        store: GalleryStore,
        reader: PhotoReader,
        *,
        retention: Retention,
        thresholds: Thresholds,
        rule: MatchingRule,
    ) -> None:
        self._store = store
        self._reader = reader
        self._retention = retention
        self._thresholds = thresholds
        self._rule = rule

    def verify(
        self, image: Photo, reference: Photo, *, threshold: float | None = None, face: FaceChoice = "single"
    ) -> Verification:
        """Compare the faces of two photos.

        Raises:
            NoFace, SeveralFaces, UnsupportedImage, ImageTooLarge, Busy: as named.
        """
        with self._reader.worker():
            faces = [
                self._reader.one_face(image, face, part="image"),
                self._reader.one_face(reference, face, part="reference"),
            ]
            first, second = self._reader.embed(faces)
        verified = Verification(distance_between(first, second), self._thresholds.distance(None, threshold, 1))
        self._store.journal.note(Event("verify", details={"match": verified.match}))
        return verified

    def verify_subject(
        self, image: Photo, gallery: str, subject: str, *, threshold: float | None = None, face: FaceChoice = "single"
    ) -> Verification:
        """Compare the face of a photo with a subject, by the same rule that identifies.

        Raises:
            GalleryNotFound, SubjectNotFound, ExtractorMismatch: as named; and as `verify`.
        """
        found = self._store.gallery(normalise_gallery_name(gallery))
        check_extractor(found, self._reader.extractor)
        claimed = self._store.subject(found.name, normalise_name(subject, part="subject"))
        with self._reader.worker():
            (probe,) = self._reader.embed([self._reader.one_face(image, face, part="image")])
        stored = self._store.subject_embeddings(claimed.id).embeddings
        check_extractor(self._store.gallery(found.name), self._reader.extractor)  # it may have moved meanwhile
        if self._retention.is_due(found, claimed):
            raise SubjectNotFound(f"subject {claimed.key!r} is past its retention", part="subject")
        if not len(stored):
            raise SubjectNotFound(f"subject {claimed.key!r} has no template to compare with", part="subject")
        (distance,) = subject_distances(probe, stored, np.zeros(1, np.intp), self._rule)
        verified = Verification(float(distance), self._thresholds.distance(found, threshold, 1))
        self._store.journal.note(Event("verify", found.name, (claimed.key,), {"match": verified.match}))
        return verified
