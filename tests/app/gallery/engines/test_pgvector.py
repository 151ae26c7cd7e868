"""What only pgvector does: graphs, transactions, a server that goes away, a role without rights."""

import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import inspect, make_url

from app.gallery.deadline import WaitLimit, waiting_at_most
from app.gallery.engines import EngineAddress, open_index_engine, storage_prefix
from app.gallery.engines.hnsw import SCHEMA, graph_name
from app.gallery.engines.pgvector import _SETUP_LOCK, PgvectorEngine
from app.gallery.engines.pgvector_index import PgvectorIndex
from app.gallery.engines.postgresql import libpq_address
from app.gallery.errors import Busy, DatabaseUnavailable, IndexEngineUnusable
from app.gallery.records import Gallery
from app.gallery.sql.database import open_engine
from tests.app.gallery.engines.conftest import new_gallery
from tests.app.gallery.index.test_contract import DIMENSION, assert_nearest, unit_vectors
from tests.postgresql import postgresql


@pytest.fixture
def engine(postgresql_server: str) -> Iterator[PgvectorEngine]:
    engine = PgvectorEngine(postgresql_server, timeout=10, hnsw_above=1000)
    yield engine
    engine.close()


def graph_is_valid(address: str, index: PgvectorIndex) -> bool | None:
    """None where there is none."""
    with psycopg.connect(address) as connection:
        row = connection.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)",
            (f"{SCHEMA}.{graph_name(index.name)}",),
        ).fetchone()
    return None if row is None else bool(row[0])


def filled(engine: PgvectorEngine, gallery: Gallery, count: int) -> PgvectorIndex:
    index = engine.index(gallery)
    index.point()
    index.add(np.arange(count), unit_vectors(count, seed=0))
    index.set_position(1)
    engine.builder.wait(index.name)
    return index


def test_a_small_gallery_has_no_graph(engine: PgvectorEngine, postgresql_server: str) -> None:
    index = filled(engine, new_gallery(), 1000)
    assert graph_is_valid(postgresql_server, index) is None


def test_a_large_gallery_is_searched_by_graph(engine: PgvectorEngine, postgresql_server: str) -> None:
    index, vectors = filled(engine, new_gallery(), 3000), unit_vectors(3000, seed=0)
    assert graph_is_valid(postgresql_server, index)
    probes = unit_vectors(50, seed=1)
    found = index.search(probes, 10)
    distances = np.linalg.norm(vectors[None] - probes[:, None], axis=2)
    nearest = np.argsort(distances, axis=1)[:, :10]
    same = [len(set(one.ids.tolist()) & set(row.tolist())) for one, row in zip(found, nearest, strict=True)]
    assert sum(same) >= 0.98 * 500
    for one, row in zip(found, distances, strict=True):
        np.testing.assert_allclose(one.distances, row[one.ids], rtol=0, atol=1e-6)
        assert np.all(np.diff(one.distances) >= 0)


def test_a_graph_is_used(engine: PgvectorEngine, postgresql_server: str) -> None:
    index = filled(engine, new_gallery(), 3000)
    with psycopg.connect(postgresql_server) as connection:
        used = "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_all_indexes WHERE indexrelname = %s"
        index.search(unit_vectors(1, seed=1), 10)
        # The connection that searched reports what it did when it is given back to nobody, or after a second.
        engine.close()
        for _ in range(100):
            (scans,) = connection.execute(used, (graph_name(index.name),)).fetchone() or (0,)
            if scans:
                return
            connection.rollback()
            connection.execute("SELECT pg_sleep(0.05)")
    pytest.fail("the graph was not scanned")


@pytest.mark.parametrize("count", [501, 2000, 10**9])
def test_a_deep_search_of_a_large_gallery_is_exact(engine: PgvectorEngine, count: int) -> None:
    index = filled(engine, new_gallery(), 3000)
    probes = unit_vectors(2, seed=1)
    assert_nearest(index.search(probes, count), dict(enumerate(unit_vectors(3000, seed=0))), probes, count)


def test_what_is_removed_is_not_found_by_the_graph(engine: PgvectorEngine) -> None:
    index, vectors = filled(engine, new_gallery(), 3000), unit_vectors(3000, seed=0)
    gone = np.arange(0, 2990)
    assert index.remove(gone) == 2990
    index.add(np.arange(3000, 4500), np.repeat(-vectors[:1], 1500, axis=0))
    for found in index.search(vectors[:20], 400):
        assert len(found.ids) == 400
        assert found.ids.min() >= 2990


def test_a_build_that_did_not_end_is_begun_again(engine: PgvectorEngine, postgresql_server: str) -> None:
    index = filled(engine, new_gallery(), 1500)
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(%s)",
            (f"{SCHEMA}.{graph_name(index.name)}",),
        )
    other = PgvectorEngine(postgresql_server, timeout=10, hnsw_above=1000)
    try:
        assert filled(other, new_gallery(), 10).position() == 1
        again = PgvectorIndex(index._connections, other.builder, index.name, DIMENSION)
        again.point()
        other.builder.wait(index.name)
        assert graph_is_valid(postgresql_server, index)
    finally:
        other.close()


def test_an_index_that_is_made_anew_gets_its_graph_again(engine: PgvectorEngine, postgresql_server: str) -> None:
    gallery = new_gallery()
    index = filled(engine, gallery, 1500)
    engine.drop(storage_prefix(gallery))
    assert graph_is_valid(postgresql_server, index) is None
    filled(engine, gallery, 1500)
    assert graph_is_valid(postgresql_server, index)


def test_a_build_that_has_hardly_begun_is_given_up(engine: PgvectorEngine, postgresql_server: str) -> None:
    index = engine.index(new_gallery())
    index.add(np.arange(20_000), unit_vectors(20_000, seed=0))
    engine.builder.consider(index.name, templates=20_000, dimension=DIMENSION)
    engine.builder.forget(index.name)
    assert not graph_is_valid(postgresql_server, index)


def test_a_build_that_a_stuck_server_process_holds_up_is_left_behind(
    engine: PgvectorEngine, postgresql_server: str
) -> None:
    def give_up() -> None:
        with waiting_at_most(WaitLimit(total=0.1)), pytest.raises(Busy, match="still being built"):
            engine.builder.forget(index.name)
        engine.close()

    index = engine.index(new_gallery())
    index.point()
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(postgresql_server) as writing,
        psycopg.connect(postgresql_server, autocommit=True) as asking,
    ):
        # The build waits for whoever writes.
        writing.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(sql.Identifier(SCHEMA, index.name)))
        engine.builder.consider(index.name, templates=2000, dimension=DIMENSION)
        waiting = "SELECT pid FROM pg_stat_activity WHERE query LIKE %s AND wait_event_type = 'Lock'"
        while (found := asking.execute(waiting, (f"CREATE INDEX CONCURRENTLY%{index.name}%",)).fetchone()) is None:
            assert not engine.builder.wait(index.name, 0)
        os.kill(found[0], signal.SIGSTOP)
        try:
            pool.submit(give_up).result(60)
            assert not engine.builder.wait(index.name, 0)
            assert not engine._connections._idle
        finally:
            os.kill(found[0], signal.SIGCONT)
            writing.rollback()
    engine.builder.wait(index.name)


def test_a_graph_takes_as_long_as_it_does_whatever_limits_the_server_sets_for_statements(
    postgresql_server: str,
) -> None:
    limits = "-cstatement_timeout=1000 -clock_timeout=1000"
    address = make_url(postgresql_server).update_query_dict({"options": limits}).render_as_string(hide_password=False)
    with (
        closing(PgvectorEngine(address, timeout=10, hnsw_above=1000)) as engine,
        psycopg.connect(postgresql_server) as writing,
        psycopg.connect(postgresql_server, autocommit=True) as asking,
    ):
        index = filled(engine, new_gallery(), 100)
        # The build waits for whoever writes.
        writing.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(sql.Identifier(SCHEMA, index.name)))
        engine.builder.consider(index.name, templates=2000, dimension=DIMENSION)
        long = "SELECT FROM pg_stat_activity WHERE query LIKE %s AND clock_timestamp() > query_start + interval '1.5s'"
        while asking.execute(long, (f"CREATE INDEX CONCURRENTLY%{index.name}%",)).fetchone() is None:
            assert not engine.builder.wait(index.name, 0.05)
        writing.rollback()
        assert engine.builder.wait(index.name, 60)
        assert graph_is_valid(postgresql_server, index)


def test_what_the_server_is_set_to_holds_for_no_connection_of_the_engine(postgresql_server: str) -> None:
    url = make_url(postgresql_server).update_query_dict({"options": "-c TimeZone=Asia/Tokyo -c DateStyle=German"})
    address = url.render_as_string(hide_password=False)
    with closing(PgvectorEngine(address, timeout=10)) as engine, engine._connections.one() as connection:
        known = connection.info.parameter_status
        assert (known("TimeZone"), known("DateStyle"), known("client_encoding")) == ("UTC", "ISO, DMY", "UTF8")


def test_a_start_does_not_wait_for_ever_for_another_that_prepares_the_same(postgresql_server: str) -> None:
    def start() -> None:
        with waiting_at_most(WaitLimit(each=0.5)), pytest.raises(Busy, match="took too long"):
            PgvectorEngine(postgresql_server, timeout=5)

    PgvectorEngine(postgresql_server, timeout=5).close()
    with ThreadPoolExecutor(1) as pool, psycopg.connect(postgresql_server) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (_SETUP_LOCK,))
        pool.submit(start).result(60)


def test_a_transaction_that_is_longer_than_the_server_allows_is_busy(engine: PgvectorEngine) -> None:
    def take_long() -> None:
        with index._writing() as connection:
            connection.execute("SELECT set_config('transaction_timeout', '50', true)")
            connection.execute("SELECT pg_sleep(60)")

    index = filled(engine, new_gallery(), 10)
    with pytest.raises(Busy, match=r"^the database took too long; try again$"):
        take_long()
    assert [one.ids[0] for one in index.search(unit_vectors(10, seed=0), 1)] == list(range(10))


def write_and_remove(address: str, gallery: Gallery, seed: int) -> None:
    """What a process does: the same ids as the others, in its own order."""
    engine, random = PgvectorEngine(address, timeout=30), np.random.default_rng(seed)
    index, vectors = engine.index(gallery), unit_vectors(600, seed=5)
    for round_ in range(40):
        chosen = random.choice(600, 80, replace=False)
        index.add(chosen, vectors[chosen])
        index.remove(random.choice(500, 40, replace=False))
        index.set_position(round_)
    index.add(np.arange(500, 600), vectors[500:])
    engine.close()


def test_processes_that_write_the_same_templates_at_the_same_time(postgresql_server: str) -> None:
    gallery = new_gallery()
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        for writer in [pool.submit(write_and_remove, postgresql_server, gallery, seed) for seed in range(3)]:
            writer.result()
    engine = PgvectorEngine(postgresql_server, timeout=10)
    index, vectors = engine.index(gallery), unit_vectors(600, seed=5)
    ids = index.ids()
    assert len(index) == len(ids)
    assert set(range(500, 600)) <= set(ids.tolist())
    np.testing.assert_array_equal(index.vectors(ids), vectors[ids])
    assert index.position() == 39
    engine.close()


def test_what_is_there_already_is_not_written_again(engine: PgvectorEngine, postgresql_server: str) -> None:
    index = filled(engine, new_gallery(), 100)

    def versions() -> list[object]:
        with psycopg.connect(postgresql_server) as connection:
            table = sql.Identifier(SCHEMA, index.name)
            rows = connection.execute(sql.SQL("SELECT id, ctid, xmin::text FROM {} ORDER BY id").format(table))
            return list(rows.fetchall())

    before = versions()
    index.add(np.arange(100), unit_vectors(100, seed=0))
    assert versions() == before


def test_a_server_that_goes_away_and_comes_back() -> None:
    from tests.http.test_faults import postgres

    with postgresql() as server:
        engine = PgvectorEngine(server.address, timeout=1)
        gallery, vectors = new_gallery(), unit_vectors(2, seed=0)
        index = engine.index(gallery)
        index.add(np.array([1]), vectors[:1])
        postgres(server.data, "stop", "-m", "immediate")
        with pytest.raises(DatabaseUnavailable, match="the database"):
            index.search(vectors, 1)
        with pytest.raises(DatabaseUnavailable, match="the database"):
            index.add(np.array([2]), vectors[1:])
        with pytest.raises(DatabaseUnavailable, match="the database"):
            engine.index(gallery)
        options = (server.data / "postmaster.opts").read_text().split('"', 1)[1]
        postgres(server.data, "start", "-o", '"' + options.strip())
        index.add(np.array([2]), vectors[1:])
        assert [found.ids[0] for found in index.search(vectors, 1)] == [1, 2]
        engine.close()


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    address = EngineAddress("postgresql://127.0.0.1:1/none", timeout=1)
    with pytest.raises(DatabaseUnavailable, match="the database does not answer"):
        open_index_engine("pgvector", address)


def test_positions_from_before_marks_are_kept(bare_database: tuple[str, str]) -> None:
    address, _ = bare_database
    gallery = new_gallery()
    with closing(PgvectorEngine(address, timeout=5)) as before:
        before.index(gallery).set_position(5, 77)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER TABLE {} DROP mark").format(sql.Identifier(SCHEMA, "storage")))
    with closing(PgvectorEngine(address, timeout=5)) as after:
        assert after.index(gallery).point() == (5, 0)


def test_a_table_that_is_gone_is_said_and_made_again(engine: PgvectorEngine, postgresql_server: str) -> None:
    gallery = new_gallery()
    index = filled(engine, gallery, 10)
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(SCHEMA, index.name)))
    with pytest.raises(DatabaseUnavailable, match="run `facegallery reindex`"):
        index.search(unit_vectors(1, seed=0), 1)
    again = engine.index(gallery)
    assert (again.position(), len(again)) == (-1, 0)


def test_a_table_whose_position_is_gone_is_said_and_made_again(engine: PgvectorEngine, postgresql_server: str) -> None:
    gallery = new_gallery()
    index = filled(engine, gallery, 10)
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        query = sql.SQL("DELETE FROM {} WHERE name = %s").format(sql.Identifier(SCHEMA, "storage"))
        connection.execute(query, (index.name,))
    with pytest.raises(DatabaseUnavailable, match="run `facegallery reindex`"):
        index.search(unit_vectors(1, seed=0), 1)
    again = engine.index(gallery)
    assert (again.position(), len(again), again.ids().tolist()) == (-1, 0, [])


def test_a_table_whose_graph_is_being_built_keeps_no_other_from_being_dropped(
    engine: PgvectorEngine, postgresql_server: str
) -> None:
    gallery = new_gallery()
    moved = replace(gallery, extractor="other@ba9876543210")
    busy, _ = sorted(engine.index(one).name for one in (gallery, moved))
    with psycopg.connect(postgresql_server) as building:
        # What CREATE INDEX CONCURRENTLY holds.
        table = sql.Identifier(SCHEMA, busy)
        building.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(table))
        with pytest.raises(Busy, match="try again"):
            engine.drop(storage_prefix(gallery))
        assert engine.names(storage_prefix(gallery)) == [busy]
    engine.drop(storage_prefix(gallery))
    assert engine.names(storage_prefix(gallery)) == []


def test_who_waits_to_drop_a_table_keeps_nobody_from_making_one(engine: PgvectorEngine, postgresql_server: str) -> None:
    gallery = new_gallery()
    table = sql.Identifier(SCHEMA, engine.index(gallery).name)
    with (
        psycopg.connect(postgresql_server) as building,
        psycopg.connect(postgresql_server, autocommit=True) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        building.execute(sql.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(table))
        dropping = pool.submit(engine.drop, storage_prefix(gallery))
        while not (waiting := other.execute("SELECT pid FROM pg_locks WHERE NOT granted").fetchall()):
            assert not dropping.done()
        held = other.execute("SELECT pg_try_advisory_lock(%s)", (_SETUP_LOCK,)).fetchone()
        other.execute("SELECT pg_advisory_unlock_all()")
        assert (len(waiting), held, dropping.done()) == (1, (True,), False)
        building.rollback()
        dropping.result(60)
    assert engine.names(storage_prefix(gallery)) == []


@pytest.mark.parametrize(
    ("address", "known"),
    [
        (
            "postgresql://ann:a+%20%40b@one:5433/people?options=-csearch_path%3Dapp%20-cjit%3Doff",
            {
                "user": "ann",
                "password": "a+ @b",
                "host": "one",
                "port": "5433",
                "options": "-csearch_path=app -cjit=off",
            },
        ),
        ("postgres://ann@/people?host=/run/post%20gres", {"user": "ann", "host": "/run/post gres"}),
        ("postgresql://ann@/people?host=one:1&host=two:2", {"user": "ann", "host": "one,two", "port": "1,2"}),
        ("postgresql+psycopg://one,two/people", {"host": "one,two"}),
    ],
)
def test_an_address_means_to_pgvector_what_it_means_to_the_database(address: str, known: dict[str, str]) -> None:
    assert conninfo_to_dict(libpq_address(address)) == {"dbname": "people"} | known


@pytest.fixture
def bare_database(postgresql_server: str) -> Iterator[tuple[str, str]]:
    """A database without the extension: its owner's address, and that of a role without any right."""
    name, role = f"bare_{uuid.uuid4().hex[:8]}", f"role_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        url = make_url(postgresql_server).set(database=name)
        try:
            yield (
                url.render_as_string(hide_password=False),
                url.set(username=role).render_as_string(hide_password=False),
            )
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_what_was_dropped_and_made_anew_by_another_is_searched_without_a_start(
    bare_database: tuple[str, str],
) -> None:
    (address, _), gallery, probes = bare_database, new_gallery(), unit_vectors(5, seed=0)
    with closing(PgvectorEngine(address, timeout=5)) as engine:
        index = filled(engine, gallery, 5)
        for searched_meanwhile in (True, False):
            with psycopg.connect(address, autocommit=True) as connection:  # the extension, which is in it, goes as well
                connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(SCHEMA)))
            if searched_meanwhile:
                for _ in range(2):
                    with pytest.raises(DatabaseUnavailable, match="run `facegallery reindex`"):
                        index.search(probes, 1)
            with closing(PgvectorEngine(address, timeout=5)) as other:
                filled(other, gallery, 5)
            if not searched_meanwhile:
                with pytest.raises(DatabaseUnavailable, match="try again"):
                    index.search(probes, 1)
            index = engine.index(gallery)
            index.add(np.arange(5, 6), -probes[:1])
            assert [one.ids.tolist() for one in index.search(probes, 1)] == [[0], [1], [2], [3], [4]]


def test_a_role_without_rights_is_told_what_is_missing(bare_database: tuple[str, str]) -> None:
    owner, role = bare_database
    user = make_url(role).username or ""
    with pytest.raises(IndexEngineUnusable, match=f"^the database's role may not make the schema {SCHEMA}$"):
        PgvectorEngine(role, timeout=5)
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(*map(sql.Identifier, (SCHEMA, user))))
        with pytest.raises(IndexEngineUnusable, match="have a superuser run CREATE EXTENSION vector"):
            PgvectorEngine(role, timeout=5)
        connection.execute("CREATE EXTENSION vector")
    engine = PgvectorEngine(role, timeout=5)
    index = engine.index(new_gallery())
    index.add(np.array([1]), unit_vectors(1, seed=0))
    assert len(index) == 1
    engine.close()


def test_a_role_that_may_not_drop_a_table_is_told(bare_database: tuple[str, str]) -> None:
    owner, role = bare_database
    gallery, user = new_gallery(), sql.Identifier(make_url(role).username or "")
    of_owner = PgvectorEngine(owner, timeout=5)
    of_owner.index(gallery)
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(SCHEMA), user))
        connection.execute(sql.SQL("GRANT ALL ON {} TO {}").format(sql.Identifier(SCHEMA, "storage"), user))
    of_role = PgvectorEngine(role, timeout=5)
    with pytest.raises(IndexEngineUnusable, match=r"^the database's role may not drop tables$"):
        of_role.drop(storage_prefix(gallery))
    assert len(of_owner.names(storage_prefix(gallery))) == 1
    of_role.close()
    of_owner.close()


def test_alembic_does_not_see_the_engine(bare_database: tuple[str, str]) -> None:
    address, _ = bare_database
    engine = PgvectorEngine(address, timeout=5)
    engine.index(new_gallery())
    engine.close()
    database = open_engine(address, timeout=5)
    assert inspect(database).get_table_names() == []
    database.dispose()


def test_a_table_that_another_process_has_dropped_gets_its_graph_again(
    engine: PgvectorEngine, postgresql_server: str
) -> None:
    gallery = new_gallery()
    index = filled(engine, gallery, 1500)
    assert graph_is_valid(postgresql_server, index)
    with closing(PgvectorEngine(postgresql_server, timeout=10, hnsw_above=1000)) as other:
        other.drop(storage_prefix(gallery))
    again = filled(engine, gallery, 1500)  # as where a gallery comes back to its extractor
    assert graph_is_valid(postgresql_server, again)


def test_a_graph_that_another_process_has_dropped_is_looked_for_again(
    engine: PgvectorEngine, postgresql_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.engines.hnsw._LOOK_AGAIN_SECONDS", 0.0)
    gallery = new_gallery()
    index = filled(engine, gallery, 1500)
    with closing(PgvectorEngine(postgresql_server, timeout=10, hnsw_above=10**6)) as other:
        other.drop(storage_prefix(gallery))
        filled(other, gallery, 1500)
    assert graph_is_valid(postgresql_server, index) is None
    index.point()
    engine.builder.wait(index.name)
    assert graph_is_valid(postgresql_server, index)


def test_a_build_for_which_there_is_no_thread_is_begun_again(
    engine: PgvectorEngine, postgresql_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = new_gallery()
    index = engine.index(gallery)
    index.add(np.arange(1500), unit_vectors(1500, seed=0))

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(RuntimeError):
            index.point()
    index.point()
    assert engine.builder.wait(index.name, 60)
    assert graph_is_valid(postgresql_server, index)
