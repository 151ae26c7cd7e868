"""What is left of a person after they were forgotten: nothing that opens."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, event, func, insert, select, text

from app.gallery.deadline import within
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.receipts import ReceiptSigner, Standing, check_receipt, standing
from app.gallery.errors import StorageUnwritable, SubjectNotFound
from app.gallery.records import Enrolment, Gallery, NewTemplate
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.sealing.encryption import SealedRows
from app.gallery.sealing.vault import Vault, open_vault
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.tables import KeyToDestroyRow, SubjectRow
from tests.databases import steps_of

Templates = Callable[[int], list[NewTemplate]]
OpenAgain = Callable[[], Vault]


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate]) -> Enrolment:
    return store.enroll("people", key, templates, metadata=None, extractor="net@1", dimension=8)


def key_of(engine: Engine, subject: str) -> str:
    with engine.connect() as connection:
        return str(
            connection.execute(text("SELECT key_id FROM subject WHERE key = :key"), {"key": subject}).scalar_one()
        )


def sealed_rows(engine: Engine) -> list[bytes]:
    with engine.connect() as connection:
        return [bytes(row.embedding) for row in connection.execute(text("SELECT embedding FROM template"))]


def test_forgetting_destroys_rows_and_key_and_signs_for_it(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, forgetting: Forgetting, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(2))
    enroll(sealed_store, "bob", new_templates(1))
    key_id = key_of(engine, "anna")
    followed: list[int] = []

    def erase_traces(gallery: Gallery, at_once: bool) -> int:
        assert at_once
        return gallery.revision

    forgetting.connect(follow=lambda gallery: followed.append(gallery.revision), erase_traces=erase_traces)
    receipt = forgetting.forget("people", "anna")
    assert check_receipt(receipt, forgetting.signer.public_key) == receipt
    assert receipt["erased"] == {"subjects": 1, "templates": 2, "keys": 1, "snapshots": 3}
    assert (receipt["gallery"], receipt["subject"], receipt["revision"], receipt["pending"]) == (
        "people",
        "anna",
        3,
        [],
    )
    assert followed == [3]
    assert vault.open_keys([key_id]) == {key_id: None}
    assert vault.open_keys([key_of(engine, "bob")]) != {}
    with pytest.raises(SubjectNotFound):
        forgetting.forget("people", "anna")


def test_who_is_enrolled_anew_while_an_erasure_ends_did_not_come_back(
    sealed_store: GalleryStore, forgetting: Forgetting, new_templates: Templates
) -> None:
    old = enroll(sealed_store, "anna", new_templates(1)).subject

    def erase_traces(_gallery: Gallery, _at_once: bool) -> int:
        enroll(sealed_store, "anna", new_templates(1))
        return 0

    forgetting.connect(follow=lambda _gallery: None, erase_traces=erase_traces)
    receipt = forgetting.forget("people", "anna")
    anew, gallery = sealed_store.subject("people", "anna"), sealed_store.gallery("people")
    assert old.created_at < datetime.fromisoformat(receipt["erased_at"]) < anew.created_at
    assert standing(receipt, gallery, anew) is Standing.ENROLLED_AGAIN
    assert standing(receipt, gallery, old) is Standing.CAME_BACK  # as a backup would bring it back


def test_an_older_subject_that_gets_the_key_of_a_forgotten_one_is_another(
    sealed_store: GalleryStore, forgetting: Forgetting, new_templates: Templates
) -> None:
    for key in ("anna", "bob"):
        enroll(sealed_store, key, new_templates(1))
    receipt = forgetting.forget("people", "bob")
    sealed_store.update_subject("people", "anna", new_key="bob")
    now_bob = sealed_store.subject("people", "bob")
    assert standing(receipt, sealed_store.gallery("people"), now_bob) is Standing.ENROLLED_AGAIN


def test_an_erasure_costs_the_same_however_many_were_erased_before(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, new_templates: Templates
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL does not say what a query costs it")
    costs = []
    for many in (10, 5000):
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?) "
                "INSERT INTO key_to_destroy SELECT ? || n, 1 FROM number",
                (many, f"{many} keys, number "),
            )
        enroll(sealed_store, "anna", new_templates(1))
        sealed_store.delete_subject("people", "anna")
        with steps_of(engine) as steps:
            assert forgetting.destroy_keys() == 1
        costs.append(len(steps))
    assert costs[1] - costs[0] < 5


def test_every_way_to_erase_a_subject_destroys_its_key(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, forgetting: Forgetting, new_templates: Templates
) -> None:
    for key in ("anna", "bob", "carl"):
        enroll(sealed_store, key, new_templates(1))
    keys = [key_of(engine, key) for key in ("anna", "bob", "carl")]
    sealed_store.delete_subject("people", "anna")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM subject WHERE key = 'bob'"))
    sealed_store.delete_gallery("people")  # the database's own cascade
    assert forgetting.destroy_keys() == 3
    assert vault.open_keys(keys) == dict.fromkeys(keys)
    assert forgetting.destroy_keys() == 0


@pytest.mark.parametrize("way", ["forget", "sweep"])
def test_snapshots_of_an_extractor_that_was_left_follow_the_erasure_of_who_was_set_aside(
    sealed_store: GalleryStore,
    sealed_history: GalleryHistory,
    forgetting: Forgetting,
    new_templates: Templates,
    way: str,
) -> None:
    anna = enroll(sealed_store, "anna", new_templates(1))
    bob = enroll(sealed_store, "bob", new_templates(1))
    gallery, moves = sealed_store.gallery("people"), ReembeddingStore(sealed_store.engine, sealed_store.seals)
    moves.add(gallery, "net@2", [bob.added[0].id], np.stack([one.embedding for one in new_templates(1)]))
    moves.switch(gallery, "net@2", dimension=8, unusable=(), with_crops=False, without_missing=True)
    assert sealed_store.subject("people", "anna").templates == 0
    moved = sealed_store.gallery("people")
    if moved.erasure is not None:
        sealed_history.snapshots_erased(moved.id, moved.erasure)
    if way == "forget":
        forgetting.forget("people", "anna")
    else:
        forgetting.erase_those(moved, [anna.subject.id], lambda _gallery, _row: True)
    assert sealed_store.gallery("people").erasure is not None


def test_a_merged_subjects_key_stays_with_the_other_and_goes_with_it(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, forgetting: Forgetting, new_templates: Templates
) -> None:
    """A backup from before the merge must open, and must not open any more when the person was forgotten."""
    for key in ("anna", "annie", "ann"):
        enroll(sealed_store, key, new_templates(1))
    keys = [key_of(engine, key) for key in ("anna", "annie", "ann")]
    sealed_store.merge_subjects("people", "annie", "anna")
    sealed_store.merge_subjects("people", "anna", "ann")
    assert forgetting.destroy_keys() == 0
    assert None not in vault.open_keys(keys).values()
    receipt = forgetting.forget("people", "ann")
    assert receipt["erased"] == {"subjects": 1, "templates": 3, "keys": 3, "snapshots": 0}
    assert vault.open_keys(keys) == dict.fromkeys(keys)


def test_an_erasure_that_is_rolled_back_destroys_no_key(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, forgetting: Forgetting, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    with engine.connect() as connection:
        connection.execute(text("DELETE FROM subject"))
        connection.rollback()
    assert forgetting.destroy_keys() == 0
    assert len(sealed_store.subject_embeddings(sealed_store.subject("people", "anna").id).ids) == 1


def test_a_vault_that_cannot_be_written_leaves_the_key_for_the_next_sweep(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, forgetting: Forgetting, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    key_id = key_of(engine, "anna")
    with vault.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=1")
    receipt = forgetting.forget("people", "anna")
    assert "key" in receipt["pending"]
    with pytest.raises(StorageUnwritable):
        forgetting.try_again()
    with vault.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=0")
    forgetting.try_again()
    assert vault.open_keys([key_id]) == {key_id: None}


def test_an_erasure_that_is_out_of_time_leaves_the_keys_of_others_to_the_next_sweep(
    engine: Engine,
    sealed_store: GalleryStore,
    vault: Vault,
    forgetting: Forgetting,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.gallery.erasure.forgetting._MANY", 2)
    enroll(sealed_store, "anna", new_templates(1))
    keys = [key_of(engine, "anna"), *(key.id for key in vault.new_keys("subject", 5))]
    with engine.begin() as connection:
        connection.execute(insert(KeyToDestroyRow), [{"key_id": one, "destroyed": False} for one in keys[1:]])
    with within(0):
        assert "key" in forgetting.forget("people", "anna")["pending"]
    assert forgetting.destroy_keys() == 4
    assert vault.open_keys(keys) == dict.fromkeys(keys)


class OnDisk:
    """A gallery in a folder: database, vault, master key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = open_engine(f"sqlite:///{(folder / 'gallery.db').as_posix()}", timeout=30)
        migrate(self.engine)
        vault_engine = open_engine(f"sqlite:///{(folder / 'vault.db').as_posix()}", timeout=30)
        self.vault = open_vault(vault_engine, master_key=None, master_key_file=folder / "master.key", expected=False)
        self.store = GalleryStore(self.engine, seals=SealedRows(self.vault))
        self.history = GalleryHistory(self.engine, SealedRows(self.vault))
        self.forgetting = Forgetting(self.engine, self.vault, ReceiptSigner(bytes(32)))

    def close(self) -> None:
        self.engine.dispose()
        self.vault.close()

    def opened(self) -> int:
        return sum(len(block.ids) for block in self.history.template_blocks(self.store.gallery("people").id))

    def content(self, name: str) -> bytes:
        return b"".join(path.read_bytes() for path in self.folder.glob(f"{name}.db*"))


def back_up(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as reader, closing(sqlite3.connect(target)) as writer:
        reader.backup(writer)


def test_an_erased_vector_is_gone_from_every_file_of_the_database(tmp_path: Path, new_templates: Templates) -> None:
    gallery = OnDisk(tmp_path)
    for number in range(30):
        enroll(gallery.store, f"person {number}", new_templates(3))
    before = sealed_rows(gallery.engine)
    assert all(row in gallery.content("gallery") for row in before)
    receipt = gallery.forgetting.forget("people", "person 7")
    assert receipt["pending"] == []
    after = sealed_rows(gallery.engine)
    gone = [row for row in before if row not in after]
    content = gallery.content("gallery")
    assert len(gone) == 3
    assert [row for row in gone if row in content or row[29:61] in content] == []
    assert all(row in content for row in after)
    gallery.close()


def test_a_reader_of_the_log_delays_the_cut_and_the_receipt_says_so(tmp_path: Path, new_templates: Templates) -> None:
    gallery = OnDisk(tmp_path)
    enroll(gallery.store, "anna", new_templates(1))
    (row,) = sealed_rows(gallery.engine)
    with gallery.engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM template")).scalar_one()
        assert gallery.forgetting.forget("people", "anna")["pending"] == ["database-log"]
        assert row in gallery.content("gallery")
    gallery.forgetting.try_again()
    assert row not in gallery.content("gallery")
    gallery.close()


def test_a_backup_restored_after_forgetting_does_not_open_and_is_erased_again(
    tmp_path: Path, new_templates: Templates
) -> None:
    gallery = OnDisk(tmp_path)
    enroll(gallery.store, "anna", new_templates(2))
    enroll(gallery.store, "bob", new_templates(1))
    back_up(tmp_path / "gallery.db", tmp_path / "backup")
    gallery.forgetting.forget("people", "anna")
    gallery.close()
    for path in tmp_path.glob("gallery.db*"):
        path.unlink()
    shutil.copy(tmp_path / "backup", tmp_path / "gallery.db")

    restored = OnDisk(tmp_path)
    assert restored.store.subject("people", "anna").templates == 2  # the rows are back …
    assert len(restored.store.subject_embeddings(restored.store.subject("people", "anna").id).ids) == 0  # … and closed
    assert restored.opened() == 1
    assert restored.forgetting.erase_what_came_back() == 1
    with pytest.raises(SubjectNotFound):
        restored.store.subject("people", "anna")
    assert restored.opened() == 1
    assert restored.forgetting.erase_what_came_back() == 0
    restored.close()


def test_an_old_vault_restored_after_forgetting_loses_the_key_again(tmp_path: Path, new_templates: Templates) -> None:
    gallery = OnDisk(tmp_path)
    enroll(gallery.store, "anna", new_templates(1))
    key_id = key_of(gallery.engine, "anna")
    back_up(tmp_path / "vault.db", tmp_path / "backup")
    gallery.forgetting.forget("people", "anna")
    gallery.close()
    for path in tmp_path.glob("vault.db*"):
        path.unlink()
    shutil.copy(tmp_path / "backup", tmp_path / "vault.db")

    restored = OnDisk(tmp_path)
    assert restored.vault.open_keys([key_id]) != {key_id: None}
    restored.forgetting.erase_what_came_back()
    assert restored.vault.open_keys([key_id]) == {key_id: None}
    restored.close()


def test_a_sweep_that_finds_nothing_to_erase_again_lets_others_write_to_the_vault(
    sealed_store: GalleryStore, vault: Vault, forgetting: Forgetting, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    forgetting.forget("people", "anna")
    statements = list[str]()

    @event.listens_for(vault.engine, "before_cursor_execute")
    def look(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    forgetting.erase_what_came_back()
    event.remove(vault.engine, "before_cursor_execute", look)
    assert statements
    assert [one for one in statements if one.startswith(("BEGIN IMMEDIATE", "UPDATE"))] == []


def test_many_who_came_back_are_erased_in_several_transactions(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, forgetting: Forgetting, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    keys, gallery_id = [one.id for one in vault.new_keys("subject", 250)], sealed_store.gallery("people").id
    with engine.begin() as connection:
        connection.execute(insert(SubjectRow), [{"gallery_id": gallery_id, "key": one, "key_id": one} for one in keys])
    vault.destroy(keys)
    left = set[int]()

    @event.listens_for(engine, "commit")
    def look(connection: Connection) -> None:
        left.add(connection.execute(select(func.count()).select_from(SubjectRow)).scalar_one())

    assert forgetting.erase_what_came_back() == 250
    event.remove(engine, "commit", look)
    assert left == {151, 51, 1}


def test_subjects_whose_key_is_missing_are_not_erased(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, new_templates: Templates
) -> None:
    """A vault that lost a key is to be restored; only a destroyed key proves that the person was forgotten."""
    enroll(sealed_store, "anna", new_templates(1))
    with engine.begin() as connection:
        connection.execute(text("UPDATE subject SET key_id = 'lost'"))
    assert forgetting.erase_what_came_back() == 0
    assert sealed_store.subject("people", "anna").templates == 1


# -- the tables


def test_going_down_opens_the_templates_and_going_up_leaves_them_to_the_start(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    templates = new_templates(3)
    enroll(sealed_store, "anna", templates)
    migrate(engine, "0001", vault=vault)
    assert sealed_rows(engine) == [one.embedding.tobytes() for one in templates]
    migrate(engine)
    assert len(GalleryStore(engine).subject_embeddings(1).ids) == 3


def test_going_down_to_nothing_needs_no_vault(
    engine: Engine, sealed_store: GalleryStore, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    migrate(engine, "base")


def test_a_reader_of_the_vaults_log_delays_its_cut_and_the_receipt_says_so(
    tmp_path: Path, new_templates: Templates
) -> None:
    gallery = OnDisk(tmp_path)
    enroll(gallery.store, "anna", new_templates(1))
    with gallery.vault.engine.connect() as reader:
        (wrapped,) = reader.execute(text("SELECT wrapped FROM data_key WHERE wrapped IS NOT NULL")).scalars()
        assert gallery.forgetting.forget("people", "anna")["pending"] == ["vault-log"]
        assert wrapped in gallery.content("vault")
    gallery.forgetting.try_again()
    assert wrapped not in gallery.content("vault")
    gallery.close()
