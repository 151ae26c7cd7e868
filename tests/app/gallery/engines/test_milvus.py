"""What only Milvus does: searches by graph, a limit of what it answers with, a server that goes away."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.engines import EngineAddress, open_index_engine
from app.gallery.engines.milvus import MilvusEngine
from app.gallery.engines.milvus_index import MilvusIndex
from app.gallery.errors import DatabaseUnavailable
from app.gallery.index.protocol import SetBack
from app.gallery.matching import find_candidates
from app.gallery.records import Gallery
from app.gallery.views.owners import TemplateOwners
from tests.app.gallery.engines.conftest import milvus_server, new_gallery
from tests.app.gallery.index.test_contract import assert_nearest, unit_vectors


@pytest.fixture
def engine(milvus_uri: str) -> Iterator[MilvusEngine]:
    engine = MilvusEngine(milvus_uri, timeout=30)
    yield engine
    engine.close()


def test_a_search_by_graph_finds_the_nearest(engine: MilvusEngine) -> None:
    index, vectors = engine.index(new_gallery()), unit_vectors(3000, seed=0)
    index.add(np.arange(3000), vectors)
    probes = unit_vectors(50, seed=1)
    distances = np.linalg.norm(vectors[None] - probes[:, None], axis=2)
    nearest = np.argsort(distances, axis=1)[:, :10]
    found = index.search(probes, 10)
    same = [len(set(one.ids.tolist()) & set(row.tolist())) for one, row in zip(found, nearest, strict=True)]
    assert sum(same) >= 0.98 * 500
    for one, row in zip(found, distances, strict=True):
        np.testing.assert_allclose(one.distances, row[one.ids], rtol=0, atol=1e-6)


def test_a_search_for_more_than_milvus_answers_with_reads_everything(engine: MilvusEngine) -> None:
    index, vectors = engine.index(new_gallery()), unit_vectors(16_500, seed=0)
    index.add(np.arange(16_500), vectors)
    probes = unit_vectors(2, seed=1)
    assert_nearest(index.search(probes, 16_450), dict(enumerate(vectors)), probes, 16_450)


def test_an_identify_waits_once_for_what_others_write(engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    index, vectors, asked = engine.index(new_gallery()), unit_vectors(200, seed=0), list[object]()
    for name in ("search", "query"):
        call = getattr(index.client, name)

        def watched(*arguments: Any, call: Callable[..., Any] = call, **options: Any) -> Any:
            asked.append(options["consistency_level"])
            return call(*arguments, **options)

        monkeypatch.setattr(index.client, name, watched)
    index.add(np.arange(200), vectors)
    owners = TemplateOwners(np.arange(200), np.arange(200) // 2)
    for waits in (1, 0):
        asked.clear()
        ((nearest, *_),) = find_candidates(index, owners, vectors[:1], top_k=1)
        assert nearest.template_id == 0
        assert asked.count("Session") == len(asked) - waits
    index.remove(np.array([1]))
    asked.clear()
    assert np.isnan(index.vectors(np.array([1]))).all()
    assert asked == ["Strong"]


def test_a_search_waits_for_what_another_has_told_again_of_what_was_lost(
    engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 0.0)
    gallery, vectors, levels = new_gallery(), unit_vectors(3, seed=0), list[object]()
    index, other, by_hand = (engine.index(gallery) for _ in range(3))
    index.add(np.arange(3), vectors)
    for one in (index, other):
        one.set_position(7, 70)
    nearest, search = found_by(index, vectors), index.client.search
    by_hand.put_position(5, 50)
    with pytest.raises(SetBack):
        index.search(vectors, 2)
    assert other.set_position(7, 70, trail={5: 50, 7: 70}) == (7, 70)
    assert index.set_position(7, 70, trail={7: 70}) == (7, 70)  # and has nothing to tell

    def watched(*arguments: Any, **options: Any) -> Any:
        levels.append(options["consistency_level"])
        return search(*arguments, **options)

    monkeypatch.setattr(index.client, "search", watched)
    for _ in range(2):
        assert found_by(index, vectors) == nearest
    assert levels == ["Strong", "Session"]


def found_by(index: MilvusIndex, vectors: NDArray[np.float32]) -> list[list[int]]:
    return [one.ids.tolist() for one in index.search(vectors, 2)]


@pytest.mark.parametrize("meanwhile", ["nothing", "search", "vectors"])
def test_a_collection_that_another_fills_anew_is_not_searched_between_two_looks(
    milvus_uri: str, engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 3600.0)
    gallery, vectors = new_gallery(), unit_vectors(3, seed=0)
    index = engine.index(gallery)
    index.add(np.arange(3), vectors)
    index.set_position(1)
    nearest = found_by(index, vectors)
    assert [ids[0] for ids in nearest] == [0, 1, 2]
    with closing(MilvusEngine(milvus_uri, timeout=30)) as other:
        index.client.drop_collection(index.name)  # by somebody's hand
        if meanwhile != "nothing":
            with pytest.raises(DatabaseUnavailable, match="Milvus does not"):
                index.search(vectors, 2) if meanwhile == "search" else index.vectors(np.arange(3))
        again = other.index(gallery)
        for count in (1, 2):
            again.add(np.arange(count), vectors[:count])
            with pytest.raises(DatabaseUnavailable, match="filled anew"):
                index.search(vectors, 2)
        again.add(np.arange(3), vectors)
        again.set_position(1)
        assert found_by(index, vectors) == nearest


@pytest.mark.parametrize("at", ["search", "query"])
def test_neither_of_two_searches_at_once_is_answered_from_a_collection_that_another_fills_anew(
    milvus_uri: str, engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 3600.0)
    gallery, vectors, others = new_gallery(), unit_vectors(3, seed=0), list[object]()
    index, call = engine.index(gallery), getattr(engine._client, at)
    index.add(np.arange(3), vectors)
    index.set_position(1)
    nearest = found_by(index, vectors)
    with closing(MilvusEngine(milvus_uri, timeout=30)) as other:
        index.client.drop_collection(index.name)  # by somebody's hand
        again = other.index(gallery)

        def searched_meanwhile(*arguments: Any, **options: Any) -> Any:
            answer = call(*arguments, **options)
            if not others:
                others.append(answer)
                with pytest.raises(DatabaseUnavailable, match="filled anew"):
                    index.search(vectors, 2)
            return answer

        with monkeypatch.context() as patched:
            patched.setattr(index.client, at, searched_meanwhile)
            with pytest.raises(DatabaseUnavailable, match="filled anew"):
                index.search(vectors, 2)
        again.add(np.arange(3), vectors)
        again.set_position(1)
        assert others
        assert found_by(index, vectors) == nearest


def test_what_a_server_has_lost_is_missed_by_every_search_until_it_is_told_again(
    engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 3600.0)
    gallery, vectors = new_gallery(), unit_vectors(3, seed=0)
    index, by_hand = engine.index(gallery), engine.index(gallery)
    index.add(np.arange(3), vectors)
    index.set_position(7, 70)
    nearest = index.search(vectors, 3)
    by_hand.remove(np.array([2]))
    by_hand.put_position(5, 50)
    for count in (3, 2):
        with pytest.raises(SetBack):
            index.search(vectors, count)
    index.add(np.array([2]), vectors[2:])
    index.set_position(7, 70, trail={5: 50, 7: 70})
    for found, before in zip(index.search(vectors, 3), nearest, strict=True):
        assert found.ids.tolist() == before.ids.tolist()


def test_who_is_in_a_collection_that_another_has_filled_anew_is_found_between_two_looks(
    milvus_uri: str, engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 3600.0)
    gallery, vectors = new_gallery(), unit_vectors(3, seed=0)
    index, search = engine.index(gallery), engine._client.search
    index.add(np.arange(3), vectors)
    index.set_position(1)
    nearest = found_by(index, vectors)
    with closing(MilvusEngine(milvus_uri, timeout=30)) as other:
        index.client.drop_collection(index.name)
        again = other.index(gallery)

        def filled_meanwhile(*arguments: Any, **options: Any) -> Any:
            answer = search(*arguments, **options)
            again.add(np.arange(3), vectors)
            again.set_position(1)
            return answer

        with monkeypatch.context() as patched:
            patched.setattr(index.client, "search", filled_meanwhile)
            assert found_by(index, vectors) == nearest
        index.remove(np.array([1, 2]))  # fewer than before, and no reason to look
        monkeypatch.setattr(index, "_row", None)
        assert found_by(index, vectors) == [[0]] * 3


def test_those_that_make_a_collection_at_once_all_get_it(milvus_uri: str, engine: MilvusEngine) -> None:
    other, start = MilvusEngine(milvus_uri, timeout=30), threading.Barrier(4)

    def make(engine: MilvusEngine, gallery: Gallery) -> int:
        start.wait(60)
        return engine.index(gallery).position()

    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            assert list(pool.map(make, [engine, engine, other, other], [new_gallery()] * 4)) == [-1] * 4
    other.close()


def test_a_server_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    with milvus_server(tmp_path) as server:
        engine = MilvusEngine(server.uri, timeout=2)
        gallery, vectors = new_gallery(), unit_vectors(2, seed=0)
        index = engine.index(gallery)
        index.add(np.array([1]), vectors[:1])
        index.set_position(1)
        server.stop()
        with pytest.raises(DatabaseUnavailable, match="Milvus does not"):
            index.search(vectors, 1)
        with pytest.raises(DatabaseUnavailable, match="Milvus does not"):
            index.add(np.array([2]), vectors[1:])
        server.start()
        restarted = MilvusEngine(server.uri, timeout=10)
        assert restarted.index(gallery).position() == 1
        index.add(np.array([2]), vectors[1:])
        assert [found.ids[0] for found in index.search(vectors, 1)] == [1, 2]
        restarted.close()
        engine.close()


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="Milvus does not"):
        open_index_engine("milvus", EngineAddress("", "http://127.0.0.1:1", timeout=1))


def test_an_address_that_is_none_is_said() -> None:
    with pytest.raises(DatabaseUnavailable, match="uri: nowhere is illegal"):
        open_index_engine("milvus", EngineAddress("", "nowhere", timeout=1))
