"""What an engine keeps of galleries that a restore has taken away is dropped, where nobody else can need it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, select
from structlog.testing import capture_logs

from app.gallery.engines import IndexEngine, storage_name, storage_prefix
from app.gallery.engines.leftovers import EngineLeftovers
from app.gallery.engines.pgvector import PgvectorEngine
from app.gallery.engines.protocol import STORAGE
from app.gallery.errors import Busy
from app.gallery.moving.backup import back_up, restore
from app.gallery.records import Gallery
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.tables import StorageToDropRow
from tests.app.gallery.engines.conftest import EXTRACTOR, new_gallery
from tests.app.gallery.engines.test_pgvector import bare_database
from tests.standby import Standby

__all__ = ["bare_database"]  # a fixture

OpenEngine = Callable[[], IndexEngine]


def made(store: GalleryStore, name: str) -> Gallery:
    return store.create_gallery(name, extractor=EXTRACTOR, dimension=8, policy=None)


@pytest.fixture
def shared(bare_database: tuple[str, str]) -> Iterator[PgvectorEngine]:
    """In a database in which there is nothing else."""
    with closing(PgvectorEngine(bare_database[0], timeout=10)) as engine:
        yield engine


@pytest.fixture
def two_stores(bare_database: tuple[str, str]) -> Iterator[list[GalleryStore]]:
    """Two services in schemas of one database, which share pgvector's schema."""
    stores = []
    for schema in ("one", "two"):
        with psycopg.connect(bare_database[0], autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        engine = open_engine(f"{bare_database[0]}&options=-csearch_path%3D{schema}", timeout=10)
        migrate(engine)
        stores.append(GalleryStore(engine))
    yield stores
    for store in stores:
        store.engine.dispose()


def test_tables_of_galleries_that_were_undone_go_at_the_second_sweep_and_no_others(
    shared: PgvectorEngine, two_stores: list[GalleryStore]
) -> None:
    one, two = two_stores
    kept, others = made(one, "kept"), made(two, "people")
    standby = Standby(one.engine)
    undone = made(one, "undone")
    for gallery in (kept, others, undone):
        shared.index(gallery)
    standby.promote()
    leftovers = EngineLeftovers(one.engine, shared)
    leftovers.sweep()
    assert len(shared.names(STORAGE)) == 3
    leftovers.sweep()
    assert shared.names(STORAGE) == sorted(map(storage_name, (kept, others)))


def test_nothing_is_dropped_where_somebody_elses_galleries_cannot_be_read(
    bare_database: tuple[str, str], shared: PgvectorEngine, two_stores: list[GalleryStore]
) -> None:
    made(two_stores[0], "people")
    shared.index(new_gallery())
    assert len(shared.nobodys()) == 1
    role = sql.Identifier(make_url(bare_database[1]).username or "")
    with psycopg.connect(bare_database[0], autocommit=True) as connection:
        connection.execute(sql.SQL("GRANT ALL ON SCHEMA facegallery_index, one TO {}").format(role))
        connection.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA facegallery_index, one TO {}").format(role))
    with closing(PgvectorEngine(bare_database[1], timeout=10)) as of_role:
        assert of_role.nobodys() == []


def test_nothing_is_dropped_where_the_galleries_are_in_another_database(shared: PgvectorEngine, tmp_path: Path) -> None:
    shared.index(new_gallery())
    assert shared.nobodys() == []
    database = open_engine(f"sqlite:///{tmp_path / 'gallery.db'}", timeout=10)
    migrate(database)
    leftovers = EngineLeftovers(database, shared)
    for _ in range(3):
        leftovers.sweep()
    assert len(shared.names(STORAGE)) == 1
    database.dispose()


def test_a_restore_has_services_drop_what_they_keep_of_galleries_that_it_takes_away(
    open_shared: OpenEngine, sqlite_url: str, tmp_path: Path
) -> None:
    shared, engine = open_shared(), open_engine(sqlite_url, timeout=10)
    migrate(engine)
    store = GalleryStore(engine)
    kept = made(store, "kept")
    back_up(sqlite_url, tmp_path / "copy.db")
    undone, erased = made(store, "undone"), made(store, "erased")
    for gallery in (kept, undone, erased, new_gallery()):
        shared.index(gallery)
    store.delete_gallery("erased")  # and no process lived to tell the engine
    store.delete_gallery("kept")  # which the copy brings back
    engine.dispose()
    restore(tmp_path / "copy.db", sqlite_url, timeout=10)
    EngineLeftovers(engine, shared).sweep()
    left = [shared.names(storage_prefix(gallery)) for gallery in (kept, undone, erased)]
    assert left == [[storage_name(kept)], [], []]
    engine.dispose()


@pytest.mark.parametrize("content", [None, b"", b"no database at all"])
def test_a_restore_to_a_place_without_a_database_has_nothing_dropped(
    sqlite_url: str, tmp_path: Path, content: bytes | None
) -> None:
    engine = open_engine(sqlite_url, timeout=10)
    migrate(engine)
    made(GalleryStore(engine), "people")
    engine.dispose()
    back_up(sqlite_url, tmp_path / "copy.db")
    for path in tmp_path.glob("gallery.db*"):
        path.unlink()
    if content is not None:
        (tmp_path / "gallery.db").write_bytes(content)
    assert restore(tmp_path / "copy.db", sqlite_url, timeout=10) == 1


def test_what_of_galleries_that_were_undone_is_dropped_is_logged_though_another_table_is_busy(
    bare_database: tuple[str, str], shared: PgvectorEngine, two_stores: list[GalleryStore]
) -> None:
    one, _ = two_stores
    made(one, "kept")
    standby = Standby(one.engine)
    first, second = (storage_name(made(one, name)) for name in ("first", "second"))
    for name in ("first", "second"):
        shared.index(one.gallery(name))
    standby.promote()
    leftovers = EngineLeftovers(one.engine, shared)
    leftovers.sweep()
    with psycopg.connect(bare_database[0]) as busy, capture_logs() as logs:
        busy.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier("facegallery_index", first)))
        with pytest.raises(Busy):
            leftovers.sweep()
    assert [log["table"] for log in logs if log["event"] == "index.dropped"] == [second]


def test_more_erased_galleries_than_a_query_takes_are_forgotten_a_day_later(
    shared: PgvectorEngine, two_stores: list[GalleryStore]
) -> None:
    one, _ = two_stores
    with one.engine.begin() as connection:  # of the time before there was an engine
        connection.exec_driver_sql(
            "INSERT INTO storage_to_drop (prefix, since) SELECT 'gallery_' || number || '_0123456789ab_', "
            "now() - interval '2 days' * sign(number - 1) FROM generate_series(1, 70000) AS number"
        )
    EngineLeftovers(one.engine, shared).sweep()
    with one.engine.connect() as connection:
        assert connection.scalars(select(StorageToDropRow.prefix)).all() == ["gallery_1_0123456789ab_"]


def test_a_sweep_compares_no_gallery_with_the_tables_of_all_others(
    shared: PgvectorEngine, two_stores: list[GalleryStore]
) -> None:
    one, _ = two_stores
    leftovers, called, compared = EngineLeftovers(one.engine, shared), list[str](), list[int]()
    for many in ("first", "second"):
        for number in range(15):
            shared.index(made(one, f"{many} {number}"))
        called.clear()
        sys.setprofile(lambda _frame, event, what: called.append(what.__name__) if event == "c_call" else None)
        leftovers.sweep()
        sys.setprofile(None)
        compared.append(called.count("startswith"))
    assert compared[1] - compared[0] < 30  # and not those of 15 with those of 15, several times
