import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, make_url

import app.access.tables  # noqa: F401  maps its tables on the same base
from app.gallery.errors import SchemaOutdated
from app.gallery.records import NewTemplate
from app.gallery.sql.database import open_engine, shown_database
from app.gallery.sql.migrations import check_schema, migrate
from app.gallery.store import GalleryStore
from app.gallery.tables import Base

NO_TABLES = (
    "^the database .+ has no tables yet; set FACEGALLERY_DATA_DIR or FACEGALLERY_DATABASE_URL if yours is elsewhere, "
    "else run `facegallery migrate`$"
)
TABLES = {"alembic_version", *Base.metadata.tables}


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"sqlite_sequence"}


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


def test_the_scripts_make_the_mapped_tables(empty_engine: Engine) -> None:
    migrate(empty_engine)
    assert tables(empty_engine) == TABLES
    assert differences(empty_engine) == []
    check_schema(empty_engine)


def test_the_way_down_and_up_again_gives_the_same_tables(engine: Engine) -> None:
    migrate(engine, "base")
    assert tables(engine) == {"alembic_version"}
    migrate(engine)
    assert tables(engine) == TABLES
    assert differences(engine) == []


def test_one_step_down_and_up_again(engine: Engine) -> None:
    migrate(engine, "-1")
    with pytest.raises(SchemaOutdated):
        check_schema(engine)
    migrate(engine)
    check_schema(engine)


def test_a_version_is_gone_to_by_its_id_in_both_directions(engine: Engine) -> None:
    migrate(engine, "0001")
    with pytest.raises(SchemaOutdated, match="version 0001"):
        check_schema(engine)
    migrate(engine, "head")
    check_schema(engine)


def test_migrating_what_is_up_to_date_keeps_everything(
    engine: Engine, store: GalleryStore, new_templates: Callable[[int], list[NewTemplate]]
) -> None:
    made = store.enroll("people", "anna", new_templates(2), metadata={"room": 1}, extractor="net@1", dimension=8)
    migrate(engine)
    assert store.subject("people", "anna") == made.subject


def test_an_empty_database_is_not_served(empty_engine: Engine) -> None:
    with pytest.raises(SchemaOutdated, match=NO_TABLES) as caught:
        check_schema(empty_engine)
    assert f"the database {shown_database(empty_engine)} has" in str(caught.value)
    assert tables(empty_engine) == set()


def test_an_empty_file_is_named_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine = open_engine("sqlite:///data/facegallery.db", timeout=1)
    with pytest.raises(SchemaOutdated, match=NO_TABLES) as caught:
        check_schema(engine)
    assert f" {tmp_path}/data/facegallery.db has no tables" in str(caught.value)
    engine.dispose()


def test_an_empty_postgresql_is_named_without_its_password(postgresql_url: str) -> None:
    url = make_url(postgresql_url).set(password="planted").update_query_dict({"sslpassword": "planted"})
    engine = open_engine(url.render_as_string(hide_password=False), timeout=30)
    with pytest.raises(SchemaOutdated, match=NO_TABLES) as caught:
        check_schema(engine)
    assert f"postgresql+psycopg://{url.username}:***@" in str(caught.value)
    assert "planted" not in str(caught.value)
    engine.dispose()


def test_an_outdated_database_is_not_served(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(
        SchemaOutdated, match=r"^the database has tables of version 0001, not \w+; run `facegallery migrate`$"
    ):
        check_schema(engine)


def test_a_database_of_a_newer_program_is_told_apart_from_an_outdated_one(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    for action in (check_schema, migrate):  # which cannot help here
        with pytest.raises(SchemaOutdated, match="version 9999, which only a newer program knows; run that one, or"):
            action(engine)


def test_several_migrations_at_once_are_done_once(database_url: str) -> None:
    def bring_up(_: int) -> None:
        engine = open_engine(database_url, timeout=30)
        migrate(engine)
        check_schema(engine)
        engine.dispose()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(bring_up, range(3)))


@pytest.mark.parametrize("limited_one", ["first", "second"])
@pytest.mark.parametrize("limit", ["idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout"])
def test_a_migration_takes_as_long_as_it_does_whatever_limits_the_server_sets(
    postgresql_url: str, limit: str, limited_one: str
) -> None:
    """One waits for a table, as if it made an index of a large one, and the other for the first one's lock."""
    url = make_url(postgresql_url)
    limited = url.update_query_dict({"options": f"{url.query['options']} -c {limit}=200"})
    long, short = (open_engine(one.render_as_string(hide_password=False), timeout=30) for one in (url, limited))
    first, second = (short, long) if limited_one == "first" else (long, short)
    migrate(long, "0009")
    with ThreadPoolExecutor(2) as pool:
        with long.begin() as holder, long.connect().execution_options(isolation_level="AUTOCOMMIT") as asking:
            holder.exec_driver_sql("LOCK TABLE subject IN ROW EXCLUSIVE MODE")

            def wait_for(waiting: int) -> None:
                query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = %s"
                until = time.monotonic() + 20
                for kind in ("relation", "advisory")[:waiting]:
                    while not asking.exec_driver_sql(query, (kind,)).scalar():
                        assert time.monotonic() < until
                        assert not [one.exception() for one in begun if one.done()]
                        time.sleep(0.01)

            begun = [pool.submit(migrate, first)]
            wait_for(1)
            begun.append(pool.submit(migrate, second))
            wait_for(2)
            time.sleep(0.5)
            wait_for(2)
        for one in begun:
            one.result(60)
    check_schema(long)
    for engine in (long, short):
        engine.dispose()
