"""By what a one-to-one comparison is decided, and who is never compared."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention
from app.gallery.errors import Busy, ExtractorMismatch
from app.gallery.journal import Event, NoJournal
from app.gallery.photos import AlignedFace, Photo, PhotoReader
from app.gallery.policy import WantedRates, threshold_for
from app.gallery.service import GalleryService
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import GalleryRow
from app.gallery.verifying import Verification
from app.gallery.views.index_source import IndexSource
from model.image import ImageLimits
from model.pipeline import Networks
from model.quality import QualityLimits

POLICY = WantedRates(fpir=0.001)  # follows the number of subjects, also of one and two


class Notes(NoJournal):
    """A journal that remembers what was noted."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def note(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def service(engine: Engine, forgetting: Forgetting, networks: Networks, notes: Notes) -> GalleryService:
    reader = PhotoReader(
        networks, image_limits=ImageLimits(), quality_limits=QualityLimits(), workers=1, queue_timeout=0
    )
    return GalleryService(
        GalleryStore(engine, journal=notes),
        GalleryHistory(engine),
        reader,
        IndexSource(),
        forgetting=forgetting,
        retention=Retention(engine, forgetting),
        policy=POLICY,
    )


@pytest.fixture
def photo(astronaut_jpeg: bytes) -> Photo:
    return Photo("portrait", astronaut_jpeg)


def move(engine: Engine) -> None:
    """Have all galleries belong to another extractor."""
    with Session(engine) as session, session.begin():
        session.execute(update(GalleryRow).values(extractor="other@123"))


def test_the_threshold_itself_is_a_match() -> None:
    assert Verification(0.5, 0.5).match
    assert not Verification(np.nextafter(0.5, 1), 0.5).match


def test_a_comparison_is_one_trial_however_many_are_enrolled_and_is_noted(
    service: GalleryService, photo: Photo, notes: Notes
) -> None:
    for subject in ("anna", "bob"):
        service.enroll("people", subject, [photo])
    table = service.reader.networks.extractor.card.thresholds
    one = threshold_for(POLICY, table, 1)
    assert one > threshold_for(POLICY, table, 2)

    assert service.verify(photo, photo).threshold == one
    assert service.verify_subject(photo, "people", "anna").threshold == one
    assert notes.events == [
        Event("verify", details={"match": True}),
        Event("verify", "people", ("anna",), {"match": True}),
    ]


def test_a_comparison_needs_a_worker(service: GalleryService, photo: Photo) -> None:
    service.enroll("people", "anna", [photo])
    comparisons: list[Callable[[], Verification]] = [
        lambda: service.verify(photo, photo),
        lambda: service.verify_subject(photo, "people", "anna"),
    ]
    for compare in comparisons:
        with service.reader.worker(), pytest.raises(Busy):
            compare()
        assert compare().match


def test_a_gallery_of_another_extractor_is_refused_before_any_photo_is_worked_on(
    engine: Engine, service: GalleryService, photo: Photo
) -> None:
    service.enroll("people", "anna", [photo])
    move(engine)
    with service.reader.worker(), pytest.raises(ExtractorMismatch):
        service.verify_subject(photo, "people", "anna")


def test_a_gallery_that_moves_while_the_photo_is_worked_on_is_refused(
    engine: Engine, service: GalleryService, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.enroll("people", "anna", [photo])
    embed = service.reader.embed

    def meanwhile(faces: Sequence[AlignedFace]) -> NDArray[np.float32]:
        move(engine)
        return embed(faces)

    monkeypatch.setattr(service.reader, "embed", meanwhile)
    with pytest.raises(ExtractorMismatch):
        service.verify_subject(photo, "people", "anna")
