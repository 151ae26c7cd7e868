"""What engines keep of extractors that galleries have left, and of erased galleries: nothing, in the end."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import update

from app.gallery.engines import IndexEngine, storage_name, storage_prefix
from app.gallery.engines.leftovers import EngineLeftovers
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.receipts import ReceiptSigner
from app.gallery.errors import Busy, DatabaseUnavailable
from app.gallery.records import Gallery, NewTemplate
from app.gallery.reembedding.move import move_back
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.sealing.vault import open_vault
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import TemplateRow
from app.gallery.views.consistency import check_gallery, repair_gallery
from app.gallery.views.engine_views import EngineViews
from app.gallery.views.gallery_reading import GalleryReading
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replicas import Replicas
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR
from tests.app.gallery.engines.conftest import new_gallery
from tests.app.gallery.index.test_contract import unit_vectors
from tests.app.gallery.views.test_replica import identities, search
from tests.standby import Standby

pytestmark = pytest.mark.galleries("people")
OpenEngine = Callable[[], IndexEngine]
Templates = Callable[[int], list[NewTemplate]]
OTHER = "other@ba9876543210"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """The engine is what is tested here; which database it stands beside does not matter to it."""
    return sqlite_url


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate], extractor: str = EXTRACTOR) -> int:
    made = store.enroll("people", key, templates, metadata=None, extractor=extractor, dimension=DIMENSION)
    return made.subject.id


class Process:
    """The part of a service that follows erasures, by one extractor."""

    def __init__(self, store: GalleryStore, shared: IndexEngine, tmp_path: Path, extractor: str = EXTRACTOR) -> None:
        self.indexes = IndexSource(kind="pgvector", engine=shared)
        self.history = GalleryHistory(store.engine)
        self.replicas = Replicas(store, self.history, self.indexes, extractor=extractor)
        vault = open_vault(
            open_engine(f"sqlite:///{(tmp_path / 'vault.db').as_posix()}", timeout=30),
            master_key=None,
            master_key_file=tmp_path / "master.key",
            expected=False,
        )
        self.forgetting = Forgetting(store.engine, vault, ReceiptSigner(bytes(32)))
        self.forgetting.connect(follow=self.replicas.follow, erase_traces=self.replicas.erase_traces)


def move(store: GalleryStore, extractor: str = OTHER) -> None:
    """Move the gallery, with made-up embeddings; nobody tells the engine."""
    gallery, moves = store.gallery("people"), ReembeddingStore(store.engine)
    ids = [one.id for one in store.templates("people", subject=None, after=0, limit=99).items]
    moves.add(gallery, extractor, ids, unit_vectors(len(ids), seed=5, dimension=DIMENSION))
    switch = moves.switch(gallery, extractor, dimension=DIMENSION, unusable=(), with_crops=True)
    assert switch.state == "done"


def held(store: GalleryStore, shared: IndexEngine, gallery: Gallery | None = None) -> dict[str, list[int]]:
    """The ids that the engine has of a gallery, by extractor."""
    gallery = gallery or store.gallery("people")
    names = shared.names(storage_prefix(gallery))
    found: dict[str, list[int]] = {}
    for extractor in (EXTRACTOR, OTHER):
        one = Gallery(gallery.id, gallery.name, extractor, DIMENSION, 0, None, gallery.created_at)
        if storage_name(one) in names:
            found[extractor] = shared.index(one).ids().tolist()
    assert len(found) == len(names)
    return found


def test_an_extractor_that_was_left_is_dropped_and_going_back_fills_it_again(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, tmp_path: Path
) -> None:
    shared, templates = open_shared(), new_templates(3)
    old, new = Process(store, shared, tmp_path), Process(store, open_shared(), tmp_path, OTHER)
    anna = enroll(store, "anna", templates[:2])
    replica = old.replicas.up_to_date("people")
    assert identities(replica, store, templates[:2]) == [anna, anna]
    move(store)
    moved = new.replicas.up_to_date("people")
    assert held(store, shared) == {EXTRACTOR: [1, 2], OTHER: [1, 2]}
    EngineLeftovers(store.engine, shared).drop_left("people")
    assert held(store, shared) == {OTHER: [1, 2]}
    bob = enroll(store, "bob", templates[2:], OTHER)
    assert identities(moved, store, templates[2:]) == [bob]
    back = move_back(store, "people", None, without_missing=True)
    assert [one.key for one in back.incomplete] == ["bob"]
    EngineLeftovers(store.engine, shared).sweep()
    assert held(store, shared) == {}
    assert old.replicas.up_to_date("people") is replica  # a process that was there all the time
    assert identities(replica, store, templates) == [anna, anna, None]
    assert held(store, shared) == {EXTRACTOR: [1, 2]}
    move_back(store, "people", None)
    assert new.replicas.up_to_date("people") is moved
    assert identities(moved, store, templates[2:]) == [bob]


@pytest.mark.parametrize("who", [EXTRACTOR, OTHER])
def test_who_is_forgotten_leaves_the_engine_whichever_extractor_it_knew_him_by(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, tmp_path: Path, who: str
) -> None:
    shared, templates = open_shared(), new_templates(2)
    old, new = Process(store, shared, tmp_path), Process(store, open_shared(), tmp_path, OTHER)
    for key, template in zip(("anna", "bob"), templates, strict=True):
        enroll(store, key, [template])
    old.replicas.up_to_date("people")
    move(store)
    new.replicas.up_to_date("people")
    process = old if who == EXTRACTOR else new  # the one that the erasure is asked of
    assert process.forgetting.forget("people", "bob")["pending"] == []
    assert held(store, shared) == {OTHER: [1]}


def test_what_an_engine_did_not_do_is_told_and_done_later(
    store: GalleryStore,
    open_shared: OpenEngine,
    new_templates: Templates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, templates = open_shared(), new_templates(2)
    process = Process(store, shared, tmp_path)
    for key, template in zip(("anna", "bob"), templates, strict=True):
        enroll(store, key, [template])
    index = process.replicas.up_to_date("people").view.index

    def away(_: object) -> list[str]:
        raise DatabaseUnavailable("the engine does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(shared, "names", away)
        patched.setattr(index, "remove", away)
        assert process.forgetting.forget("people", "bob")["pending"] == ["index"]
    assert held(store, shared) == {EXTRACTOR: [1, 2]}
    process.replicas.follow_again()
    assert held(store, shared) == {EXTRACTOR: [1]}


def test_an_erased_gallery_leaves_nothing_in_the_engine_though_a_process_died_in_between(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, tmp_path: Path
) -> None:
    shared, (template,) = open_shared(), new_templates(1)
    enroll(store, "anna", [template])
    Process(store, shared, tmp_path).replicas.up_to_date("people")
    move(store)
    Process(store, shared, tmp_path, OTHER).replicas.up_to_date("people")
    stranger = new_gallery()  # of a service that shares the engine by mistake
    shared.index(stranger)
    gone = store.delete_gallery("people")  # and here it dies
    assert held(store, shared, gone) == {EXTRACTOR: [1], OTHER: [1]}
    sweeper = EngineLeftovers(store.engine, open_shared())
    sweeper.look()
    assert held(store, shared, gone) == {}
    shared.index(gone)  # by a process that had not heard of it
    sweeper.sweep()
    assert held(store, shared, gone) == {}
    assert shared.names(storage_prefix(stranger)) == [storage_name(stranger)]


@pytest.mark.parametrize("by", [EXTRACTOR, OTHER])
def test_an_erasure_in_a_gallery_that_has_the_id_of_an_undone_one_leaves_nothing_of_that(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, tmp_path: Path, by: str
) -> None:
    shared = open_shared()
    process, standby = Process(store, shared, tmp_path), Standby(store.engine)

    def enroll_in(gallery: str, key: str, extractor: str) -> Gallery:
        store.enroll(gallery, key, new_templates(1), metadata=None, extractor=extractor, dimension=DIMENSION)
        return store.gallery(gallery)

    undone = enroll_in("undone", "alice", EXTRACTOR)
    process.replicas.up_to_date("undone")
    assert held(store, shared, undone) == {EXTRACTOR: [1]}
    standby.promote()
    another = enroll_in("another", "bob", by)
    assert another.id == undone.id
    if by == EXTRACTOR:
        process.replicas.up_to_date("another")
    process.forgetting.forget("another", "bob")
    process.replicas.follow_again()
    assert held(store, shared, undone) == {}


def test_a_gallery_that_cannot_be_erased_keeps_its_index(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, tmp_path: Path
) -> None:
    shared, (template,) = open_shared(), new_templates(1)
    anna = enroll(store, "anna", [template])
    replica = Process(store, shared, tmp_path).replicas.up_to_date("people")
    impatient = GalleryStore(open_engine(str(store.engine.url), timeout=0.1))
    other = sqlite3.connect(str(store.engine.url.database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy):
        impatient.delete_gallery("people")
    other.close()
    EngineLeftovers(store.engine, shared).sweep()
    assert identities(replica, store, [template]) == [anna]
    impatient.engine.dispose()


def test_what_sql_does_not_have_is_removed_when_an_index_is_mended(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, tmp_path: Path
) -> None:
    shared, templates = open_shared(), new_templates(3)
    process = Process(store, shared, tmp_path)
    anna = enroll(store, "anna", templates[:1])
    store.create_gallery("others", extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
    made = store.enroll(
        "others", "carl", templates[1:2], metadata=None, extractor=EXTRACTOR, dimension=DIMENSION
    )  # another gallery's template is surplus here as well
    gallery = store.gallery("people")
    replica = process.replicas.up_to_date("people")
    replica.view.index.add(np.array([made.added[0].id, 99]), unit_vectors(2, seed=1, dimension=DIMENSION))
    found = check_gallery(gallery, process.history, process.indexes)
    assert (found.surplus, found.whole) == (2, False)
    repair_gallery(gallery, process.history, process.indexes)
    replica.catch_up(*store.gallery("people").point)
    assert held(store, shared) == {EXTRACTOR: [1]}
    assert check_gallery(store.gallery("people"), process.history, process.indexes).whole
    assert identities(replica, store, templates[:1]) == [anna]


def test_what_sql_does_not_have_is_found_beside_as_much_that_does_not_open(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, tmp_path: Path
) -> None:
    process = Process(store, open_shared(), tmp_path)
    enroll(store, "anna", new_templates(2))
    with store.engine.begin() as connection:
        connection.execute(update(TemplateRow).where(TemplateRow.id == 2).values(embedding=b"damaged"))
    replica = process.replicas.up_to_date("people")
    replica.view.index.add(np.array([99]), unit_vectors(1, seed=1, dimension=DIMENSION))
    found = check_gallery(store.gallery("people"), process.history, process.indexes)
    assert (found.templates, found.surplus, found.unreadable) == (1, 1, (2,))


def test_what_a_killed_process_left_of_an_erased_person_is_removed_at_the_next_start(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, tmp_path: Path
) -> None:
    shared, templates = open_shared(), new_templates(2)
    process = Process(store, shared, tmp_path)
    enroll(store, "anna", templates[:1])
    bob = store.enroll("people", "bob", templates[1:], metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
    replica = process.replicas.up_to_date("people")
    process.forgetting.forget("people", "bob")
    # Another process had read the row before, writes it only now, and dies.
    replica.view.index.add(np.array([bob.added[0].id]), templates[1].embedding[None])
    again = Process(store, open_shared(), tmp_path)
    again.replicas.start([])
    assert held(store, shared) == {EXTRACTOR: [1]}
    again.replicas.stop()


def test_an_id_that_is_given_away_anew_while_surplus_is_removed_stays(
    store: GalleryStore,
    open_shared: OpenEngine,
    new_templates: Templates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, templates = open_shared(), new_templates(2)
    process = Process(store, shared, tmp_path)
    enroll(store, "anna", templates[:1])
    replica = process.replicas.up_to_date("people")
    index = shared.index(store.gallery("people"))
    index.add(np.array([2]), unit_vectors(1, seed=1, dimension=DIMENSION))

    class Meanwhile(type(index)):  # type: ignore[misc]
        def remove(self, ids: NDArray[np.int64]) -> int:
            if ids.tolist() == [2] and not store.subject("people", "anna").metadata:
                enroll(store, "bob", templates[1:])
                store.update_subject("people", "anna", metadata={"done": True})
            return int(super().remove(ids))

    index.__class__ = Meanwhile
    EngineViews(GalleryReading(store.gallery("people"), process.history)).set_right(index)
    assert index.ids().tolist() == [1, 2]  # before anybody replays it, whom others may have done with by then
    np.testing.assert_allclose(index.vectors(np.array([2])), templates[1].embedding[None], atol=1e-6)
    monkeypatch.setattr(shared, "index", lambda _gallery: index)
    process.history.request_rebuild("people")
    replica.catch_up(*store.gallery("people").point)
    assert index.ids().tolist() == [1, 2]
    ((nearest,),) = search(replica, store, templates[1].embedding[None], top_k=1)
    assert nearest.distance < 1e-3
