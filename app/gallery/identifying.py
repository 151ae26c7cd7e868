"""Identifying: who the people in a photo are, of those enrolled in a gallery, or that they are unknown."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.gallery.deadline import check_deadline
from app.gallery.erasure.retention import Retention
from app.gallery.errors import InvalidInput
from app.gallery.extractor_check import check_extractor
from app.gallery.journal import Event
from app.gallery.matching import Candidate, MatchingRule, decide
from app.gallery.names import normalise_gallery_name
from app.gallery.photos import AlignedFace, Photo, PhotoReader
from app.gallery.records import Gallery, Subject
from app.gallery.store import GalleryStore
from app.gallery.thresholds import Thresholds
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.replicas import Replicas
from app.telemetry import DECISIONS_TOTAL, stage

_LOOKS = 3  # at a gallery in which people are erased and merged meanwhile
_DEEPER = 4  # times as many candidates, where some of those that were found are not named any more


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


class Identifier:
    """Searches galleries; safe to call from many threads.

    Args:
        store: names the subjects.
        reader: reads faces out of photos.
        replicas: are searched.
        retention: tells whose time is over, and is told who was seen.
        thresholds: decide.
        rule: by which the templates of a subject make one distance.
    """

    def __init__(
        self,
        store: GalleryStore,
        reader: PhotoReader,
        replicas: Replicas,
        *,
        retention: Retention,
        thresholds: Thresholds,
        rule: MatchingRule,
    ) -> None:
        self._store = store
        self._reader = reader
        self._replicas = replicas
        self._retention = retention
        self._thresholds = thresholds
        self._rule = rule

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
        check_extractor(self._store.gallery(normalise_gallery_name(gallery)), self._reader.extractor)
        with self._reader.worker():
            faces = self._reader.faces(photo, at_most=max_faces)
            embeddings = self._reader.embed(faces)
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
        if vector.shape != (self._reader.dimension,):
            raise InvalidInput(
                f"an embedding has {self._reader.dimension} numbers, this one has {vector.size}", part="embedding"
            )
        largest = float(np.abs(vector).max())
        if not 0 < largest < np.inf:
            raise InvalidInput("an embedding has finite numbers that are not all zero", part="embedding")
        vector /= largest  # whose squares are neither beyond all numbers nor all zero
        probes = (vector / np.linalg.norm(vector)).astype(np.float32)[None]
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
        found = self._store.gallery(normalise_gallery_name(gallery))
        for _ in range(_LOOKS):
            replica = self._replicas.of(found)
            behind = replica.point != found.point
            with stage("replay"):
                replica.catch_up(*found.point)
            limit = self._thresholds.distance(found, threshold, replica.subjects)
            thorough = all_candidates or limit > self._thresholds.usual(replica.subjects)
            reach = None if all_candidates else limit
            named, complete = self._named(found, replica, embeddings, top_k, reach, thorough=thorough)
            if behind:  # rows may have been read after the gallery moved to another extractor
                check_extractor(self._store.gallery(found.name), self._reader.extractor)
            if complete:
                break
            # Whoever is gone was erased or merged into another meanwhile, who is to be found.
            found = self._store.gallery(found.name)
        matches = []
        for candidates in named:
            best = decide(candidates, limit)
            shown = candidates if all_candidates else [one for one in candidates if one.distance <= limit]
            matches.append(Match(best, tuple(shown)))
            DECISIONS_TOTAL.labels("unknown" if best is None else "identified").inc()
        identified = [match.identity.subject for match in matches if match.identity]
        counts = {"probes": len(matches), "identified": len(identified)}
        self._store.journal.note(
            Event("identify", found.name, tuple(sorted({subject.key for subject in identified})), counts)
        )
        self._retention.saw(found, identified)
        return Identification(found, replica.subjects, limit, faces, tuple(matches))

    def _named(
        self,
        gallery: Gallery,
        replica: GalleryReplica,
        embeddings: NDArray[np.float32],
        top_k: int,
        limit: float | None,
        *,
        thorough: bool,
    ) -> tuple[list[list[NamedCandidate]], bool]:
        """The `top_k` nearest who are named, and whether all that were found are there still.

        Those whose time is over take no place: for them the search goes deeper, as long as there are candidates at all
        within the limit (None: at any distance).
        """
        depth = top_k
        while True:
            with stage("search"):
                ranked = replica.search(embeddings, top_k=depth, rule=self._rule, thorough=thorough, limit=limit)
            with stage("name"):
                named, complete = self._name(gallery, ranked)
            if not complete or not any(
                len(names) < top_k and len(all_of) == depth and (limit is None or all_of[-1].distance <= limit)
                for names, all_of in zip(named, ranked, strict=True)
            ):
                return [names[:top_k] for names in named], complete
            check_deadline()
            depth *= _DEEPER

    def _name(self, gallery: Gallery, ranked: Sequence[Sequence[Candidate]]) -> tuple[list[list[NamedCandidate]], bool]:
        """Give candidates their subjects, and say whether all of them are there.

        One that was erased a moment ago or whose time is over is left out.
        """
        ids = {candidate.subject_id for candidates in ranked for candidate in candidates}
        found = self._store.subjects_by_id(sorted(ids)) if ids else {}
        subjects = {key: subject for key, subject in found.items() if not self._retention.is_due(gallery, subject)}
        named = [
            [
                NamedCandidate(subjects[candidate.subject_id], candidate.template_id, candidate.distance)
                for candidate in candidates
                if candidate.subject_id in subjects
            ]
            for candidates in ranked
        ]
        return named, len(found) == len(ids)
