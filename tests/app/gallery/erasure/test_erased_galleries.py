"""A large gallery is erased in pieces, and gone for everybody from the first on."""

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import Connection, Engine, event, func, insert, select
from structlog.testing import capture_logs

from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.receipts import ReceiptSigner
from app.gallery.erasure.retention import Retention
from app.gallery.errors import Busy, GalleryNotFound
from app.gallery.records import NewTemplate
from app.gallery.sealing.vault import Vault
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import ChangeRow, KeyToDestroyRow, SubjectRow, TemplateRow
from tests.databases import others_wait

Templates = Callable[[int], list[NewTemplate]]


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate], gallery: str = "people") -> None:
    store.enroll(gallery, key, templates, metadata=None, extractor="net@1", dimension=8)


def subjects(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(SubjectRow)).scalar_one())


@pytest.fixture
def five(sealed_store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch) -> GalleryStore:
    """A store with five people in one gallery, of whom two are erased at once, and one in another."""
    monkeypatch.setattr("app.gallery.sql.erased_galleries._SUBJECTS", 2)
    monkeypatch.setattr("app.gallery.sql.erased_galleries._CHANGES", 4)
    for number in range(5):
        enroll(sealed_store, f"person {number}", new_templates(2))
    enroll(sealed_store, "zoe", new_templates(1), "others")
    return sealed_store


def test_nobody_finds_what_is_left_of_a_gallery_and_the_next_sweep_erases_it(
    engine: Engine, five: GalleryStore, forgetting: Forgetting, vault: Vault, new_templates: Templates
) -> None:
    gone, history = five.gallery("people"), GalleryHistory(engine)
    with engine.connect() as connection:
        keys = connection.execute(select(SubjectRow.key_id).where(SubjectRow.gallery_id == gone.id)).scalars().all()
    assert five.delete_gallery("people") == gone  # and here the process dies
    with engine.connect() as connection:
        assert subjects(connection) == 4
    assert [one.name for one in five.galleries()] == ["others"]
    assert [one.name for one in history.galleries(list(history.points())).values()] == ["others"]
    assert (history.gallery(gone.id), history.point(gone.id), five.sizes([gone])) == (None, None, {})
    with pytest.raises(GalleryNotFound, match="there is no gallery 'people'"):
        five.delete_gallery("people")
    enroll(five, "anna", new_templates(1))  # its name is free
    retention = Retention(engine, forgetting)
    assert retention.due() == {}
    retention.sweep()
    assert {one.key for name in ("people", "others") for one in five.subjects(name, after=0, limit=9).items} == {
        "anna",
        "zoe",
    }
    with engine.connect() as connection:
        tables = (SubjectRow, TemplateRow, ChangeRow)
        assert [connection.scalar(select(func.count()).select_from(table)) for table in tables] == [2, 2, 2]
        assert set(connection.execute(select(KeyToDestroyRow.key_id, KeyToDestroyRow.destroyed)).all()) == {
            (key, True) for key in keys
        }
    assert vault.open_keys([str(key) for key in keys]) == dict.fromkeys(keys)


def test_a_service_without_sweeps_ends_an_erasure_when_it_starts(
    engine: Engine, five: GalleryStore, forgetting: Forgetting, vault: Vault
) -> None:
    five.delete_gallery("people")
    Retention(engine, forgetting, interval=0).look()
    with engine.connect() as connection:
        assert subjects(connection) == 1
    assert sum(vault.wrapped_by().values()) == 1


def test_what_came_back_with_a_backup_is_not_looked_for_where_a_gallery_is_being_erased(
    engine: Engine, five: GalleryStore, forgetting: Forgetting, vault: Vault
) -> None:
    with engine.connect() as connection:
        vault.destroy([str(key) for key in connection.execute(select(SubjectRow.key_id)).scalars()])
    five.delete_gallery("people")
    assert forgetting.erase_what_came_back() == 1


def test_a_gallery_is_erased_a_piece_in_each_transaction_and_its_keys_with_it(
    engine: Engine, five: GalleryStore, forgetting: Forgetting
) -> None:
    left, listed = list[int](), select(func.count()).where(KeyToDestroyRow.destroyed.is_(False))
    most = list[int]()

    @event.listens_for(engine, "commit")
    def look(connection: Connection) -> None:
        left.append(subjects(connection))
        most.append(connection.scalar(listed) or 0)

    forgetting.erase_rest(five.delete_gallery("people"))
    event.remove(engine, "commit", look)
    assert left == [4, 2, 2, 1, 1, 1, 1]  # and then the ten changes, four at a time
    assert most == [2, 4, 0, 1, 0, 0, 0]
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(ChangeRow)) == 1


def test_a_vault_that_is_away_keeps_no_rows_of_a_gallery(
    engine: Engine, five: GalleryStore, forgetting: Forgetting, vault: Vault
) -> None:
    with vault.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=1")
    forgetting.erase_rest(five.delete_gallery("people"))
    with engine.connect() as connection:
        assert subjects(connection) == 1
    with vault.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=0")
    assert forgetting.destroy_keys() == 5


def test_a_small_gallery_goes_in_one_transaction(engine: Engine, store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(3))
    store.delete_gallery("people")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM gallery").scalar_one() == 0


def test_others_get_their_turn_while_a_gallery_is_erased(
    engine: Engine,
    store: GalleryStore,
    forgetting: Forgetting,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has them wait in a row")
    monkeypatch.setattr("app.gallery.sql.erased_galleries._SUBJECTS", 200)
    enroll(store, "anna", new_templates(1))
    row = {"gallery_id": store.gallery("people").id}
    with engine.begin() as connection:
        connection.execute(insert(SubjectRow), [row | {"key": str(number)} for number in range(1200)])
    with others_wait(engine, "DELETE FROM subject") as turns:
        forgetting.erase_rest(store.delete_gallery("people"))
    assert turns[-1] == 8


def test_what_cannot_be_erased_now_is_told_and_left_to_the_next_sweep(five: GalleryStore, vault: Vault) -> None:
    if five.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL locks single rows")
    gone, impatient = five.delete_gallery("people"), open_engine(str(five.engine.url), timeout=0.01)
    forgetting = Forgetting(impatient, vault, ReceiptSigner(bytes(32)))
    with closing(sqlite3.connect(str(five.engine.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with capture_logs() as logs:
            forgetting.erase_rest(gone)
        with pytest.raises(Busy):
            forgetting.try_again()
    assert [(line["event"], line["what"], line["gallery"]) for line in logs] == [("erasure.pending", "rows", "people")]
    forgetting.try_again()
    impatient.dispose()
    with five.engine.connect() as connection:
        assert subjects(connection) == 1
