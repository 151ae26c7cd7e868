"""What is refused before any photo is worked on, and what a request that is out of time leaves behind: nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.gallery.consent import Consent, PrivacyRules, Terms
from app.gallery.deadline import within
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention
from app.gallery.errors import Busy, ConsentRequired, ExtractorMismatch, GalleryNotFound, InvalidInput, TimedOut
from app.gallery.photos import AlignedFace, Photo, PhotoReader
from app.gallery.service import GalleryService
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.views.index_source import IndexSource
from model.errors import FacegalleryError
from model.image import ImageLimits
from model.pipeline import Networks
from model.quality import QualityLimits

NOW = datetime.now(UTC)
CONSENT = Consent(purpose="access", granted_at=NOW)


def no_other(_session: Session) -> None:
    """For a database whose clock is that of the machine, which the test turns."""


@pytest.fixture
def service(engine: Engine, forgetting: Forgetting, networks: Networks) -> GalleryService:
    reader = PhotoReader(
        networks, image_limits=ImageLimits(), quality_limits=QualityLimits(), workers=1, queue_timeout=0
    )
    retention = Retention(engine, forgetting, clock=lambda: NOW, database_clock=no_other)
    return GalleryService(
        GalleryStore(engine), GalleryHistory(engine), reader, IndexSource(), forgetting=forgetting, retention=retention
    )


@pytest.fixture
def photo(astronaut_jpeg: bytes) -> Photo:
    return Photo("portrait", astronaut_jpeg)


def strict(service: GalleryService) -> None:
    service.create_gallery("strict", None, PrivacyRules(require_consent=True))


def of_another_extractor(service: GalleryService) -> None:
    service.store.create_gallery("strict", extractor="other@123", dimension=64, policy=None)


def nothing(_service: GalleryService) -> None:
    """No gallery is made."""


@pytest.mark.parametrize(
    ("make", "terms", "error"),
    [
        (strict, {}, ConsentRequired),
        (of_another_extractor, {}, ExtractorMismatch),
        (nothing, {"expires_at": NOW}, InvalidInput),
    ],
)
def test_who_cannot_be_stored_is_refused_before_any_photo_is_worked_on(
    service: GalleryService,
    photo: Photo,
    make: Callable[[GalleryService], None],
    terms: Terms,
    error: type[FacegalleryError],
) -> None:
    make(service)
    with service.reader.worker():
        with pytest.raises(error):
            service.enroll("strict", "anna", [photo], terms=terms)
        with pytest.raises(Busy):
            service.enroll("people", "anna", [photo])


def test_the_consent_of_a_subject_whose_time_is_over_is_none(service: GalleryService, photo: Photo) -> None:
    strict(service)
    end = NOW + timedelta(days=1)
    service.enroll("strict", "anna", [photo], terms={"consent": CONSENT, "expires_at": end})
    with service.reader.worker():
        with pytest.raises(Busy):
            service.enroll("strict", "anna", [photo])
        service.retention.clock = lambda: end
        with pytest.raises(ConsentRequired):
            service.enroll("strict", "anna", [photo])
    assert service.store.size(service.store.gallery("strict")).subjects == 0


@pytest.mark.parametrize("step", ["worker", "embed"])
def test_a_request_that_is_out_of_time_blames_no_photo_and_stores_nothing(
    service: GalleryService, photo: Photo, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    worker, embed = service.reader.worker, service.reader.embed
    with ExitStack() as end:

        @contextmanager
        def worker_that_comes_late() -> Iterator[None]:
            with worker():
                end.enter_context(within(0))
                yield

        def embed_for_long(faces: Sequence[AlignedFace]) -> NDArray[np.float32]:
            end.enter_context(within(0))
            return embed(faces)

        late: dict[str, Any] = {"worker": worker_that_comes_late, "embed": embed_for_long}
        monkeypatch.setattr(service.reader, step, late[step])
        with pytest.raises(TimedOut):
            service.enroll("people", "anna", [photo])
    with pytest.raises(GalleryNotFound):
        service.store.gallery("people")


def test_photos_that_are_refused_and_templates_that_are_stored_are_counted(
    service: GalleryService, photo: Photo
) -> None:
    def counts() -> tuple[float, float]:
        refused = REGISTRY.get_sample_value("facegallery_photos_refused_total", {"reason": "unsupported-image"})
        return refused or 0, REGISTRY.get_sample_value("facegallery_templates_added_total") or 0

    refused, added = counts()
    service.enroll("people", "anna", [Photo("text", b"text"), photo])
    assert counts() == (refused + 1, added + 1)
    service.enroll("people", "anna", [photo])
    assert counts() == (refused + 1, added + 1)
