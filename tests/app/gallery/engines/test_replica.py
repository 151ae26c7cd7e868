"""Processes that follow one database and share one engine."""

from collections.abc import Callable

import numpy as np
import pytest

from app.gallery.engines import IndexEngine
from app.gallery.engines.protocol import EngineIndex
from app.gallery.history import GalleryHistory
from app.gallery.records import NewTemplate
from app.gallery.replica import GalleryReplica
from app.gallery.store import GalleryStore
from tests.app.gallery.test_replica import DIMENSION, EXTRACTOR, enroll, identities, search

OpenEngine = Callable[[], IndexEngine]
Templates = Callable[[int], list[NewTemplate]]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """The engine is what is tested here; which database it stands beside does not matter to it."""
    return sqlite_url


@pytest.fixture
def store(store: GalleryStore) -> GalleryStore:
    store.create_gallery("people", extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
    return store


def index_of(store: GalleryStore, shared: IndexEngine) -> EngineIndex:
    return shared.index(store.gallery("people"))


def replica_of(store: GalleryStore, shared: IndexEngine) -> GalleryReplica:
    return GalleryReplica(store.gallery("people"), GalleryHistory(store.engine), lambda: index_of(store, shared))


def test_what_one_process_writes_the_other_finds(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    here, there, templates = replica_of(store, open_shared()), replica_of(store, open_shared()), new_templates(4)
    for number, template in enumerate(templates):
        subject = enroll(store, f"subject {number}", [template])
        assert identities(here, store, [template]) == identities(there, store, [template]) == [subject]
    store.delete_subject("people", "subject 1")
    for replica in (there, here):
        assert identities(replica, store, templates)[1] is None
        assert (replica.applied_revision, replica.subjects, replica.templates) == (5, 3, 3)


def test_a_row_that_a_dead_process_left_behind_names_nobody(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    replica, (kept, erased) = replica_of(store, open_shared()), new_templates(2)
    anna = enroll(store, "anna", [kept])
    enroll(store, "bob", [erased])
    assert identities(replica, store, [erased]) != [None]
    (template,) = store.templates("people", subject="bob", after=0, limit=1).items
    store.delete_subject("people", "bob")
    assert identities(replica, store, [erased]) == [None]
    index_of(store, open_shared()).add(np.array([template.id]), erased.embedding[None])
    for other in (replica, replica_of(store, open_shared())):
        ((nearest,),) = search(other, store, erased.embedding[None], top_k=5)
        assert nearest.subject_id == anna
        assert nearest.template_id != template.id


def test_a_rebuild_brings_back_what_the_engine_lost(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    replica, templates = replica_of(store, open_shared()), new_templates(2)
    anna = enroll(store, "anna", templates)
    assert identities(replica, store, templates) == [anna, anna]
    index = index_of(store, open_shared())
    index.remove(index.ids()[:1])
    assert identities(replica, store, templates) == [None, anna]
    GalleryHistory(store.engine).request_rebuild("people")
    assert identities(replica, store, templates) == [anna, anna]
