"""A gallery moves to another extractor while it serves, and back."""

import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine, func, make_url, select, text, update

from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention
from app.gallery.errors import ExtractorMismatch, MoveRefused
from app.gallery.photos import Photo, PhotoReader
from app.gallery.records import NewTemplate
from app.gallery.reembedding.move import Move, move_back, move_gallery
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.sealing.encryption import SealedRows
from app.gallery.sealing.vault import Vault
from app.gallery.service import GalleryService
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.tables import CropRow
from app.gallery.views.index_source import IndexSource
from model.image import ImageLimits
from model.pipeline import Networks, load_networks
from model.quality import QualityLimits
from tests.http.conftest import jpeg


@pytest.fixture(scope="session")
def other_networks(two_extractors: Path) -> Networks:
    return load_networks(weights=two_extractors, extractor="other")


@pytest.fixture(scope="session")
def views(astronaut: NDArray[np.uint8]) -> list[Photo]:
    """Eight photos of one face, none like the other."""
    lights = [np.clip(astronaut.astype(np.int16) - 8 * step, 0, 255).astype(np.uint8) for step in range(4)]
    return [Photo(f"{step}{way}", jpeg(lights[step][:, ::way])) for step in range(4) for way in (1, -1)]


Services = Callable[..., GalleryService]


@pytest.fixture
def service_of(engine: Engine, vault: Vault, forgetting: Forgetting) -> Services:
    """Makes a service with its own networks on the test's database."""

    def make(networks: Networks, *, keep_crops: bool = True) -> GalleryService:
        reader = PhotoReader(
            networks, image_limits=ImageLimits(), quality_limits=QualityLimits(), workers=4, queue_timeout=60
        )
        seals = SealedRows(vault)
        return GalleryService(
            GalleryStore(engine, seals=seals),
            GalleryHistory(engine, seals),
            reader,
            IndexSource(),
            forgetting=forgetting,
            retention=Retention(engine, forgetting),
            keep_crops=keep_crops,
        )

    return make


def answer(service: GalleryService, photo: Photo) -> list[tuple[str, float]]:
    (match,) = service.identify("people", photo, all_candidates=True).matches
    return [(one.subject.key, round(one.distance, 5)) for one in match.candidates]


def embeddings_of(service: GalleryService, photos: list[Photo]) -> NDArray[np.float32]:
    return service.reader.embed([service.reader.one_face(photo, "single", part=photo.name) for photo in photos])


def rows(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def test_there_and_back(
    service_of: Services, networks: Networks, other_networks: Networks, views: list[Photo], engine: Engine
) -> None:
    old, new = service_of(networks), service_of(other_networks)
    old.enroll("people", "anna", views[:3])
    old.enroll("people", "bob", views[3:5])
    before = answer(old, views[7])
    with pytest.raises(ExtractorMismatch):
        answer(new, views[7])
    told: list[int] = []
    move = move_gallery(old.store, "people", other_networks.extractor, progress=told.append)
    assert (move.state, move.embedded, sum(told), move.incomplete) == ("moved", 5, 5, ())
    assert move.gallery.extractor == new.extractor
    assert move.gallery.revision == 4

    # what a service of the new extractor answers is what it would answer had everybody been enrolled with it
    anew = service_of(other_networks)
    anew.enroll("anew", "anna", views[:3])
    anew.enroll("anew", "bob", views[3:5])
    (match,) = anew.identify("anew", views[7], all_candidates=True).matches
    assert [key for key, _ in answer(new, views[7])] == [one.subject.key for one in match.candidates]
    np.testing.assert_allclose(
        [distance for _, distance in answer(new, views[7])], [one.distance for one in match.candidates], atol=1e-4
    )
    with pytest.raises(ExtractorMismatch):
        answer(old, views[7])
    with pytest.raises(ExtractorMismatch):
        old.enroll("people", "carl", views[5:6])

    assert rows(engine, "spare_embedding") == 5
    back = move_back(old.store, "people", None)
    assert (back.state, back.gallery.extractor) == ("moved", old.extractor)
    assert answer(old, views[7]) == before
    with pytest.raises(ExtractorMismatch):
        answer(new, views[7])
    again = move_gallery(old.store, "people", other_networks.extractor)
    assert (again.state, again.embedded) == ("moved", 0)  # they are still there
    assert ReembeddingStore(engine).discard(old.store.gallery("people")) == 5
    with pytest.raises(MoveRefused, match="no embeddings of an earlier extractor"):
        move_back(old.store, "people", None)
    assert move_gallery(old.store, "people", other_networks.extractor).state == "there"


def test_what_comes_and_goes_meanwhile_is_followed(
    service_of: Services,
    networks: Networks,
    other_networks: Networks,
    views: list[Photo],
    monkeypatch: pytest.MonkeyPatch,
    engine: Engine,
) -> None:
    monkeypatch.setattr("app.gallery.reembedding.move._BATCH", 2)
    old, new = service_of(networks), service_of(other_networks)
    old.enroll("people", "anna", views[:2])
    old.enroll("people", "bob", views[2:5])

    def first() -> None:
        old.delete_subject("people", "anna")
        old.enroll("people", "carl", views[5:6])

    def second() -> None:
        old.enroll("people", "dora", views[6:7])

    def third() -> None:
        old.store.merge_subjects("people", "carl", "dora")

    steps = iter([first, second, third])

    def meanwhile(_count: int) -> None:
        if (step := next(steps, None)) is not None:
            step()

    move = move_gallery(old.store, "people", other_networks.extractor, progress=meanwhile)
    assert move.state == "moved"
    assert [(one.key, one.templates) for one in old.store.subjects("people", after=0, limit=9).items] == [
        ("bob", 3),
        ("dora", 2),
    ]
    for key, photos in (("bob", views[2:5]), ("dora", views[5:7])):
        stored = new.store.subject_embeddings(new.store.subject("people", key).id).embeddings
        np.testing.assert_allclose(stored, embeddings_of(new, photos), atol=1e-4)
    assert rows(engine, "spare_embedding") == rows(engine, "template") == 5


@pytest.mark.parametrize(
    ("small", "each", "most"), [(("_BATCH",), 1, 20), (("_BATCH", "_LAST", "_PATIENCE"), 3, 30)], ids=["one", "many"]
)
def test_it_ends_though_some_are_enrolled_between_any_two_steps(
    service_of: Services,
    networks: Networks,
    other_networks: Networks,
    views: list[Photo],
    monkeypatch: pytest.MonkeyPatch,
    engine: Engine,
    small: tuple[str, ...],
    each: int,
    most: int,
) -> None:
    # Many: more than the transaction that exchanges embeds at first.
    for name in small:
        monkeypatch.setattr(f"app.gallery.reembedding.move.{name}", 2)
    old, numbers = service_of(networks), count()
    old.enroll("people", "first", views[:4])

    def meanwhile(_count: int) -> None:
        number = next(numbers)
        assert number < most
        if old.store.gallery("people").extractor == old.extractor:
            first = number % (9 - each)
            old.enroll("people", f"late {number}", views[first : first + each])

    move = move_gallery(old.store, "people", other_networks.extractor, progress=meanwhile)
    assert move.state == "moved"
    assert move.embedded == rows(engine, "spare_embedding") == rows(engine, "template") > 4


def test_crops_that_come_damaged_at_the_last_moment_are_told_and_looked_at_once(
    service_of: Services,
    networks: Networks,
    other_networks: Networks,
    views: list[Photo],
    monkeypatch: pytest.MonkeyPatch,
    engine: Engine,
) -> None:
    monkeypatch.setattr("app.gallery.reembedding.move._BATCH", 2)
    old = service_of(networks)
    old.enroll("people", "first", views[:1])
    late = iter([("anna", views[1:4]), ("bob", views[4:6])])

    def meanwhile(_count: int) -> None:
        for key, photos in late:
            old.enroll("people", key, photos)
            with engine.begin() as connection:
                last = connection.scalar(select(func.max(CropRow.template_id)))
                connection.execute(update(CropRow).where(CropRow.template_id == last).values(image=b"x"))

    move = move_gallery(old.store, "people", other_networks.extractor, progress=meanwhile)
    assert (move.state, move.embedded) == ("incomplete", 4)
    assert [(one.key, one.missing, one.templates) for one in move.incomplete] == [("anna", 1, 3), ("bob", 1, 2)]
    assert rows(engine, "spare_embedding") == 4  # the next try goes on from there


def test_a_service_that_enrolls_while_the_gallery_moves_loses_nothing(
    service_of: Services, networks: Networks, other_networks: Networks, views: list[Photo]
) -> None:
    old, new = service_of(networks), service_of(other_networks)
    old.enroll("people", "first", views)
    acknowledged: list[str] = []
    stopped, begun = threading.Event(), threading.Event()

    def work() -> None:
        try:
            for number in range(1000):
                old.enroll("people", f"subject {number}", views[number % 8 : number % 8 + 1])
                acknowledged.append(f"subject {number}")
                assert answer(old, views[0])
                begun.set()
        except ExtractorMismatch:
            stopped.set()

    worker = threading.Thread(target=work)
    worker.start()
    begun.wait(60)
    assert move_gallery(old.store, "people", other_networks.extractor).state == "moved"
    worker.join(60)
    assert stopped.is_set()
    gallery = new.store.gallery("people")
    assert new.store.size(gallery).templates == 8 + len(acknowledged)
    stored = {key: new.store.subject_embeddings(new.store.subject("people", key).id).embeddings for key in acknowledged}
    wanted = embeddings_of(new, views)
    for key, embeddings in stored.items():
        np.testing.assert_allclose(embeddings[0], wanted[int(key.split()[1]) % 8], atol=1e-4)


def test_after_a_break_it_goes_on(
    service_of: Services,
    networks: Networks,
    other_networks: Networks,
    views: list[Photo],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.gallery.reembedding.move._BATCH", 2)
    old = service_of(networks)
    old.enroll("people", "anna", views[:5])
    before = answer(old, views[7])

    class Break(Exception): ...

    def stop(_count: int) -> None:
        raise Break

    with pytest.raises(Break):
        move_gallery(old.store, "people", other_networks.extractor, progress=stop)
    assert answer(old, views[7]) == before
    with pytest.raises(MoveRefused, match="no embeddings of an earlier extractor"):
        move_back(old.store, "people", None)  # it has left none yet
    move = move_gallery(old.store, "people", other_networks.extractor)
    assert (move.state, move.embedded) == ("moved", 3)


def test_without_crops_nothing_moves_and_the_subjects_are_named(
    service_of: Services, networks: Networks, other_networks: Networks, views: list[Photo], engine: Engine
) -> None:
    old, bare = service_of(networks), service_of(networks, keep_crops=False)
    old.enroll("people", "anna", views[:2])
    bare.enroll("people", "anna", views[2:3])
    bare.enroll("people", "bob", views[3:5])
    old.enroll("people", "carl", views[5:6])
    before = old.store.gallery("people")
    move = move_gallery(old.store, "people", other_networks.extractor)
    assert (move.state, move.embedded) == ("incomplete", 0)
    assert [(one.key, one.missing, one.templates) for one in move.incomplete] == [("anna", 1, 3), ("bob", 2, 2)]
    assert old.store.gallery("people") == before
    assert rows(engine, "spare_embedding") == 0


def left_behind(old: GalleryService, bare: GalleryService, networks: Networks, views: list[Photo]) -> Move:
    """A gallery that moved without two of its templates."""
    old.enroll("people", "anna", views[:2])
    bare.enroll("people", "bob", views[2:4])
    return move_gallery(old.store, "people", networks.extractor, without_missing=True)


def test_templates_without_crops_are_set_aside_and_come_back(
    service_of: Services, networks: Networks, other_networks: Networks, views: list[Photo]
) -> None:
    old, new = service_of(networks), service_of(other_networks, keep_crops=False)
    move = left_behind(old, service_of(networks, keep_crops=False), other_networks, views)
    assert (move.state, [one.key for one in move.incomplete]) == ("moved", ["bob"])
    assert old.store.subject("people", "bob").templates == 0
    assert [key for key, _ in answer(new, views[2])] == ["anna"]
    new.enroll("people", "bob", views[2:3])  # enrolled again, as asked
    new.enroll("people", "carl", views[5:6])

    back = move_back(old.store, "people", networks.extractor)
    assert (back.state, [one.key for one in back.incomplete]) == ("incomplete", ["bob", "carl"])
    back = move_back(old.store, "people", networks.extractor, without_missing=True)
    assert (back.state, back.gallery.extractor) == ("moved", old.extractor)
    assert {one.key: one.templates for one in old.store.subjects("people", after=0, limit=9).items} == {
        "anna": 2,
        "bob": 2,
        "carl": 0,
    }
    assert {key for key, _ in answer(old, views[3])} == {"anna", "bob"}
    forth = move_back(old.store, "people", None, without_missing=True)  # and what was new there is not lost either
    assert forth.gallery.extractor == new.extractor
    assert {one.key: one.templates for one in old.store.subjects("people", after=0, limit=9).items} == {
        "anna": 2,
        "bob": 1,
        "carl": 1,
    }


def test_what_is_set_aside_goes_with_its_subject(
    service_of: Services, networks: Networks, other_networks: Networks, views: list[Photo], engine: Engine
) -> None:
    old = service_of(networks)
    left_behind(old, service_of(networks, keep_crops=False), other_networks, views)
    old.store.merge_subjects("people", "bob", "anna")
    assert rows(engine, "set_aside_template") == 2
    old.store.delete_subject("people", "anna")
    assert (rows(engine, "set_aside_template"), rows(engine, "spare_embedding"), rows(engine, "crop")) == (0, 0, 0)


def test_a_damaged_crop_is_as_good_as_none(
    service_of: Services, networks: Networks, other_networks: Networks, views: list[Photo], engine: Engine
) -> None:
    old = service_of(networks)
    old.enroll("people", "anna", views[:2])
    old.enroll("people", "bob", views[2:3])
    with engine.begin() as connection:
        last = connection.scalar(select(func.max(CropRow.template_id)))
        connection.execute(update(CropRow).where(CropRow.template_id == last).values(image=b"x"))
    move = move_gallery(old.store, "people", other_networks.extractor)
    assert (move.state, [one.key for one in move.incomplete]) == ("incomplete", ["bob"])
    assert old.store.gallery("people").extractor == old.extractor
    move = move_gallery(old.store, "people", other_networks.extractor, without_missing=True)
    assert (move.state, [one.key for one in move.incomplete]) == ("moved", ["bob"])


def test_a_third_extractor_waits_until_the_second_is_discarded(
    service_of: Services, networks: Networks, other_networks: Networks, views: list[Photo], engine: Engine
) -> None:
    old = service_of(networks)
    old.enroll("people", "anna", views[:1])
    gallery = old.store.gallery("people")
    ids = [one.id for one in old.store.templates("people", subject=None, after=0, limit=9).items]
    ReembeddingStore(engine, old.store.seals).add(gallery, "third@1", ids, np.eye(1, 64, dtype=np.float32))
    with pytest.raises(MoveRefused, match=r"still has embeddings of third@1; erase them first"):
        move_gallery(old.store, "people", other_networks.extractor)
    ReembeddingStore(engine).discard(gallery)
    assert move_gallery(old.store, "people", other_networks.extractor).state == "moved"


def test_an_extractor_of_another_dimension(
    service_of: Services, networks: Networks, views: list[Photo], engine: Engine
) -> None:
    old = service_of(networks)
    old.enroll("people", "anna", views[:1])
    before, answered = old.store.gallery("people"), answer(old, views[1])
    moves = ReembeddingStore(engine, old.store.seals)
    ids = [one.id for one in old.store.templates("people", subject=None, after=0, limit=9).items]
    moves.add(before, "wide@1", ids, np.eye(1, 512, dtype=np.float32))
    assert moves.switch(before, "wide@1", dimension=None, unusable=(), with_crops=True).state == "done"
    assert old.store.gallery("people").dimension == 512
    back = moves.switch(old.store.gallery("people"), old.extractor, dimension=None, unusable=(), with_crops=False)
    assert back.state == "done"
    assert old.store.gallery("people").dimension == before.dimension
    assert answer(old, views[1]) == answered


def test_a_switch_takes_as_long_as_it_does_whatever_limits_the_server_sets_for_statements(
    postgresql_url: str, new_templates: Callable[[int], list[NewTemplate]]
) -> None:
    url = make_url(postgresql_url)
    limits = f"{url.query.get('options', '')} -cstatement_timeout=1000 -clock_timeout=1000"
    engine = open_engine(url.update_query_dict({"options": limits}).render_as_string(hide_password=False), timeout=30)
    migrate(engine)
    store, moves = GalleryStore(engine), ReembeddingStore(engine)
    (template,) = new_templates(1)
    made = store.enroll("people", "anna", [template], metadata=None, extractor="net@1", dimension=8)
    gallery = store.gallery("people")
    moves.add(gallery, "net@2", [made.added[0].id], template.embedding[None])
    with engine.begin() as connection:  # as of a million templates
        connection.execute(
            text(
                "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql "
                "AS 'BEGIN PERFORM pg_sleep(1.5); RETURN NEW; END'"
            )
        )
        connection.execute(
            text("CREATE TRIGGER slow BEFORE UPDATE ON template FOR EACH STATEMENT EXECUTE FUNCTION wait()")
        )
    assert moves.switch(gallery, "net@2", dimension=8, unusable=(), with_crops=False).state == "done"
    assert store.gallery("people").extractor == "net@2"
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar() == "1s"
    engine.dispose()
