"""A database is copied while it is written to, and comes back; nobody trusts what they knew of the time between."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url
from structlog.testing import capture_logs

from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention
from app.gallery.errors import BackupUnusable, Busy, DatabaseUnavailable, InvalidInput, StorageUnwritable
from app.gallery.index import ExactIndex
from app.gallery.moving import backup
from app.gallery.moving.backup import VAULT_TABLES, back_up, refuse_databases, restore
from app.gallery.moving.progress import not_shown
from app.gallery.records import NewTemplate
from app.gallery.sealing.vault import Vault, open_vault
from app.gallery.sql.database import open_engine
from app.gallery.sql.epochs import begin_epoch
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import check_schema, migrate
from app.gallery.store import GalleryStore
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from tests.dumping import Operator

Templates = Callable[[int], list[NewTemplate]]


def opened(address: str) -> GalleryStore:
    engine = open_engine(address, timeout=30)
    migrate(engine)
    return GalleryStore(engine)


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate], gallery: str = "people") -> None:
    store.enroll(gallery, key, templates, metadata=None, extractor="net@1", dimension=8)


def replica_of(store: GalleryStore, gallery: str = "people") -> GalleryReplica:
    return GalleryReplica(store.gallery(gallery), GalleryHistory(store.engine), partial(ExactIndex, 8))


def nearest(store: GalleryStore, replica: GalleryReplica, template: NewTemplate) -> str | None:
    """The key of the subject whose template the probe is."""
    replica.catch_up(*store.gallery("people").point)
    ((found, *_),) = replica.search(template.embedding[None], top_k=1, rule="best")
    return store.subjects_by_id([found.subject_id])[found.subject_id].key if found.distance < 1e-6 else None


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """PostgreSQL has backups of its own."""
    return sqlite_url


@pytest.fixture
def store(sqlite_url: str) -> Iterator[GalleryStore]:
    store = opened(sqlite_url)
    yield store
    store.close()


def test_a_copy_is_one_moment_of_a_database_that_is_written_to(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    templates = [new_templates(2) for _ in range(400)]
    begun, enough = threading.Event(), threading.Event()
    acknowledged = 0

    def write() -> None:
        nonlocal acknowledged
        for number, two in enumerate(templates):
            enroll(store, f"subject {number}", two)
            acknowledged += 1
            if number == 20:
                begun.set()
            if enough.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait(60)
    before = acknowledged
    back_up(sqlite_url, tmp_path / "copy.db")
    after = acknowledged + 1  # one may have been committed and not yet counted
    enough.set()
    writer.join()
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    shutil.copy(tmp_path / "copy.db", tmp_path / "again.db")  # a single file, with no log beside it
    copy = opened(f"sqlite:///{(tmp_path / 'again.db').as_posix()}")
    size = copy.size(copy.gallery("people"))
    assert before <= size.subjects <= after
    assert size.templates == 2 * size.subjects
    assert copy.gallery("people").revision == size.subjects
    copy.close()


def test_a_copy_of_many_pieces_is_of_the_moment_of_the_first(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    """SQLite by itself begins anew where others write between two pieces, and may never end."""
    enroll(store, "anna", new_templates(1))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE subject SET metadata = json_object('filling', hex(zeroblob(2500000)))")
    told = list[int]()

    @contextmanager
    def shown(_what: str, total: int) -> Iterator[Callable[[int], None]]:
        def tell(done: int) -> None:
            told.append(done)
            if len(told) < 30:
                enroll(store, f"late {len(told)}", new_templates(1))

        yield tell
        told.append(-total)

    size = back_up(sqlite_url, tmp_path / "copy.db", shown=shown)
    *pieces, total = told
    assert (len(pieces), sum(pieces), total) == (5, 5, -5)
    assert 4 * 2**20 < size <= 5 * 2**20
    copy = opened(f"sqlite:///{(tmp_path / 'copy.db').as_posix()}")
    assert [subject.key for subject in copy.subjects("people", after=0, limit=10).items] == ["anna"]
    copy.close()


def test_what_was_restored_is_what_was_copied(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    first, second, third = new_templates(3)
    enroll(store, "anna", [first])
    back_up(sqlite_url, tmp_path / "copy.db")
    enroll(store, "bob", [second])
    follower = replica_of(store)  # a service that goes on while the database is put back
    assert [nearest(store, follower, one) for one in (first, second)] == ["anna", "bob"]
    applied = follower.applied_revision
    assert restore(tmp_path / "copy.db", sqlite_url, timeout=30) == 1
    assert store.gallery("people").revision > applied
    assert [nearest(store, follower, one) for one in (first, second)] == ["anna", None]
    enroll(store, "carl", [third])
    assert [nearest(store, follower, one) for one in (first, second, third)] == ["anna", None, "carl"]
    assert [path.name for path in tmp_path.glob("*restoring*")] == []
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_a_new_copy_is_not_read_with_the_log_of_the_one_before(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(1))
    database, copies = str(make_url(sqlite_url).database), tmp_path / "copies"
    copies.mkdir()
    for suffix in ("", "-wal", "-shm"):  # as `cp` takes it while a service runs
        shutil.copy(f"{database}{suffix}", copies / f"copy.db{suffix}")
    assert (copies / "copy.db-wal").stat().st_size > 0
    (copies / "copy.db-journal").touch()
    enroll(store, "bob", new_templates(1))
    back_up(sqlite_url, copies / "copy.db")
    assert [path.name for path in copies.iterdir()] == ["copy.db"]
    restore(copies / "copy.db", sqlite_url, timeout=30)
    assert [subject.key for subject in store.subjects("people", after=0, limit=10).items] == ["anna", "bob"]


def test_a_restore_undoes_a_merge(
    sealed_store: GalleryStore, forgetting: Forgetting, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    for key in ("anna", "bob"):
        enroll(sealed_store, key, new_templates(2))
    back_up(sqlite_url, tmp_path / "copy.db")
    sealed_store.merge_subjects("people", "anna", "bob")
    forgetting.finish(sealed_store.gallery("people"))
    restore(tmp_path / "copy.db", sqlite_url, timeout=30)
    assert forgetting.erase_what_came_back() == 0
    for key in ("anna", "bob"):
        assert len(sealed_store.subject_embeddings(sealed_store.subject("people", key).id).ids) == 2


def test_whose_key_is_still_to_be_destroyed_comes_back_closed_and_is_erased_by_the_first_sweep(
    sealed_store: GalleryStore,
    forgetting: Forgetting,
    vault: Vault,
    sqlite_url: str,
    new_templates: Templates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.gallery.sql.erased_galleries._SUBJECTS", 1)
    people = {"people": ("anna", "bob", "carl", "zoe"), "erased": ("dora", "eva", "fred")}
    for gallery, keys in people.items():
        for key in keys:
            enroll(sealed_store, key, new_templates(1), gallery=gallery)
    back_up(sqlite_url, tmp_path / "copy.db")
    sealed_store.merge_subjects("people", "bob", "carl")
    sealed_store.merge_subjects("erased", "eva", "fred")
    with vault.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE UPDATE ON data_key BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
    for key in ("anna", "carl"):
        assert forgetting.forget("people", key)["pending"] == ["key"]
    sealed_store.delete_gallery("erased")  # and here the process dies: fred is left
    restore(tmp_path / "copy.db", sqlite_url, timeout=30)

    def open_people() -> set[str]:
        there = [one for name in people for one in sealed_store.subjects(name, after=0, limit=9).items]
        return {one.key for one in there if len(sealed_store.subject_embeddings(one.id).ids)}

    assert open_people() == {"zoe"}
    retention = Retention(sealed_store.engine, forgetting)
    with pytest.raises(StorageUnwritable):
        retention.sweep()
    assert open_people() == {"zoe"}
    with vault.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    assert retention.sweep().came_back == 6
    assert [one.key for name in people for one in sealed_store.subjects(name, after=0, limit=9).items] == ["zoe"]
    assert sum(vault.wrapped_by().values()) == 1


def test_what_cannot_be_read_of_erasures_stops_no_restore_and_is_told(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(1))
    back_up(sqlite_url, tmp_path / "copy.db")
    with capture_logs() as logs:
        restore(tmp_path / "copy.db", sqlite_url, timeout=30)
    assert logs == []
    with store.engine.begin() as connection:  # as another version may have them
        connection.exec_driver_sql("ALTER TABLE key_to_destroy RENAME TO later")
    store.close()
    with capture_logs() as logs:
        assert restore(tmp_path / "copy.db", sqlite_url, timeout=30) == 1
    assert [(line["event"], line["reason"]) for line in logs] == [("erasures.unknown", "no such table: key_to_destroy")]


@pytest.mark.parametrize("damage", ["the first page", "a page in the middle", "cut off", "another file"])
def test_a_copy_is_restored_over_a_damaged_database(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path, damage: str
) -> None:
    (template,) = new_templates(1)
    enroll(store, "anna", [template])
    back_up(sqlite_url, tmp_path / "copy.db")
    with store.engine.connect() as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'subject'"
        before = 4096 * (int(connection.exec_driver_sql(query).scalar_one()) - 1)
    store.close()
    database = Path(str(make_url(sqlite_url).database))
    content = database.read_bytes()
    damaged = {
        "the first page": b"\xff" * 4096 + content[4096:],
        "a page in the middle": content[:before] + b"\xff" * 4096 + content[before + 4096 :],
        "cut off": content[:5000],
        "another file": b"x" * 9000,
    }[damage]
    database.write_bytes(damaged)
    with pytest.raises(DatabaseUnavailable, match="damaged; restore a backup"):
        opened(sqlite_url).subject("people", "anna")
    assert restore(tmp_path / "copy.db", sqlite_url, timeout=30) == 1
    again = opened(sqlite_url)
    assert nearest(again, replica_of(again), template) == "anna"
    again.close()
    assert damaged in [path.read_bytes() for path in database.parent.glob(f"{database.name}.damaged-*")]


def test_nothing_is_written_over_the_running_database(sqlite_url: str) -> None:
    database = Path(str(make_url(sqlite_url).database))
    for file in (database, database.with_name(f"{database.name}-wal"), database.parent / "." / database.name):
        with pytest.raises(InvalidInput, match="belongs to the running database"):
            refuse_databases(file, [sqlite_url])
    refuse_databases(database.with_name("copy.db"), [sqlite_url, "postgresql://host/name"])


@pytest.mark.parametrize("clock", ["goes on", "stands still", "is of 1970"])
def test_the_same_copy_that_is_restored_twice_begins_two_epochs(
    store: GalleryStore,
    sqlite_url: str,
    new_templates: Templates,
    tmp_path: Path,
    clock: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if clock != "goes on":
        moment = time.time() if clock == "stands still" else 0.0
        monkeypatch.setattr("app.gallery.sql.epochs.time.time", lambda: moment)
    first, second, third = new_templates(3)
    enroll(store, "anna", [first])
    back_up(sqlite_url, tmp_path / "copy.db")
    restore(tmp_path / "copy.db", sqlite_url, timeout=30)
    enroll(store, "mallory", [second])
    source = IndexSource(folder=tmp_path / "index")

    def served() -> GalleryReplica:
        gallery, history = store.gallery("people"), GalleryHistory(store.engine)
        return GalleryReplica(gallery, history, partial(source.make, gallery), source.snapshots_of(gallery))

    before = served()
    assert nearest(store, before, second) == "mallory"
    before.on_disk.write()
    given_out = (store.subject("people", "mallory").id, store.templates("people", subject="mallory", after=0, limit=1))
    restore(tmp_path / "copy.db", sqlite_url, timeout=30)
    enroll(store, "bob", [third])
    for replica in (served(), before):
        assert [nearest(store, replica, one) for one in (first, second, third)] == ["anna", None, "bob"]
    assert store.subject("people", "bob").id != given_out[0]
    (template,) = store.templates("people", subject="bob", after=0, limit=1).items
    assert template.id != given_out[1].items[0].id
    assert max(template.id, store.gallery("people").revision) < 2**53


def test_a_new_gallery_is_never_taken_for_one_that_was_undone(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(1))
    back_up(sqlite_url, tmp_path / "copy.db")
    enroll(store, "zoe", new_templates(1), gallery="undone")
    undone = store.gallery("undone").id
    restore(tmp_path / "copy.db", sqlite_url, timeout=30)
    enroll(store, "carl", new_templates(1), gallery="new")
    assert store.gallery("new").id > undone


def test_a_database_that_is_gone_comes_back(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(2))
    back_up(sqlite_url, tmp_path / "copy.db")
    elsewhere = f"sqlite:///{(tmp_path / 'new' / 'gallery.db').as_posix()}"
    restore(tmp_path / "copy.db", elsewhere, timeout=30)
    copy = opened(elsewhere)
    assert copy.subject("people", "anna").templates == 2
    copy.close()


def test_an_older_copy_is_brought_up_to_date(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(1))
    migrate(store.engine, "-1")
    back_up(sqlite_url, tmp_path / "copy.db")
    restore(tmp_path / "copy.db", sqlite_url, timeout=30)
    check_schema(store.engine)
    assert store.subject("people", "anna").templates == 1


def test_what_is_no_copy_leaves_the_database_alone(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(1))
    back_up(sqlite_url, tmp_path / "copy.db")
    data = (tmp_path / "copy.db").read_bytes()
    (tmp_path / "cut.db").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.db").write_text("no database")
    with closing(sqlite3.connect(tmp_path / "foreign.db")) as foreign:
        foreign.execute("CREATE TABLE t (a)")
    shutil.copy(tmp_path / "copy.db", tmp_path / "newer.db")
    with closing(sqlite3.connect(tmp_path / "newer.db")) as newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
        newer.commit()
    before = store.gallery("people")
    for name in ("cut.db", "text.db", "foreign.db", "newer.db"):
        with pytest.raises(BackupUnusable):
            restore(tmp_path / name, sqlite_url, timeout=30)
    assert store.gallery("people") == before
    assert [path.name for path in tmp_path.glob("*restoring*")] == []


def test_a_second_restore_at_the_same_time_is_refused_and_the_first_is_whole(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(store, "anna", new_templates(2))
    back_up(sqlite_url, tmp_path / "copy.db")
    store.close()

    def second_meanwhile(*arguments: Any) -> None:
        with pytest.raises(Busy, match=r"another restore of .*gallery\.db is under way"):
            restore(tmp_path / "copy.db", sqlite_url, timeout=30)
        migrate(*arguments)

    monkeypatch.setattr(backup, "migrate", second_meanwhile)
    assert restore(tmp_path / "copy.db", sqlite_url, timeout=30) == 1
    assert store.subject("people", "anna").templates == 2


def test_a_draft_that_is_emptied_by_others_does_not_become_the_database(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(store, "anna", new_templates(2))
    back_up(sqlite_url, tmp_path / "copy.db")

    def emptied(engine: Engine) -> int:
        found = begin_epoch(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM gallery")
        return found

    monkeypatch.setattr(backup, "begin_epoch", emptied)
    with pytest.raises(BackupUnusable, match="was changed meanwhile"):
        restore(tmp_path / "copy.db", sqlite_url, timeout=30)
    assert store.subject("people", "anna").templates == 2


def test_what_a_killed_restore_left_is_removed_by_the_next(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(2))
    back_up(sqlite_url, tmp_path / "copy.db")
    program = (
        "import os, signal, sys; from pathlib import Path; from app.gallery.moving import backup\n"
        "backup.migrate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "backup.restore(Path(sys.argv[1]), sys.argv[2], timeout=30)"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "copy.db"), sqlite_url], check=False)
        assert done.returncode == -signal.SIGKILL
        assert len(list(tmp_path.glob("gallery.db.restoring-*"))) == 1
    (tmp_path / "gallery.db.restoring-mine").mkdir()  # of no restore's name
    assert store.subject("people", "anna").templates == 2
    assert restore(tmp_path / "copy.db", sqlite_url, timeout=30) == 1
    assert [path.name for path in tmp_path.glob("*restoring*")] == ["gallery.db.restoring-mine"]


def test_a_database_that_others_hold_is_waited_for_no_longer_than_the_timeout(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(2))
    back_up(sqlite_url, tmp_path / "copy.db")
    with closing(sqlite3.connect(str(make_url(sqlite_url).database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Busy, match="is in use; stop the services"):
            restore(tmp_path / "copy.db", sqlite_url, timeout=0.1)
    assert store.subject("people", "anna").templates == 2


def test_a_database_that_is_locked_after_the_first_look_is_not_waited_for_either(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(2))
    back_up(sqlite_url, tmp_path / "copy.db")
    database = Path(str(make_url(sqlite_url).database))
    with closing(sqlite3.connect(database, isolation_level=None)) as other:

        class Copy(sqlite3.Connection):
            def backup(self, *arguments: Any, **named: Any) -> None:
                other.execute("BEGIN IMMEDIATE")
                super().backup(*arguments, **named)

        with (
            closing(sqlite3.connect(tmp_path / "copy.db", factory=Copy)) as copy,
            pytest.raises(Busy, match="is in use; stop the services"),
        ):
            backup._copy_into(database, copy, 0.1, not_shown)
    assert store.subject("people", "anna").templates == 2


@contextmanager
def as_somebody(closed: Path) -> Iterator[None]:
    """Without the rights of root, and with nothing but reading in a folder."""
    for path in closed.iterdir():
        path.chmod(0o444)
    closed.chmod(0o555)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was == 0:
            os.seteuid(0)
        closed.chmod(0o755)


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder that others than this user reach, too."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    (tmp_path / "closed").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new").chmod(0o777)
    return tmp_path


@pytest.mark.parametrize("log", ["without a log", "with a log", "with a log, through a link"])
def test_a_copy_in_wal_mode_is_restored_from_a_place_where_nothing_can_be_written(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, open_path: Path, log: str
) -> None:
    enroll(store, "anna", new_templates(2))
    closed, database = open_path / "closed", str(make_url(sqlite_url).database)
    if log != "without a log":  # as `cp` takes it while the service is stopped halfway
        shutil.copy(database, closed / "copy.db")
        shutil.copy(f"{database}-wal", closed / "copy.db-wal")
        assert (closed / "copy.db-wal").stat().st_size > 0
    else:  # as `.backup` of the sqlite3 program makes it
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(closed / "copy.db")) as copy:
            source.backup(copy)
        assert (closed / "copy.db").read_bytes()[18:20] == b"\2\2"
    before = sorted(path.name for path in closed.iterdir())
    named = closed / "copy.db"
    if log.endswith("link"):
        named = open_path / "latest.db"
        named.symlink_to(closed / "copy.db")
    elsewhere = f"sqlite:///{(open_path / 'new' / 'gallery.db').as_posix()}"
    with as_somebody(closed):
        assert restore(named, elsewhere, timeout=30) == 1
    copy_of = opened(elsewhere)
    assert copy_of.subject("people", "anna").templates == 2
    copy_of.close()
    assert sorted(path.name for path in closed.iterdir()) == before


@pytest.mark.parametrize("log", [True, False])
def test_nothing_is_left_beside_a_copy(
    store: GalleryStore, sqlite_url: str, new_templates: Templates, tmp_path: Path, log: bool
) -> None:
    enroll(store, "anna", new_templates(2))
    database, copies = str(make_url(sqlite_url).database), tmp_path / "copies"
    copies.mkdir()
    if log:  # as `cp` takes it
        shutil.copy(f"{database}-wal", copies / "copy.db-wal")
        shutil.copy(database, copies / "copy.db")
    else:
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copies / "copy.db")) as copy:
            source.backup(copy)
    before = {path.name: path.read_bytes() for path in copies.iterdir()}
    enroll(store, "bob", new_templates(1))
    assert restore(copies / "copy.db", sqlite_url, timeout=30) == 1
    assert [subject.key for subject in store.subjects("people", after=0, limit=10).items] == ["anna"]
    assert {path.name: path.read_bytes() for path in copies.iterdir()} == before


def test_a_file_that_others_have_open_is_restored_as_it_is_at_one_moment(
    sqlite_url: str, new_templates: Templates, tmp_path: Path
) -> None:
    others = opened(f"sqlite:///{(tmp_path / 'others.db').as_posix()}")
    others.create_gallery("people", extractor="net@1", dimension=8, policy=None)
    enroll(others, "anna", new_templates(1))
    assert (tmp_path / "others.db-shm").exists()
    assert restore(tmp_path / "others.db", sqlite_url, timeout=30) == 1
    enroll(others, "bob", new_templates(1))
    here = opened(sqlite_url)
    assert [[one.key for one in store.subjects("people", after=0, limit=9).items] for store in (here, others)] == [
        ["anna"],
        ["anna", "bob"],
    ]
    here.close()
    others.close()


def test_the_vault_is_copied_on_its_own(vault: Vault, store: GalleryStore, sqlite_url: str, tmp_path: Path) -> None:
    key = vault.new_key("subject")
    address = vault.engine.url.render_as_string()
    assert back_up(address, tmp_path / "copy.db", tables=VAULT_TABLES) > 0
    engine = open_engine(f"sqlite:///{(tmp_path / 'copy.db').as_posix()}", timeout=30)
    copy = open_vault(engine, master_key=None, master_key_file=tmp_path / "master.key", expected=True)
    assert copy.open_keys([key.id]) == {key.id: key.secret}
    copy.close()
    with pytest.raises(BackupUnusable):
        back_up(sqlite_url, tmp_path / "wrong.db", tables=VAULT_TABLES)
    with pytest.raises(BackupUnusable, match="that is a copy of a vault, which is put back as a file"):
        restore(tmp_path / "copy.db", sqlite_url, timeout=30)


def test_a_copy_that_fails_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "gallery.db").write_text("no database")
    for name in ("copy.db", "copy.db-wal"):
        (tmp_path / name).write_text("old")
    with pytest.raises(BackupUnusable, match="cannot be copied"):
        back_up(f"sqlite:///{(tmp_path / 'gallery.db').as_posix()}", tmp_path / "copy.db")
    assert [(tmp_path / name).read_text() for name in ("copy.db", "copy.db-wal")] == ["old", "old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "copy.db-wal", "gallery.db"]


def test_postgresql_has_tools_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(BackupUnusable, match=r"use pg_dump, or `facegallery export` for single galleries$"):
        back_up("postgresql://localhost/x", tmp_path / "copy.db")
    with pytest.raises(BackupUnusable, match="use pg_dump for the vault's database, and keep that copy apart"):
        back_up("postgresql://localhost/x", tmp_path / "copy.db", tables=VAULT_TABLES)
    with pytest.raises(BackupUnusable, match="use pg_restore and then `facegallery restore`"):
        restore(tmp_path / "copy.db", "postgresql://localhost/x", timeout=1)


def test_pg_dump_and_pg_restore(postgresql_server: str, new_templates: Templates, tmp_path: Path) -> None:
    first, second, third = new_templates(3)

    operator = Operator(postgresql_server, tmp_path)
    store = opened(operator.address)
    enroll(store, "anna", [first])
    operator.dump()
    enroll(store, "bob", [second])
    follower = replica_of(store)
    assert [nearest(store, follower, one) for one in (first, second)] == ["anna", "bob"]
    operator.restore()
    assert [nearest(store, follower, one) for one in (first, second)] == ["anna", None]
    enroll(store, "carl", [third])
    assert [nearest(store, follower, one) for one in (first, second, third)] == ["anna", None, "carl"]
    assert (
        min(store.subject("people", "carl").id, store.templates("people", subject="carl", after=0, limit=1).items[0].id)
        > 2**22
    )
    store.close()
