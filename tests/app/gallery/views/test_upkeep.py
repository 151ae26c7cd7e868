"""What goes on in the background of each process: following, rebuilding, letting go, reporting."""

import errno
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, text

from app.gallery.deadline import WaitLimit, waiting_at_most
from app.gallery.errors import Busy, StorageUnwritable
from app.gallery.index import SegmentedIndex
from app.gallery.index.parts import Segment
from app.gallery.index.upkeep import build as real_build
from app.gallery.records import Gallery, NewTemplate, TemplateBlock
from app.gallery.sql.database import open_engine
from app.gallery.sql.followers import Report
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.tables import FollowerRow
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.replicas import Replicas
from app.gallery.views.upkeep import Upkeep
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR
from tests.app.gallery.index.test_contract import unit_vectors

pytestmark = pytest.mark.galleries("people")
Templates = Callable[[int], list[NewTemplate]]


@pytest.fixture
def history(store: GalleryStore) -> GalleryHistory:
    return GalleryHistory(store.engine)


@pytest.fixture
def source(tmp_path: Path) -> IndexSource:
    return IndexSource(folder=tmp_path / "index", snapshot_interval=0.001)


class Process:
    """What one process of a service has: a view of the gallery, and its upkeep."""

    def __init__(self, store: GalleryStore, source: IndexSource, history: GalleryHistory | None = None) -> None:
        gallery = store.gallery("people")
        self.store = store
        self.history = history or GalleryHistory(store.engine)
        make_index, snapshots = partial(source.make, gallery), source.snapshots_of(gallery)
        self.replica = GalleryReplica(gallery, self.history, make_index, snapshots, tended=True)
        self.served = [self.replica]
        self.upkeep = Upkeep(lambda: list(self.served), self.history, source, drop=self.served.remove, pause=0.01)

    def find(self, templates: list[NewTemplate]) -> list[int | None]:
        self.replica.catch_up(*self.store.gallery("people").point)
        return self.found(templates)

    def found(self, templates: list[NewTemplate]) -> list[int | None]:
        ranked = self.replica.search(np.stack([one.embedding for one in templates]), top_k=1, rule="best")
        return [near[0].subject_id if near and near[0].distance < 1e-3 else None for near in ranked]

    def damage(self) -> None:
        """Lose all templates from memory."""
        index = self.replica.view.index
        assert isinstance(index, SegmentedIndex)
        index.remove(index.ids())


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate]) -> int:
    made = store.enroll("people", key, templates, metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
    return made.subject.id


def files(source: IndexSource) -> list[str]:
    assert source.folder is not None
    return [path.name for path in source.folder.rglob("*") if path.is_file()]


# -- a gallery that is gone


def test_galleries_that_come_and_go_leave_no_open_file(store: GalleryStore, source: IndexSource) -> None:
    replicas = Replicas(store, GalleryHistory(store.engine), source, extractor=EXTRACTOR)
    for _ in range(3):
        store.create_gallery("brief", extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
        replica = replicas.up_to_date("brief")
        assert replica.snapshots is not None
        assert replica.snapshots.lead()
        assert [name for name in open_files() if name.startswith(str(source.folder))] != []
        replicas.follow(store.delete_gallery("brief"))
        assert [name for name in open_files() if name.startswith(str(source.folder))] == []
    replicas.stop()


def test_a_gallery_that_is_gone_leaves_memory_at_once(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    """And not when garbage is collected next: what was loaded at the start is frozen for that, and never is."""
    replicas = Replicas(store, GalleryHistory(store.engine), source, extractor=EXTRACTOR)
    enroll(store, "anna", new_templates(2))
    index = weakref.ref(replicas.up_to_date("people").view.index)
    gc.disable()
    try:
        replicas.follow(store.delete_gallery("people"))
        assert index() is None
    finally:
        gc.enable()
        replicas.stop()


def open_files() -> list[str]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found.append(str(path.readlink()))
    return found


@pytest.mark.parametrize("has_written", [True, False])
def test_a_gallery_that_was_erased_elsewhere_leaves_disk_and_memory(
    store: GalleryStore, source: IndexSource, new_templates: Templates, has_written: bool
) -> None:
    enroll(store, "anna", new_templates(2))
    leader = Process(store, source)
    if has_written:
        leader.upkeep.tick()
        assert files(source) != []
    else:
        leader.find(new_templates(1))
    gallery = store.gallery("people")
    source.forget(gallery)  # what another process does
    store.delete_gallery("people")
    source.erase_snapshots(gallery)
    leader.upkeep.tick()
    assert leader.served == []
    assert files(source) == []
    leader.upkeep.stop()
    assert files(source) == []


def test_a_gallery_that_was_erased_elsewhere_gets_no_last_snapshot(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(2))
    leader = Process(store, source)
    leader.find(new_templates(1))
    source.forget(store.gallery("people"))
    store.delete_gallery("people")
    leader.upkeep.stop()
    assert files(source) == []


def test_a_gallery_that_is_erased_while_its_snapshot_is_written_leaves_none(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(2))
    gallery = store.gallery("people")

    class Erased(GalleryHistory):
        """In which the gallery is erased right after somebody has seen it there."""

        def gallery(self, gallery_id: int) -> Gallery | None:
            found = super().gallery(gallery_id)
            if found is not None:
                source.forget(gallery)
                store.delete_gallery("people")
                source.erase_snapshots(gallery)
            return found

    writer = Process(store, source, Erased(store.engine))
    writer.find(new_templates(1))
    assert writer.replica.on_disk.write() is None
    assert files(source) == []


def test_who_follows_a_move_while_the_upkeep_looks_leaves_the_lead_to_others(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(2))

    def move(extractor: str) -> None:
        with store.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE gallery SET extractor = '{extractor}', revision = revision + 1")

    class Moves(GalleryHistory):
        """In which the gallery moves right after the upkeep has read it, and a request follows that."""

        def galleries(self, ids: Sequence[int]) -> dict[int, Gallery]:
            found = super().galleries(ids)
            move("other@1")
            replicas.follow(store.gallery("people"))
            return found

    history = Moves(store.engine)
    replicas = Replicas(store, history, source, extractor=EXTRACTOR)
    replicas.up_to_date("people")
    Upkeep(replicas.all, history, source).tick()
    assert replicas.all() == []
    move(EXTRACTOR)
    back = replicas.up_to_date("people")
    assert back.snapshots is not None
    assert back.snapshots.lead()
    replicas.stop()


def test_a_gallery_of_another_extractor_is_let_go_and_keeps_its_files(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(2))
    process = Process(store, source)
    process.upkeep.tick()
    before = files(source)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE gallery SET extractor = 'other@1', revision = revision + 1")
    process.upkeep.tick()
    assert process.served == []
    assert files(source) == before


# -- rebuilds


def test_a_rebuild_reaches_who_leads_and_who_does_not(
    store: GalleryStore, source: IndexSource, history: GalleryHistory, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    both = [Process(store, source), Process(store, source)]
    for process in both:
        process.upkeep.tick()
        process.damage()
        assert process.find(templates) == [None] * 3
    history.request_rebuild("people")
    for process in both:
        process.upkeep.tick()
        assert process.found(templates) == [anna] * 3
        assert not process.replica.rebuild_wanted


def test_a_rebuild_that_is_wanted_outlasts_a_stop(
    store: GalleryStore, source: IndexSource, history: GalleryHistory, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    process = Process(store, source)
    process.upkeep.tick()
    process.damage()
    history.request_rebuild("people")
    assert process.find(templates) == [None] * 3
    assert process.replica.on_disk.write() is None
    process.upkeep.stop()
    again = Process(store, source)
    again.upkeep.tick()
    assert again.found(templates) == [anna] * 3


def test_an_erasure_while_a_rebuild_is_wanted_leaves_no_snapshot(
    store: GalleryStore, source: IndexSource, history: GalleryHistory, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(2))
    process = Process(store, source)
    process.upkeep.tick()
    history.request_rebuild("people")
    store.delete_subject("people", "anna")
    process.find(new_templates(1))
    assert process.replica.erase_snapshots() == 1
    assert not any("vectors" in name for name in files(source))


class Endless(GalleryHistory):
    """In which reading all templates never comes to an end, once it should not."""

    endless = False

    def __init__(self, store: GalleryStore) -> None:
        super().__init__(store.engine)
        self.begun = threading.Event()

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        for block in super().template_blocks(gallery_id):
            yield block
            while self.endless:
                self.begun.set()
                yield block


def test_a_stop_does_not_wait_for_a_rebuild(store: GalleryStore, source: IndexSource, new_templates: Templates) -> None:
    templates = new_templates(2)
    anna = enroll(store, "anna", templates)
    history = Endless(store)
    process = Process(store, source, history)
    process.find(templates)
    process.upkeep.start()
    history.endless = True
    history.request_rebuild("people")
    assert history.begun.wait(60)
    process.upkeep.stop()
    assert process.replica.rebuild_wanted
    assert process.found(templates) == [anna] * 2


def test_a_stop_does_not_wait_for_a_first_load(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(2))
    history = Endless(store)
    history.endless = True
    process = Process(store, source, history)
    process.upkeep.start()
    assert history.begun.wait(60)
    process.upkeep.stop()
    assert process.replica.applied_revision == -1


def test_a_stop_does_not_wait_for_a_database_that_does_not_answer(
    postgresql_url: str, source: IndexSource, new_templates: Templates
) -> None:
    engine = open_engine(postgresql_url, timeout=30)
    migrate(engine)
    store = GalleryStore(engine)
    store.create_gallery("people", extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
    enroll(store, "anna", new_templates(2))
    process = Process(store, source)
    process.find(new_templates(1))
    process.upkeep.start()
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'gallery'::regclass")
    try:
        with engine.connect() as holder, engine.connect() as asking:
            holder.execute(text("LOCK TABLE gallery IN ACCESS EXCLUSIVE MODE"))
            while not asking.scalar(waiting):
                pass
            with waiting_at_most(WaitLimit(total=1)):
                process.upkeep.stop()
            until = time.monotonic() + 15  # the server hears of it a moment later; of 30 s nobody waits for the half
            while asking.scalar(waiting):
                assert time.monotonic() < until
    finally:
        engine.dispose()


@pytest.mark.parametrize(("what", "has_last_snapshot"), [("meet", False), ("chores", True)])
def test_a_stop_leaves_behind_what_takes_long(
    store: GalleryStore,
    source: IndexSource,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    has_last_snapshot: bool,
) -> None:
    monkeypatch.setattr("app.gallery.views.upkeep._LAST_PIECE", 0.1)
    begun, goes_on = threading.Event(), threading.Event()

    def long(*_: object) -> None:
        begun.set()
        goes_on.wait(60)

    process = Process(store, source)
    process.upkeep.tick()  # leads, and has written a snapshot
    options: dict[str, Any] = {"meet": long} if what == "meet" else {"chores": [long]}
    upkeep = Upkeep(lambda: [process.replica], process.history, source, pause=0.01, **options)
    upkeep.start()
    assert begun.wait(60)
    assert process.replica.snapshots is not None
    enroll(store, "anna", new_templates(1))
    process.find(new_templates(1))
    upkeep.stop()
    assert (process.replica.snapshots.revisions == [1]) == has_last_snapshot
    goes_on.set()


def test_a_chore_that_takes_long_holds_up_no_index(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def sweep() -> None:
        begun.set()
        goes_on.wait(60)

    process = Process(store, source)
    upkeep = Upkeep(lambda: [process.replica], process.history, source, chores=[sweep], pause=0.01)
    upkeep.start()
    assert begun.wait(60)
    enroll(store, "anna", new_templates(1))
    until = time.monotonic() + 30
    while process.replica.applied_revision < 1:
        assert time.monotonic() < until
        time.sleep(0.01)
    goes_on.set()
    upkeep.stop()


def test_a_rebuild_that_cannot_be_switched_to_stays_wanted(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    class Gappy(GalleryHistory):
        """In which others write while everything is read, and the changes are dropped at once."""

        gap = False

        def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
            yield from super().template_blocks(gallery_id)
            if self.gap:
                enroll(store, "bob", new_templates(1))
                self.report(gallery_id, "all", store.gallery("people").revision)
                self.prune(gallery_id)

    templates = new_templates(2)
    anna = enroll(store, "anna", templates)
    history = Gappy(store.engine)
    process = Process(store, source, history)
    process.find(templates)
    process.damage()
    history.request_rebuild("people")
    process.find(templates)
    history.gap = True
    process.replica.rebuild()
    assert process.replica.rebuild_wanted
    history.gap = False
    process.upkeep.tick()
    assert process.found(templates) == [anna] * 2
    assert not process.replica.rebuild_wanted


def test_what_is_built_is_compressed_before_it_is_searched(
    store: GalleryStore, tmp_path: Path, history: GalleryHistory, new_templates: Templates
) -> None:
    templates = new_templates(5000)
    subjects = [enroll(store, f"{first}", templates[first : first + 500]) for first in range(0, 5000, 500)]
    process = Process(store, IndexSource(kind="compressed", folder=tmp_path / "index"))

    def compressed() -> bool:
        index = process.replica.view.index
        assert isinstance(index, SegmentedIndex)
        return index.compressed and not index.maintain()

    assert process.find(templates[::500]) == subjects
    assert compressed()
    history.request_rebuild("people")
    process.find(templates[:1])
    process.replica.rebuild()
    assert compressed()
    assert process.found(templates[::500]) == subjects


def test_writers_that_are_faster_than_building_do_not_hold_up_what_else_is_to_be_done(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, builds = Process(store, IndexSource(kind="flat")), list[Segment | None]()
    process.find(new_templates(1))
    index, embeddings = process.replica.view.index, unit_vectors(4096, seed=0, dimension=DIMENSION)
    index.add(np.arange(4096), embeddings)

    def build(*arguments: Any, **options: Any) -> Segment | None:
        builds.append(real_build(*arguments, **options))
        if len(builds) < 50:
            index.add(4096 * len(builds) + np.arange(4096), embeddings)
        return builds[-1]

    monkeypatch.setattr("app.gallery.index.segmented.build", build)
    process.upkeep.tick()
    assert 0 < len(builds) < 50


# -- following


def test_a_process_that_nobody_asks_follows(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.sql.history._MANY", 4)
    templates = new_templates(60)
    first, second = Process(store, source), Process(store, source)
    for process in (first, second):
        process.upkeep.tick()
    subjects = [enroll(store, f"{number}", [template]) for number, template in enumerate(templates)]
    seen: list[int] = []
    replayed = second.history.changes

    def changes(gallery_id: int, *, after: int, up_to: int) -> list[Any]:
        seen.append(second.replica.applied_revision)
        return replayed(gallery_id, after=after, up_to=up_to)

    monkeypatch.setattr(second.history, "changes", changes)
    for process in (first, second):
        process.upkeep.tick()
        assert process.found(templates) == subjects
    assert len(seen) > 10
    assert seen == sorted(set(seen))  # each slice was there for others before the next was read


def test_nobody_waits_for_a_large_index(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(5)
    anna = enroll(store, "anna", templates)
    small = Process(store, source)
    assert small.find(templates) == [anna] * 5
    monkeypatch.setattr("app.gallery.views.gallery_reading._LARGE", 4)
    large = Process(store, source)
    with pytest.raises(Busy):
        large.find(templates)
    assert (large.replica.awaited(), small.replica.awaited()) == (True, False)
    large.upkeep.tick()
    assert not large.replica.awaited()
    assert large.find(templates) == [anna] * 5
    bob = enroll(store, "bob", more := new_templates(1))
    carl = enroll(store, "carl", last := new_templates(1))
    large.history.report(store.gallery("people").id, "all", 2)
    large.history.prune(store.gallery("people").id)
    enroll(store, "carl", new_templates(1))
    with large.store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM change WHERE revision <= 2")
    with pytest.raises(Busy):
        large.find(templates)
    assert large.replica.awaited()
    large.upkeep.tick()
    assert not large.replica.awaited()
    assert large.find([*templates, *more, *last]) == [anna] * 5 + [bob, carl]


def test_a_gallery_is_loaded_from_a_database_that_can_only_be_read(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    class ReadOnly(GalleryHistory):
        """As of a database whose disk is full, or that is a standby."""

        def report_all(self, reports: Iterable[Report]) -> None:
            raise StorageUnwritable(f"the database is read-only: {reports}")

    templates = new_templates(2)
    anna = enroll(store, "anna", templates)
    process = Process(store, source, ReadOnly(store.engine))
    process.upkeep.tick()
    assert process.found(templates) == [anna] * 2
    process.upkeep.stop()


@pytest.mark.galleries("broken")
def test_a_gallery_that_cannot_be_loaded_for_an_unknown_reason_takes_no_other_down(
    store: GalleryStore, new_templates: Templates, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(GalleryHistory):
        def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
            if gallery_id == store.gallery("broken").id:
                raise ArithmeticError("what nobody has thought of")
            return super().template_blocks(gallery_id)

    enroll(store, "anna", new_templates(3))
    replicas = Replicas(store, Broken(store.engine), IndexSource(), extractor=EXTRACTOR)
    replicas.start([])
    assert {one.name: one.applied_revision for one in replicas.all()} == {"broken": -1, "people": 1}
    replicas.stop()
    told = "".join(capsys.readouterr())
    assert "gallery.refused" in told
    assert "Traceback" in told


def test_a_gallery_that_becomes_servable_is_loaded_in_the_background(
    store: GalleryStore, history: GalleryHistory, new_templates: Templates
) -> None:
    replicas = Replicas(store, history, IndexSource(), extractor="other@1")
    replicas.start([])
    assert replicas.all() == []
    enroll(store, "anna", new_templates(3))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE gallery SET extractor = 'other@1', mark = 1")
    until = time.monotonic() + 60
    while not any(one.applied_revision == 1 for one in replicas.all()):
        assert time.monotonic() < until
        time.sleep(0.05)
    (replica,) = replicas.all()
    assert (replica.applied_revision, replica.templates) == (1, 3)
    replicas.stop()


def test_where_there_is_no_folder_for_snapshots_each_process_tends_its_own(
    store: GalleryStore, tmp_path: Path, new_templates: Templates, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index").write_text("a file where a folder should be")
    source = IndexSource(kind="compressed", folder=tmp_path / "index", snapshot_interval=0.001)
    process = Process(store, source)
    process.find(new_templates(1))
    templates = new_templates(5000)
    for first in range(0, 5000, 500):
        enroll(store, f"{first}", templates[first : first + 500])
    for _ in range(3):
        process.upkeep.tick()
    index = process.replica.view.index
    assert isinstance(index, SegmentedIndex)
    assert index.compressed
    process.upkeep.stop()
    told = "".join(capsys.readouterr())  # which of both it is depends on who set logging up
    assert told.count("snapshot.no_folder") == 1
    assert "upkeep.failed" not in told


def test_where_files_cannot_be_locked_nobody_leads_and_what_was_erased_leaves_the_snapshots(
    store: GalleryStore,
    source: IndexSource,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    templates = new_templates(2)
    enroll(store, "anna", templates[:1])
    bob = enroll(store, "bob", templates[1:])
    before = Process(store, source)
    before.upkeep.tick()
    before.upkeep.stop()
    assert any("vectors" in name for name in files(source))

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("app.gallery.snapshots.lead.fcntl.flock", flock)
    monkeypatch.setattr("app.gallery.views.snapshot_keeping._LEADER_SILENT", 0)
    process = Process(store, source)
    process.upkeep.tick()
    store.delete_subject("people", "anna")
    process.upkeep.tick()
    assert process.found(templates) == [None, bob]
    assert store.gallery("people").erasure is None
    assert not any("vectors" in name for name in files(source))
    told = "".join(capsys.readouterr())  # which of both it is depends on who set logging up
    assert (told.count("snapshot.no_folder"), told.count("No locks available")) == (1, 1)


def test_who_leads_is_not_taken_for_silent_because_it_had_nothing_to_do(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("anna", "bob", "carl"):
        enroll(store, key, new_templates(1))
    leader, follower = both = Process(store, source), Process(store, source)
    for process in both:
        process.upkeep.tick()
    store.delete_subject("people", "anna")
    for process in (follower, leader, follower):
        process.upkeep.tick()
    late = time.monotonic() + 3600
    monkeypatch.setattr("app.gallery.views.upkeep.time.monotonic", lambda: late)
    store.delete_subject("people", "bob")
    follower.upkeep.tick()
    assert any("vectors" in name for name in files(source))
    leader.upkeep.tick()
    assert store.gallery("people").erasure is None


LOOKS = """
import os, sys, threading
from sqlalchemy import create_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.views.index_source import IndexSource
from app.gallery.views.upkeep import Upkeep
from app.telemetry import set_up_logging
set_up_logging(form="json", level="info")
engine, looked = create_engine("sqlite://"), threading.Event()  # without tables, so that each look has something to log
upkeep = Upkeep(lambda: [], GalleryHistory(engine), IndexSource(), chores=[looked.set])
os.nice(int(sys.argv[1]))
if os.geteuid() == 0:
    os.seteuid(65534)  # only root may raise a priority
upkeep.start()
print("looked" if looked.wait(30) else "never")
upkeep.stop()
"""


def looks(log: Path, *, nice: int) -> list[str]:
    """Whether the upkeep of a process does what it has to do."""
    command = [sys.executable, "-c", LOOKS, str(nice)]
    with log.open("a") as errors:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False).stdout.split()


def test_a_process_of_a_very_low_priority_has_an_upkeep(tmp_path: Path) -> None:
    assert looks(tmp_path / "log", nice=15) == ["looked"]
    assert "upkeep.failed" in (tmp_path / "log").read_text()


def test_a_log_that_cannot_be_written_does_not_end_the_upkeep() -> None:
    assert looks(Path("/dev/full"), nice=0) == ["looked"]


def test_who_does_not_lead_helps_itself_when_the_leader_cannot_write(
    store: GalleryStore, tmp_path: Path, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.index.segmented._LONG", 2)
    source = IndexSource(kind="compressed", folder=tmp_path / "index", snapshot_interval=0.001)
    leader, follower = Process(store, source), Process(store, source)
    assert leader.replica.snapshots is not None
    assert leader.replica.snapshots.lead()  # and never writes
    templates = new_templates(9500)

    def tended(first: int, last: int) -> bool:
        for one in range(first, last, 500):
            enroll(store, f"{one}", templates[one : one + 500])
        follower.upkeep.tick()
        index = follower.replica.view.index
        assert isinstance(index, SegmentedIndex)
        return index.compressed

    assert [tended(0, 500), tended(500, 5000), tended(5000, 9500)] == [False, False, True]
    assert follower.found(templates[:1]) != [None]
    follower.upkeep.stop()
    leader.upkeep.stop()


# -- reports


def test_what_fails_at_every_look_is_told_once_in_a_while(
    history: GalleryHistory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = iter(["the engine is away"] * 3 + ["the disk is full"] + ["the engine is away"] * 2)

    def chore() -> None:
        raise Busy(next(reasons))

    upkeep = Upkeep(lambda: [], history, IndexSource(), chores=[chore])
    for _ in range(5):
        upkeep.tick()
    told = "".join(capsys.readouterr())
    assert (told.count("the engine is away"), told.count("the disk is full")) == (1, 1)
    late = time.monotonic() + 61
    monkeypatch.setattr("app.gallery.views.upkeep.time.monotonic", lambda: late)
    upkeep.tick()
    assert "".join(capsys.readouterr()).count("the engine is away") == 1


def test_processes_report_one_snapshot_at_the_same_moment(store: GalleryStore, history: GalleryHistory) -> None:
    gallery, barrier = store.gallery("people"), threading.Barrier(4)

    def report(number: int) -> None:
        for turn in range(20):
            barrier.wait(60)
            history.report(gallery.id, f"snapshot {turn}", number)

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(report, number) for number in range(4)]:
            one.result()
    with store.engine.connect() as connection:
        assert len(connection.execute(select(FollowerRow.name)).all()) == 20


def test_a_follower_whose_clock_is_wrong_is_not_taken_for_dead(
    postgresql_url: str, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(postgresql_url, timeout=30)
    migrate(engine)
    store, history = GalleryStore(engine), GalleryHistory(engine)
    enroll(store, "anna", new_templates(1))
    gallery = store.gallery("people")
    with monkeypatch.context() as clock:
        clock.setattr("app.gallery.sql.followers.now", lambda: datetime(2000, 1, 1, tzinfo=UTC))
        history.report(gallery.id, "slow clock", 0)
    history.report(gallery.id, "other", 1)
    assert history.prune(gallery.id) == 0
    with engine.connect() as connection:
        assert sorted(connection.scalars(select(FollowerRow.name))) == ["other", "slow clock"]
    engine.dispose()
