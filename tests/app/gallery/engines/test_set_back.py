"""An engine that falls back behind what running processes have written into it, while the database does not."""

import shutil
import subprocess
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.engines import EngineIndex, IndexEngine
from app.gallery.engines.milvus_index import MilvusIndex
from app.gallery.engines.milvus_position import POSITIONS
from app.gallery.engines.pgvector import PgvectorEngine
from app.gallery.errors import Busy
from app.gallery.records import NewTemplate
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.views.engine_views import EngineViews
from app.gallery.views.gallery_reading import GalleryReading
from app.gallery.views.replica import GalleryReplica
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR
from tests.app.gallery.engines.test_replica import CountedHistory, OpenEngine, Templates, index_of
from tests.app.gallery.views.test_replica import enroll, identities
from tests.postgresql import postgresql
from tests.standby import Standby

pytestmark = pytest.mark.galleries("people")
on_milvus = pytest.mark.parametrize("open_shared", ["milvus"], indirect=True)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """The engine is what is set back here."""
    return sqlite_url


@pytest.fixture(autouse=True)
def looks_at_every_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milvus cannot be asked in the same go, and is looked at once a second."""
    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 0.0)


class EngineCopy:
    """What an engine has of a gallery now."""

    def __init__(self, index: EngineIndex) -> None:
        self._ids, self._point = index.ids(), index.point()
        self._vectors = index.vectors(self._ids)

    def put_back(self, index: EngineIndex) -> None:
        """Undo whatever has been written since."""
        index.remove(np.setdiff1d(index.ids(), self._ids))
        index.add(self._ids, self._vectors)
        index.put_position(*self._point)


def process(store: GalleryStore, shared: IndexEngine) -> tuple[GalleryReplica, CountedHistory]:
    """A process of a service."""
    history = CountedHistory(store.engine)
    made = GalleryReplica(store.gallery("people"), history, lambda: index_of(store, shared), tended=True)
    return made, history


def set_back(
    store: GalleryStore, replica: GalleryReplica, index: EngineIndex, templates: list[NewTemplate]
) -> tuple[int, int]:
    """The subjects of Bob and Carl; the engine has Bob and, instead of Carl, Anna still, who was erased."""
    found = [enroll(store, key, [one]) for key, one in zip(("anna", "bob"), templates, strict=False)]
    assert identities(replica, store, templates) == [*found, None, None]
    copy = EngineCopy(index)
    store.delete_subject("people", "anna")
    carl = enroll(store, "carl", templates[2:3])
    assert identities(replica, store, templates) == [None, found[1], carl, None]
    copy.put_back(index)
    return found[1], carl


def test_who_an_engine_has_lost_is_told_to_it_again_before_a_search_is_answered(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    templates, index = new_templates(3), index_of(store, open_shared())
    (here, history), (there, _) = process(store, open_shared()), process(store, open_shared())
    anna = enroll(store, "anna", templates[:1])
    for one in (here, there):
        assert identities(one, store, templates) == [anna, None, None]
    copy = EngineCopy(index)
    bob = enroll(store, "bob", templates[1:2])
    for one in (here, there):
        assert identities(one, store, templates) == [anna, bob, None]
    copy.put_back(index)
    fills = history.fills
    for one in (here, there):
        assert identities(one, store, templates) == [anna, bob, None]
    assert (index.point(), history.fills) == (store.gallery("people").point, fills)


def test_what_an_engine_has_lost_is_told_to_it_before_what_comes_next(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    templates, index = new_templates(4), index_of(store, open_shared())
    replica, history = process(store, open_shared())
    bob, carl = set_back(store, replica, index, templates)
    dora, fills = enroll(store, "dora", templates[3:]), history.fills
    replica.catch_up(*store.gallery("people").point)
    assert (index.point(), index.ids().tolist()) == (store.gallery("people").point, [2, 3, 4])
    for one in (replica, process(store, open_shared())[0]):
        assert identities(one, store, templates) == [None, bob, carl, dora]
    assert history.fills == fills


def test_whom_an_engine_still_has_leaves_it_within_a_minute_where_nobody_searches(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates, index = new_templates(4), index_of(store, open_shared())
    replica, history = process(store, open_shared())
    bob, carl = set_back(store, replica, index, templates)
    lost, point, fills = EngineCopy(index), store.gallery("people").point, history.fills
    assert index.ids().tolist() == [1, 2]
    replica.look_at_engine()
    assert not replica.follow(*point)
    assert (index.point(), index.ids().tolist()) == (point, [2, 3])
    lost.put_back(index)
    replica.look_at_engine()  # which does not ask again so soon
    assert not replica.follow(*point)
    assert index.ids().tolist() == [1, 2]
    monkeypatch.setattr("app.gallery.views.replica._ENGINE_LOOK", 0.0)
    replica.look_at_engine()
    assert not replica.follow(*point)
    assert (index.point(), index.ids().tolist()) == (point, [2, 3])
    assert identities(replica, store, templates) == [None, bob, carl, None]
    assert history.fills == fills


@pytest.mark.parametrize("searched", [True, False])
def test_an_engine_that_has_lost_what_is_not_written_down_any_more_is_filled_anew(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, searched: bool
) -> None:
    templates, index = new_templates(4), index_of(store, open_shared())
    replica, history = process(store, open_shared())
    bob, carl = set_back(store, replica, index, templates)
    gallery = store.gallery("people")
    history.report(gallery.id, "this", gallery.revision)
    assert history.prune(gallery.id)
    dora = None if searched else enroll(store, "dora", templates[3:])
    fills = history.fills
    assert identities(replica, store, templates) == [None, bob, carl, dora]
    assert history.fills == fills + 1
    assert (index.point(), len(index)) == (store.gallery("people").point, 2 + (dora is not None))


def test_an_engine_that_has_lost_its_first_filling_is_filled_anew(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    templates, index = new_templates(3), index_of(store, open_shared())
    copy = EngineCopy(index)
    anna = enroll(store, "anna", templates[:2])
    replica, _ = process(store, open_shared())
    assert identities(replica, store, templates) == [anna, anna, None]
    copy.put_back(index)
    bob = enroll(store, "bob", templates[2:])
    for one in (replica, process(store, open_shared())[0]):
        assert identities(one, store, templates) == [anna, anna, bob]
    assert index.point() == store.gallery("people").point


def test_a_large_gallery_that_an_engine_has_lost_is_busy_until_it_is_filled_in_the_background(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.views.gallery_reading._LARGE", 0)
    templates, index = new_templates(2), index_of(store, open_shared())
    copy = EngineCopy(index)
    anna = enroll(store, "anna", templates)
    replica, _ = process(store, open_shared())
    point = store.gallery("people").point
    replica.follow(*point)
    assert identities(replica, store, templates) == [anna, anna]
    copy.put_back(index)
    for _ in range(2):
        with pytest.raises(Busy, match="is being built"):
            identities(replica, store, templates)
        assert replica.awaited()
    assert replica.follow(*point)
    assert identities(replica, store, templates) == [anna, anna]


@on_milvus
@pytest.mark.parametrize("undone", [1, 2])
def test_an_engine_that_is_put_back_to_what_the_database_has_undone_gives_nobody_a_wrong_name(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, undone: int
) -> None:
    templates, index = new_templates(4), index_of(store, open_shared())
    replica, _ = process(store, open_shared())
    anna = enroll(store, "anna", templates[:1])
    assert identities(replica, store, templates) == [anna, None, None, None]
    standby = Standby(store.engine)
    for number in range(undone):
        enroll(store, f"undone {number}", templates[1 + number : 2 + number])
    assert identities(replica, store, templates).count(None) == 3 - undone
    copy = EngineCopy(index)
    standby.promote()
    bob = enroll(store, "bob", templates[3:])  # gets the ids of the first that was undone
    assert identities(replica, store, templates) == [anna, None, None, bob]
    copy.put_back(index)
    for one in (replica, process(store, open_shared())[0]):
        assert identities(one, store, templates) == [anna, None, None, bob]
    assert (index.point(), len(index)) == (store.gallery("people").point, 2)


@on_milvus
def test_a_search_goes_on_and_does_not_wait_while_another_process_tells_an_engine_more_and_more(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates, (replica, history), (other, _) = (
        new_templates(9),
        process(store, open_shared()),
        process(store, open_shared()),
    )
    found = [enroll(store, "anna", templates[:1])]
    for one in (replica, other):
        assert identities(one, store, templates[:1]) == found
    index, levels, enrolled = replica.view.index, list[object](), list[int]()
    assert isinstance(index, MilvusIndex)
    query, search, fills = index.client.query, index.client.search, history.fills

    def told_meanwhile(name: str, *arguments: Any, **options: Any) -> Any:
        if name == POSITIONS:
            enrolled.append(enroll(store, f"subject {len(enrolled)}", [templates[1 + len(enrolled)]]))
            other.catch_up(*store.gallery("people").point)
        return query(name, *arguments, **options)

    def watched(*arguments: Any, **options: Any) -> Any:
        levels.append(options["consistency_level"])
        return search(*arguments, **options)

    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 3600.0)
    with monkeypatch.context() as patched:
        patched.setattr(index.client, "query", told_meanwhile)
        patched.setattr(index.client, "search", watched)
        ((nearest, *_),) = replica.search(templates[0].embedding[None], top_k=1, rule="best")
    assert nearest.subject_id == found[0]
    assert (set(levels), history.fills) == ({"Session"}, fills)
    assert 1 <= len(enrolled) < 3
    found += enrolled
    assert identities(replica, store, templates[: len(found)]) == found


def test_a_start_adds_who_an_engine_lacks(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    templates, index = new_templates(3), index_of(store, open_shared())
    anna, bob = (enroll(store, key, own) for key, own in (("anna", templates[:2]), ("bob", templates[2:])))
    assert identities(process(store, open_shared())[0], store, templates) == [anna, anna, bob]
    index.remove(np.array([2, 3]))
    late, history = process(store, open_shared())
    assert identities(late, store, templates) == [anna, anna, bob]
    assert (history.fills, index.ids().tolist()) == (0, [1, 2, 3])


def test_who_is_erased_while_a_start_adds_him_is_gone(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    templates, index = new_templates(2), index_of(store, open_shared())
    for key, own in (("anna", templates[:1]), ("bob", templates[1:])):
        enroll(store, key, own)
    replica, history = process(store, open_shared())
    replica.catch_up(*store.gallery("people").point)
    index.remove(np.array([1, 2]))

    class Meanwhile(type(index)):  # type: ignore[misc]
        def add(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
            store.delete_subject("people", "bob")
            replica.catch_up(*store.gallery("people").point)
            super().add(ids, embeddings)

    index.__class__ = Meanwhile
    EngineViews(GalleryReading(store.gallery("people"), history)).set_right(index)
    assert index.ids().tolist() == [1]


def test_a_server_that_has_lost_the_end_of_its_log_is_told_again_what_it_has_lost(new_templates: Templates) -> None:
    """The log ends between the database's commit and the engine's own."""
    from tests.http.test_faults import postgres

    templates = new_templates(3)
    with postgresql() as server:
        options = '"' + (server.data / "postmaster.opts").read_text().split('"', 1)[1].strip()
        copy = server.data.with_name("copy")
        database = open_engine(server.address, timeout=10)
        migrate(database)
        store = GalleryStore(database)
        store.create_gallery("people", extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
        with closing(PgvectorEngine(server.address, timeout=10)) as engine:
            replica, _ = process(store, engine)
            found = [enroll(store, "anna", templates[:1]), None, None]
            assert identities(replica, store, templates) == found
            found[1] = enroll(store, "bob", templates[1:2])
            postgres(server.data, "stop", "-m", "fast")
            subprocess.run(["cp", "-a", server.data, copy], check=True)
            postgres(server.data, "start", "-o", options)
            database.dispose()  # its connections
            assert identities(replica, store, templates) == found
            postgres(server.data, "stop", "-m", "immediate")
            shutil.rmtree(server.data)
            copy.rename(server.data)
            postgres(server.data, "start", "-o", options)
            database.dispose()  # its connections
            assert identities(replica, store, templates) == found
            found[2] = enroll(store, "carl", templates[2:])
            for one in (replica, process(store, engine)[0]):
                assert identities(one, store, templates) == found
        database.dispose()
