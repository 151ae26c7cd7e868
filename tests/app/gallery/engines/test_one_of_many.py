"""One gallery with which an engine is slow or busy holds up no other."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from app.gallery.engines import EngineIndex, IndexEngine, storage_prefix
from app.gallery.engines.leftovers import EngineLeftovers
from app.gallery.errors import Busy, DatabaseUnavailable
from app.gallery.records import Gallery, NewTemplate
from app.gallery.store import GalleryStore
from app.gallery.tables import StorageToDropRow, now
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR
from tests.app.gallery.engines.test_leftovers import OTHER, OpenEngine, Process, held, move

pytestmark = pytest.mark.galleries("people", "others")
Templates = Callable[[int], list[NewTemplate]]
WAIT = 60


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """The engine is what is tested here; which database it stands beside does not matter to it."""
    return sqlite_url


def enroll(store: GalleryStore, gallery: str, key: str, template: NewTemplate) -> None:
    store.enroll(gallery, key, [template], metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)


def keep_busy(monkeypatch: pytest.MonkeyPatch, shared: IndexEngine, gallery: Gallery) -> None:
    """Have the engine drop nothing of a gallery, as while another process builds a graph on it."""
    drop = shared.drop

    def refuse(prefix: str, *, but: str = "") -> None:
        if prefix == storage_prefix(gallery):
            raise Busy("another request is writing; try again")
        drop(prefix, but=but)

    monkeypatch.setattr(shared, "drop", refuse)


# -- an index that is being made


def test_an_index_that_is_long_in_the_making_holds_up_no_other_gallery(
    store: GalleryStore, open_shared: OpenEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = open_shared()
    replicas = Process(store, shared, tmp_path).replicas
    people = replicas.up_to_date("people")
    asked, answers, index = threading.Event(), threading.Event(), shared.index

    def slow(gallery: Gallery) -> EngineIndex:
        if gallery.name == "others":
            asked.set()
            assert answers.wait(WAIT)
        return index(gallery)

    monkeypatch.setattr(shared, "index", slow)
    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(replicas.of, store.gallery("others"))
        assert asked.wait(WAIT)
        rest = pool.submit(lambda: (replicas.up_to_date("people"), replicas.all(), replicas.lag()))
        try:
            assert rest.result(timeout=10) == (people, [people], 0)
        finally:
            answers.set()
        made = making.result(WAIT)
    assert replicas.all() == [people, made]


def test_two_that_make_an_index_at_once_get_the_same(
    store: GalleryStore, open_shared: OpenEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = open_shared()
    replicas = Process(store, shared, tmp_path).replicas
    both, index = threading.Barrier(2), shared.index

    def together(gallery: Gallery) -> EngineIndex:
        both.wait(10)
        return index(gallery)

    with monkeypatch.context() as patched, ThreadPoolExecutor(2) as pool:
        patched.setattr(shared, "index", together)
        one, other = pool.map(replicas.of, [store.gallery("people")] * 2)
    assert one is other
    assert replicas.all() == [one]


def test_a_gallery_that_is_erased_while_its_index_is_made_is_let_go(
    store: GalleryStore, open_shared: OpenEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = open_shared()
    process = Process(store, shared, tmp_path)
    replicas, others, index = process.replicas, store.gallery("others"), shared.index

    def late(gallery: Gallery) -> EngineIndex:
        store.delete_gallery("others")
        replicas.follow(gallery)
        return index(gallery)

    with monkeypatch.context() as patched:
        patched.setattr(shared, "index", late)
        replicas.of(others)
    assert held(store, shared, others) == {EXTRACTOR: []}
    replicas.start([])
    until = time.monotonic() + WAIT
    while [one.name for one in replicas.all()] != ["people"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert held(store, shared, others) == {}
    replicas.stop()


# -- what is owed to erased people


def test_an_erasure_that_an_engine_is_too_busy_for_holds_up_no_other(
    store: GalleryStore,
    open_shared: OpenEngine,
    new_templates: Templates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = open_shared()
    process, moved = Process(store, shared, tmp_path), Process(store, open_shared(), tmp_path, OTHER)
    for gallery in ("people", "others"):
        for key, template in zip(("anna", "bob"), new_templates(2), strict=True):
            enroll(store, gallery, key, template)
        process.replicas.up_to_date(gallery)
    move(store)  # people
    moved.replicas.up_to_date("people")
    others = store.gallery("others")
    asked = list[str]()

    def away(prefix: str) -> list[str]:
        asked.append(prefix)
        raise DatabaseUnavailable("the engine does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(shared, "names", away)
        patched.setattr(process.replicas.up_to_date("others").view.index, "remove", away)
        for gallery in ("people", "others"):
            assert process.forgetting.forget(gallery, "bob")["pending"] == ["index"]
        asked.clear()
        with pytest.raises(DatabaseUnavailable):
            process.replicas.follow_again()
        assert len(asked) == 1  # it is waited for once
    assert held(store, shared) == {EXTRACTOR: [1, 2], OTHER: [1, 2]}
    assert held(store, shared, others) == {EXTRACTOR: [3, 4]}
    with monkeypatch.context() as patched:
        keep_busy(patched, shared, store.gallery("people"))
        with pytest.raises(Busy):
            process.replicas.follow_again()
    assert held(store, shared) == {EXTRACTOR: [1, 2], OTHER: [1]}
    assert held(store, shared, others) == {EXTRACTOR: [3]}
    process.replicas.follow_again()
    assert held(store, shared) == {OTHER: [1]}


def test_an_erasure_that_fails_while_an_earlier_one_is_made_up_for_is_owed_still(
    store: GalleryStore,
    open_shared: OpenEngine,
    new_templates: Templates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = open_shared()
    process = Process(store, shared, tmp_path)
    for key, template in zip(("anna", "bob"), new_templates(2), strict=True):
        enroll(store, "people", key, template)
    index, names = process.replicas.up_to_date("people").view.index, shared.names

    def away(*_: object) -> list[str]:
        raise DatabaseUnavailable("the engine does not answer")

    def meanwhile(prefix: str) -> list[str]:
        with monkeypatch.context() as patched:
            patched.setattr(index, "remove", away)
            patched.setattr(shared, "names", names)
            assert process.forgetting.forget("people", "bob")["pending"] == ["index"]
        return names(prefix)

    with monkeypatch.context() as patched:
        patched.setattr(shared, "names", meanwhile)
        process.replicas.follow(store.gallery("people"))
    assert held(store, shared) == {EXTRACTOR: [1, 2]}
    process.replicas.follow_again()
    assert held(store, shared) == {EXTRACTOR: [1]}


def test_settling_goes_on_behind_a_gallery_that_is_busy(
    store: GalleryStore,
    open_shared: OpenEngine,
    new_templates: Templates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = open_shared()
    process = Process(store, shared, tmp_path)
    for gallery in ("people", "others"):
        enroll(store, gallery, "anna", *new_templates(1))
        process.replicas.up_to_date(gallery)
    others = store.gallery("others")
    store.delete_subject("others", "anna")
    gone = store.delete_gallery("people")
    keep_busy(monkeypatch, shared, gone)
    with pytest.raises(Busy):
        process.replicas.settle_engine()
    assert held(store, shared, gone) == {EXTRACTOR: [1]}
    assert held(store, shared, others) == {EXTRACTOR: []}


def test_a_sweep_goes_on_behind_a_gallery_that_is_busy_and_forgets_only_what_is_gone(
    store: GalleryStore,
    open_shared: OpenEngine,
    new_templates: Templates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = open_shared()
    store.create_gallery("last", extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
    process = Process(store, shared, tmp_path)
    enroll(store, "people", "anna", *new_templates(1))
    for gallery in ("people", "others", "last"):
        process.replicas.up_to_date(gallery)
    move(store)  # people
    busy, gone = sorted((store.delete_gallery("others"), store.delete_gallery("last")), key=storage_prefix)
    leftovers = EngineLeftovers(store.engine, shared)

    def noted() -> list[str]:
        with store.engine.connect() as connection:
            return sorted(connection.scalars(select(StorageToDropRow.prefix)))

    with monkeypatch.context() as patched:
        keep_busy(patched, shared, busy)
        with pytest.raises(Busy):
            leftovers.sweep()
        assert (held(store, shared, gone), held(store, shared)) == ({}, {})
        assert held(store, shared, busy) == {EXTRACTOR: []}
        assert noted() == [storage_prefix(busy), storage_prefix(gone)]
        patched.setattr("app.gallery.engines.leftovers.now", lambda: now() + timedelta(days=2))
        with pytest.raises(Busy):
            leftovers.sweep()
        assert noted() == [storage_prefix(busy)]
    leftovers.sweep()
    assert held(store, shared, busy) == {}
