"""What may be looked for, and who is merged or erased meanwhile."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from app.gallery.consent import Terms
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention
from app.gallery.errors import ExtractorMismatch, InvalidInput
from app.gallery.matching import Candidate
from app.gallery.photos import Photo, PhotoReader
from app.gallery.records import NewTemplate, Subject
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.service import GalleryService
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import GalleryRow
from app.gallery.views.index_source import IndexSource
from app.gallery.views.owners import TemplateOwners
from app.gallery.views.replica import GalleryReplica
from model.image import ImageLimits
from model.pipeline import Networks
from model.quality import Quality, QualityLimits


class WrittenBeside(GalleryStore):
    """A store in which something is written between a search and the naming of what it found."""

    write: Callable[[], object] | None = None

    def subjects_by_id(self, ids: Sequence[int]) -> dict[int, Subject]:
        if (write := self.write) is not None:
            self.write = None
            write()
        return super().subjects_by_id(ids)


class ReadAfter(GalleryHistory):
    """A history in which something is written between a search and the exact embeddings of whom it found."""

    write: Callable[[], object] | None = None

    def embeddings(self, *asked: Any) -> NDArray[np.float32]:
        if (write := self.write) is not None:
            self.write = None
            write()
        return super().embeddings(*asked)


ServiceOf = Callable[[IndexSource], GalleryService]


@pytest.fixture
def service_of(engine: Engine, forgetting: Forgetting, networks: Networks) -> ServiceOf:
    """Makes a service with indexes of some kind."""

    def made(indexes: IndexSource) -> GalleryService:
        reader = PhotoReader(
            networks, image_limits=ImageLimits(), quality_limits=QualityLimits(), workers=1, queue_timeout=60
        )
        retention = Retention(engine, forgetting)
        return GalleryService(
            WrittenBeside(engine), ReadAfter(engine), reader, indexes, forgetting=forgetting, retention=retention
        )

    return made


@pytest.fixture
def service(service_of: ServiceOf) -> GalleryService:
    return service_of(IndexSource())


@pytest.fixture
def rounding(service_of: ServiceOf) -> GalleryService:
    """A service with as many strangers in its gallery as it takes to keep embeddings in half precision."""
    service = service_of(IndexSource(kind="compressed", half=True))
    random = np.random.default_rng(0)
    for subject in range(40):
        vectors = random.normal(size=(26, service.reader.dimension)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        enroll(service, f"stranger {subject}", *vectors)
    return service


def enroll(service: GalleryService, key: str, *embeddings: NDArray[np.float32], terms: Terms | None = None) -> None:
    quality = Quality(detection_score=0.9, face_size=80.5, sharpness=130.25, yaw=-3.5, pitch=2.0, roll=0.25)
    templates = [NewTemplate(embedding, quality, f"{key} {number}") for number, embedding in enumerate(embeddings)]
    extractor, dimension = service.extractor, service.reader.dimension
    service.store.enroll("people", key, templates, metadata=None, extractor=extractor, dimension=dimension, terms=terms)


def named(service: GalleryService, probe: NDArray[np.float32]) -> str | None:
    (match,) = service.identify_embedding("people", probe.tolist(), threshold=1.0).matches
    return None if match.identity is None else match.identity.subject.key


def move(engine: Engine) -> None:
    """Have all galleries belong to another extractor."""
    with Session(engine) as session, session.begin():
        session.execute(update(GalleryRow).values(extractor="other@123"))


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1.0, 1e200])
def test_an_embedding_of_any_length_has_its_length_normalised(service: GalleryService, scale: float) -> None:
    near = np.zeros(service.reader.dimension, np.float32)
    near[:2] = 0.6, 0.8
    enroll(service, "anna", near)
    (match,) = service.identify_embedding("people", (near.astype(np.float64) * scale).tolist()).matches
    assert match.identity is not None
    assert match.identity.distance == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("number", [0.0, float("inf"), float("nan")])
def test_an_embedding_without_a_direction_is_refused(service: GalleryService, number: float) -> None:
    enroll(service, "anna", np.eye(1, service.reader.dimension, dtype=np.float32)[0])
    with pytest.raises(InvalidInput, match="finite numbers that are not all zero"):
        service.identify_embedding("people", [number] * service.reader.dimension)


def test_who_is_merged_or_erased_between_the_search_and_the_naming(service: GalleryService) -> None:
    one, other, third = np.eye(3, service.reader.dimension, dtype=np.float32)
    near = (one + 0.8 * third) / np.linalg.norm(one + 0.8 * third)
    for key, embedding in (("anna", one), ("hanna", other), ("zoe", near.astype(np.float32))):
        enroll(service, key, embedding)
    assert isinstance(service.store, WrittenBeside)
    service.store.write = lambda: service.store.merge_subjects("people", "hanna", "anna")
    assert named(service, other) == "anna"
    service.store.write = lambda: service.store.delete_subject("people", "anna")
    assert named(service, one) == "zoe"
    assert named(service, other) is None


def test_those_whose_time_is_over_take_nobodys_place(service: GalleryService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are many of them, and more than one question to the database can name."""
    monkeypatch.setattr("app.gallery.sql.rows._ASKED", 7)
    one, other, far = np.eye(3, service.reader.dimension, dtype=np.float32)
    end = datetime.now(UTC) + timedelta(hours=1)
    for number in range(40):
        old = (one + 0.001 * number * other) / np.linalg.norm(one + 0.001 * number * other)
        enroll(service, f"of {number} years ago", old.astype(np.float32), terms={"expires_at": end})
    near = (one + 0.3 * other) / np.linalg.norm(one + 0.3 * other)
    enroll(service, "anna", near.astype(np.float32))
    enroll(service, "zoe", far)
    service.retention.clock = lambda: end
    for top_k in (1, 5):
        for all_candidates, keys in ((False, ["anna"]), (True, ["anna", "zoe"][:top_k])):
            (match,) = service.identify_embedding(
                "people", one.tolist(), threshold=1.0, top_k=top_k, all_candidates=all_candidates
            ).matches
            assert match.identity is not None
            assert [candidate.subject.key for candidate in match.candidates] == keys


def test_the_search_goes_no_deeper_than_the_threshold(service: GalleryService, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.eye(40, service.reader.dimension, dtype=np.float32)
    end = datetime.now(UTC) + timedelta(hours=1)
    for number, vector in enumerate(vectors):
        enroll(service, f"{number}", vector, terms={"expires_at": end})
    service.retention.clock = lambda: end
    depths, real = list[int](), GalleryReplica.search

    def search(self: GalleryReplica, *arguments: Any, top_k: int, **options: Any) -> list[list[Candidate]]:
        depths.append(top_k)
        return real(self, *arguments, top_k=top_k, **options)

    monkeypatch.setattr(GalleryReplica, "search", search)
    assert named(service, vectors[0]) is None
    assert depths == [5]
    service.retention.clock = lambda: datetime.now(UTC)
    assert named(service, vectors[0]) == "0"
    service.identify_embedding("people", vectors[0].tolist(), all_candidates=True)
    assert depths == [5, 5, 5]  # nor deeper than so many who are named


def test_the_search_is_thorough_where_candidates_beyond_the_default_policys_threshold_count(
    service: GalleryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = np.eye(1, service.reader.dimension, dtype=np.float32)[0]
    enroll(service, "anna", probe)
    how, real = list[bool](), GalleryReplica.search

    def search(self: GalleryReplica, *asked: Any, thorough: bool, **options: Any) -> list[list[Candidate]]:
        how.append(thorough)
        return real(self, *asked, thorough=thorough, **options)

    monkeypatch.setattr(GalleryReplica, "search", search)
    usual = service.identify_embedding("people", probe.tolist()).threshold
    service.identify_embedding("people", probe.tolist(), threshold=usual)
    service.identify_embedding("people", probe.tolist(), threshold=np.nextafter(usual, 2))
    service.identify_embedding("people", probe.tolist(), threshold=usual / 2, all_candidates=True)
    assert how == [False, False, True, True]


def test_a_candidate_at_the_threshold_itself_is_named_and_every_decision_is_counted(service: GalleryService) -> None:
    def decided() -> list[float]:
        values = (
            REGISTRY.get_sample_value("facegallery_decisions_total", {"decision": one})
            for one in ("identified", "unknown")
        )
        return [value or 0 for value in values]

    one, other = np.eye(2, service.reader.dimension, dtype=np.float32)
    enroll(service, "anna", one)
    probe = (one + 0.5 * other).tolist()
    (nearest,) = service.identify_embedding("people", probe, all_candidates=True).matches[0].candidates
    identified, unknown = decided()

    (match,) = service.identify_embedding("people", probe, threshold=nearest.distance).matches
    assert (match.identity, match.candidates) == (nearest, (nearest,))
    assert decided() == [identified + 1, unknown]
    closer = float(np.nextafter(nearest.distance, 0))
    (match,) = service.identify_embedding("people", probe, threshold=closer).matches
    assert (match.identity, match.candidates) == (None, ())
    assert decided() == [identified + 1, unknown + 1]


def test_a_gallery_of_another_extractor_is_refused_before_the_photo_is_worked_on(
    engine: Engine, service: GalleryService
) -> None:
    enroll(service, "anna", np.eye(1, service.reader.dimension, dtype=np.float32)[0])
    move(engine)
    with pytest.raises(ExtractorMismatch):
        service.identify("people", Photo("text", b"text"))


def test_a_gallery_that_moves_while_it_is_first_searched_is_refused(engine: Engine, service: GalleryService) -> None:
    (one,) = np.eye(1, service.reader.dimension, dtype=np.float32)
    enroll(service, "anna", one)
    assert isinstance(service.store, WrittenBeside)
    service.store.write = lambda: move(engine)
    with pytest.raises(ExtractorMismatch):
        named(service, one)


def test_who_is_merged_while_half_precision_is_searched_has_the_others_name(
    rounding: GalleryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = np.eye(2, rounding.reader.dimension, dtype=np.float32)
    enroll(rounding, "anna", one)
    enroll(rounding, "hanna", other)
    assert named(rounding, other) == "hanna"
    real, merges = TemplateOwners.templates_of, iter([("people", "hanna", "anna")])

    def templates_of(self: TemplateOwners, subject_id: int) -> tuple[int, ...]:
        for merge in merges:  # another call follows it between the ranking and this
            rounding.store.merge_subjects(*merge)
            rounding.replicas.up_to_date("people")
        return real(self, subject_id)

    monkeypatch.setattr(TemplateOwners, "templates_of", templates_of)
    assert named(rounding, other) == "anna"
    assert next(merges, None) is None


def switch(service: GalleryService, dimension: int) -> None:
    """Have the gallery move to an extractor that sees everybody elsewhere."""
    moving, gallery = ReembeddingStore(service.store.engine), service.store.gallery("people")
    ids = [one.id for one in service.store.templates("people", subject=None, after=0, limit=2000).items]
    elsewhere = np.random.default_rng(1).normal(size=(len(ids), dimension)).astype(np.float32)
    moving.add(gallery, "other@123", ids, elsewhere / np.linalg.norm(elsewhere, axis=1, keepdims=True))
    moving.switch(gallery, "other@123", dimension=dimension, unusable=(), with_crops=False)


@pytest.mark.parametrize("dimension", [128, 64])
def test_exact_embeddings_of_another_extractor_than_that_of_the_search_are_not_compared(
    rounding: GalleryService, dimension: int, capsys: pytest.CaptureFixture[str]
) -> None:
    anna = np.eye(1, rounding.reader.dimension, dtype=np.float32)[0]
    enroll(rounding, "anna", anna)
    assert named(rounding, anna) == "anna"
    assert isinstance(rounding.history, ReadAfter)
    rounding.history.write = lambda: switch(rounding, dimension)
    with pytest.raises(ExtractorMismatch):
        named(rounding, anna)
    assert "template.tampered" not in capsys.readouterr().out
