"""What an engine remembers, and what several processes that share it see."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from app.gallery.engines import EngineAddress, EngineIndex, IndexEngine, open_index_engine, storage_name, storage_prefix
from app.gallery.errors import IndexEngineUnusable
from app.gallery.records import Gallery
from tests.app.gallery.engines.conftest import new_gallery
from tests.app.gallery.index.test_contract import unit_vectors

OpenEngine = Callable[[], IndexEngine]


def test_what_one_process_writes_the_other_finds(open_shared: OpenEngine) -> None:
    gallery, vectors = new_gallery(), unit_vectors(3, seed=0)
    here, there = open_shared().index(gallery), open_shared().index(gallery)
    here.add(np.arange(3), vectors)
    assert len(there) == 3
    assert [found.ids[0] for found in there.search(vectors, 1)] == [0, 1, 2]
    assert there.remove(np.array([1])) == 1
    assert here.ids().tolist() == [0, 2]
    assert np.isnan(here.vectors(np.array([1]))).all()


def test_both_may_write_the_same(open_shared: OpenEngine) -> None:
    gallery, vectors = new_gallery(), unit_vectors(3, seed=0)
    for index in (open_shared().index(gallery), open_shared().index(gallery)):
        index.add(np.arange(3), vectors)
        index.remove(np.array([1]))
        assert len(index) == 2
        assert index.ids().tolist() == [0, 2]


def test_an_index_remembers_how_far_it_is_true(open_shared: OpenEngine) -> None:
    gallery = new_gallery()
    index = open_shared().index(gallery)
    assert index.position() == -1
    index.add(np.array([1]), unit_vectors(1, seed=0))
    for revision, remembered in ((0, 0), (5, 5), (3, 5), (6, 6)):
        index.set_position(revision)
        assert index.position() == remembered
    again = open_shared().index(gallery)
    assert (again.position(), len(again)) == (6, 1)


def test_a_position_is_lowered_on_purpose_alone(open_shared: OpenEngine) -> None:
    gallery = new_gallery()
    index, other = open_shared().index(gallery), open_shared().index(gallery)
    for put in (7, 9, 3):
        index.put_position(put, 10 + put)
        assert other.point() == (put, 10 + put)
    other.set_position(4)
    assert index.position() == 4


def test_a_position_of_another_history_is_told_and_stays(open_shared: OpenEngine) -> None:
    gallery, large = new_gallery(), 2**63 - 1
    index, other = open_shared().index(gallery), open_shared().index(gallery)
    assert index.set_position(7, large) == (7, large)
    for trail, there in (({5: 1, 6: 2, 7: 3, 8: 4}, (7, large)), ({6: 2, 7: large, 8: 4}, (8, 4)), ({8: 1}, (8, 4))):
        assert other.set_position(8, 4, trail=trail) == there
        assert index.point() == there


def made_anew(engine: IndexEngine, gallery: Gallery) -> EngineIndex:
    """As when a gallery leaves an extractor and comes back, or somebody has removed what an engine keeps."""
    engine.drop(storage_prefix(gallery))
    return engine.index(gallery)


def test_a_position_is_not_put_by_who_has_not_seen_that_all_was_made_anew(open_shared: OpenEngine) -> None:
    gallery = new_gallery()
    engine, index = open_shared(), open_shared().index(gallery)
    index.put_position(7)
    again = made_anew(engine, gallery)
    for put in (index.put_position, index.set_position):
        put(8)
        assert again.position() == -1


def test_what_is_made_anew_is_as_a_new_one(open_shared: OpenEngine) -> None:
    gallery, vectors = new_gallery(), unit_vectors(3, seed=0)
    engine = open_shared()
    before = engine.index(gallery)
    before.add(np.arange(3), vectors)
    before.set_position(7)
    index = made_anew(engine, gallery)
    assert (index.position(), len(index), index.ids().tolist()) == (-1, 0, [])
    assert index.search(vectors[:1], 5)[0].ids.tolist() == []
    index.add(np.arange(1), vectors[:1])
    index.set_position(2)
    assert (index.position(), len(index)) == (2, 1)


def test_a_follower_does_not_declare_a_half_filled_index_true(open_shared: OpenEngine) -> None:
    gallery, vectors = new_gallery(), unit_vectors(3, seed=0)
    engine, follower = open_shared(), open_shared().index(gallery)
    follower.set_position(7)
    filler = made_anew(engine, gallery)
    follower.add(np.array([9]), vectors[2:])
    follower.set_position(8)
    assert filler.position() == -1
    filler.add(np.arange(2), vectors[:2])
    filler.set_position(8)
    follower.set_position(9)
    assert (filler.position(), filler.ids().tolist()) == (9, [0, 1, 9])


def test_galleries_do_not_see_each_other(shared: IndexEngine) -> None:
    first, second = shared.index(new_gallery()), shared.index(new_gallery(dimension=16))
    first.add(np.array([1]), unit_vectors(1, seed=0))
    first.set_position(4)
    assert (len(second), second.position(), second.dimension) == (0, -1, 16)


def test_a_dropped_gallery_leaves_nothing(shared: IndexEngine) -> None:
    gallery, other = new_gallery(), new_gallery()
    kept = shared.index(other)
    kept.add(np.array([1]), unit_vectors(1, seed=0))
    index = shared.index(gallery)
    index.add(np.array([1]), unit_vectors(1, seed=0))
    index.set_position(4)
    assert shared.names(storage_prefix(gallery)) == [storage_name(gallery)]
    shared.drop(storage_prefix(gallery), but=storage_name(gallery))
    assert len(index) == 1
    shared.drop(storage_prefix(gallery))
    shared.drop(storage_prefix(gallery))
    assert shared.names(storage_prefix(gallery)) == []
    again = shared.index(gallery)
    assert (len(again), again.position(), len(kept)) == (0, -1, 1)


def test_ids_are_all_of_them_in_order(shared: IndexEngine) -> None:
    index = shared.index(new_gallery())
    assert index.ids().dtype == np.int64
    ids = np.random.default_rng(0).permutation(12_000)
    index.add(np.append(ids, 2**62), unit_vectors(12_001, seed=0))
    assert index.ids().tolist() == [*range(12_000), 2**62]


def test_a_name_is_made_of_gallery_extractor_and_moment() -> None:
    gallery = new_gallery()
    name = storage_name(gallery)
    assert name.startswith(storage_prefix(gallery))
    assert storage_prefix(gallery).startswith(f"gallery_{gallery.id}_")
    assert name == storage_name(replace(gallery, revision=9, name="renamed"))
    other = replace(gallery, extractor="net@ba9876543210")
    assert (name != storage_name(other), storage_prefix(other)) == (True, storage_prefix(gallery))
    later = replace(gallery, created_at=gallery.created_at + timedelta(microseconds=1))
    assert storage_prefix(later) != storage_prefix(gallery)


@pytest.mark.parametrize(
    ("kind", "address", "sentence"),
    [
        ("pgvector", EngineAddress("sqlite:///data/facegallery.db"), "set FACEGALLERY_DATABASE_URL to postgresql://"),
        ("milvus", EngineAddress("sqlite:///data/facegallery.db"), "set FACEGALLERY_MILVUS_URI to http://"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(kind: str, address: EngineAddress, sentence: str) -> None:
    with pytest.raises(IndexEngineUnusable, match=sentence):
        open_index_engine(kind, address)  # type: ignore[arg-type]


def test_an_address_does_not_print_its_passwords() -> None:
    address = EngineAddress("postgresql://me:secret@db/faces", "http://m:19530", "root:secret")
    assert "secret" not in repr(address)


def test_the_ids_of_very_many_templates_take_no_more_memory_than_arrays(shared: IndexEngine) -> None:
    index = shared.index(new_gallery())
    ids = np.arange(1000, 61_000)
    index.add(ids, unit_vectors(len(ids), seed=0))
    tracemalloc.start()
    try:
        found = index.ids()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, ids)
    assert peak < 47 * len(ids)
