"""GalleryService: what routes and commands call, and where its parts are put together."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from app.gallery.consent import PrivacyRules, Terms, check_terms
from app.gallery.deadline import WaitLimit, waiting_at_most, within
from app.gallery.enrolling import Enroller
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention
from app.gallery.identifying import Identifier
from app.gallery.matching import DEFAULT_RULE, MatchingRule
from app.gallery.names import normalise_gallery_name, normalise_name, normalise_new_key
from app.gallery.photos import AlignedFace, Photo, PhotoReader
from app.gallery.policy import DEFAULT_POLICY, ThresholdPolicy
from app.gallery.records import DescribedGallery, Gallery, GallerySize, Page, Subject, Template
from app.gallery.sql.failures import in_full
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.rows import allowed
from app.gallery.store import GalleryStore
from app.gallery.thresholds import Thresholds
from app.gallery.try_each import try_each
from app.gallery.verifying import Verifier
from app.gallery.views.gallery_reading import never
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replicas import Replicas
from model.errors import FacegalleryError

DEFAULT_GALLERY = "default"
_log = structlog.get_logger()
_LAST_ANSWERS = 2.0  # seconds that the end of a service waits for the database, in all


class GalleryService:
    """The one place where photos, galleries and decisions meet; every method may be called from any thread.

    `enroll`, `admit`, `identify`, `identify_embedding`, `verify` and `verify_subject` are those of its parts (see
    `enrolling`, `identifying`, `verifying`); galleries and the people in them are administered here.
    """

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
        self.reader = reader
        self.indexes = indexes
        self.forgetting = forgetting
        self.retention = retention
        self.replicas = Replicas(store, history, indexes, extractor=reader.extractor)
        forgetting.connect(
            follow=self.replicas.follow, erase_traces=self.replicas.erase_traces, drop_gone=self.replicas.drop_gone
        )
        self._thresholds = thresholds = Thresholds(policy or DEFAULT_POLICY, reader.networks.extractor.card.thresholds)
        enroller = Enroller(store, reader, retention=retention, keep_crops=keep_crops)
        self.enroll, self.admit = enroller.enroll, enroller.admit
        identifier = Identifier(store, reader, self.replicas, retention=retention, thresholds=thresholds, rule=rule)
        self.identify, self.identify_embedding = identifier.identify, identifier.identify_embedding
        verifier = Verifier(store, reader, retention=retention, thresholds=thresholds, rule=rule)
        self.verify, self.verify_subject = verifier.verify, verifier.verify_subject

    @property
    def extractor(self) -> str:
        """Identity of the extractor: its name and the digest of its file."""
        return self.reader.extractor

    def start(self, given_up: Callable[[], bool] = never) -> None:
        """Load the index of every gallery that belongs to this extractor, and tend them all.

        Args:
            given_up: whether the process is ending already; what takes long is left then.
        """
        with waiting_at_most(WaitLimit()):
            self.indexes.drop_unused()
            try:
                self.replicas.drop_gone()
            except FacegalleryError as error:  # no reason not to serve; the next sweep tries again
                _log.error("snapshots.not_dropped", reason=in_full(error))
            self.replicas.start([self.retention.look, self.store.journal.tidy], given_up)

    def lag(self) -> int:
        """How many revisions this process is behind, in the gallery where it is most; its next call catches up."""
        return self.replicas.lag()

    def awaited(self) -> int:
        """In how many galleries this process refuses calls until an index is loaded."""
        return self.replicas.awaited()

    def close(self) -> None:
        """End the upkeep, with a last snapshot of what has changed, and give all connections back.

        A database that does not answer is hardly waited for: what could not be written down is lost or done by others.
        """
        ends = (
            self.replicas.stop,
            self.retention.write_seen,
            self.indexes.close,
            self.store.close,
            self.forgetting.vault.close,
        )
        with waiting_at_most(WaitLimit(total=_LAST_ANSWERS)):
            try_each(ends)

    # -- faces alone

    def detect(self, photo: Photo, *, max_faces: int) -> list[AlignedFace]:
        """The faces of a photo, largest first."""
        with self.reader.worker():
            return self.reader.faces(photo, at_most=max_faces)

    def embed(self, photo: Photo, *, max_faces: int) -> tuple[list[AlignedFace], NDArray[np.float32]]:
        """The faces of a photo, largest first, and their embeddings (N, D)."""
        with self.reader.worker():
            faces = self.reader.faces(photo, at_most=max_faces)
            return faces, self.reader.embed(faces)

    # -- galleries

    def create_gallery(self, name: str, policy: ThresholdPolicy | None, privacy: PrivacyRules | None = None) -> Gallery:
        """Make an empty gallery for this extractor."""
        return self.store.create_gallery(
            normalise_gallery_name(name),
            extractor=self.extractor,
            dimension=self.reader.dimension,
            policy=policy,
            privacy=privacy,
        )

    def describe(self, gallery: Gallery) -> DescribedGallery:
        """A gallery with its size, and the threshold that follows.

        Raises:
            GalleryNotFound: it was erased since it was read.
        """
        return self._described(gallery, self.store.size(gallery))

    def describe_all(self, galleries: Sequence[Gallery]) -> list[DescribedGallery]:
        """The same of several, without those that were erased since they were read."""
        sizes = self.store.sizes(galleries)
        return [self._described(gallery, sizes[gallery.id]) for gallery in galleries if gallery.id in sizes]

    def _described(self, gallery: Gallery, size: GallerySize) -> DescribedGallery:
        served = gallery.extractor == self.extractor
        threshold = self._thresholds.distance(gallery, None, size.enrolled) if served else None
        return DescribedGallery(gallery, size, self._thresholds.policy_of(gallery), threshold)

    def delete_gallery(self, name: str) -> None:
        """Erase a gallery with all that is in it."""
        with within(math.inf):  # the larger it is, the longer it takes; given up halfway it would never be done
            gallery = self.store.delete_gallery(normalise_gallery_name(name))
            self.forgetting.erase_rest(gallery)
        self.forgetting.finish(gallery)

    # -- people

    def update_subject(
        self,
        gallery: str,
        key: str,
        *,
        new_key: str | None,
        metadata: dict[str, Any] | None,
        terms: Terms | None = None,
        earlier_end: Callable[[], None] = allowed,
    ) -> Subject:
        """Give a subject another key, other metadata, another consent or expiry.

        `earlier_end` is called before the subject gets an earlier end than it has, and may raise.
        """
        return self.store.update_subject(
            normalise_gallery_name(gallery),
            normalise_name(key, part="subject"),
            new_key=None if new_key is None else normalise_new_key(new_key),
            metadata=metadata,
            terms=check_terms(terms or {}, self.retention.clock()),
            earlier_end=earlier_end,
        )

    def merge_subjects(self, gallery: str, key: str, into: str) -> Subject:
        """Move the templates of one subject to another, and erase the first with its key; answers the other.

        Raises:
            GalleryNotFound, SubjectNotFound, InvalidInput, TemplateTampered, KeyUnavailable: as the store's; subjects
                whose time is over are not found.
        """
        name = normalise_gallery_name(gallery)
        key, into = normalise_name(key, part="subject"), normalise_name(into, part="merge_into")
        found = self.store.gallery(name)  # it may be gone when the merge is done, which is one all the same
        merged = self.store.merge_subjects(name, key, into, due=self.retention.is_due_still)
        self.forgetting.finish(found)
        return merged

    def delete_subject(self, gallery: str, key: str) -> int:
        """Erase a subject with its key; answers how many templates went with it."""
        return self.forgetting.erase(normalise_gallery_name(gallery), normalise_name(key, part="subject"))

    def forget(self, gallery: str, key: str) -> dict[str, Any]:
        """As `delete_subject`; answers a signed receipt (see `receipts`)."""
        return self.forgetting.forget(normalise_gallery_name(gallery), normalise_name(key, part="subject"))

    def delete_template(self, gallery: str, template_id: int) -> None:
        """Erase one template; its subject stays."""
        self.forgetting.finish(self.store.delete_template(normalise_gallery_name(gallery), template_id))

    def subject(self, gallery: str, key: str) -> Subject:
        """One subject."""
        return self.store.subject(normalise_gallery_name(gallery), normalise_name(key, part="subject"))

    def templates(self, gallery: str, *, subject: str | None, after: int, limit: int) -> Page[Template]:
        """A page of templates, of a gallery or of one subject."""
        subject = None if subject is None else normalise_name(subject, part="subject")
        return self.store.templates(normalise_gallery_name(gallery), subject=subject, after=after, limit=limit)
