"""Who follows a gallery says so before it needs what others would drop, and goes on saying it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, func, select, update

from app.gallery.records import NewTemplate, TemplateBlock
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.tables import ChangeRow, FollowerRow, GalleryRow, now
from app.gallery.views.follower_reports import FollowerReports
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.replicas import Replicas
from app.gallery.views.upkeep import Upkeep
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR
from tests.app.gallery.views.test_replica import enroll
from tests.app.gallery.views.test_upkeep import Endless
from tests.standby import Standby

pytestmark = pytest.mark.galleries("people")
Templates = Callable[[int], list[NewTemplate]]


def reported(store: GalleryStore) -> dict[str, tuple[int, datetime]]:
    with store.engine.connect() as connection:
        rows = connection.execute(select(FollowerRow.name, FollowerRow.revision, FollowerRow.seen_at))
        return {name: (revision, seen_at) for name, revision, seen_at in rows}


class WrittenMeanwhile(GalleryHistory):
    """In which somebody is enrolled while everything is read, and another process has that behind it at once."""

    def __init__(self, store: GalleryStore, new_templates: Templates) -> None:
        super().__init__(store.engine)
        self._store, self._new_templates = store, new_templates
        self.builds = 0

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        yield from super().template_blocks(gallery_id)
        self.builds += 1
        enroll(self._store, f"late {self.builds}", self._new_templates(1))
        self.report(gallery_id, "another", self._store.gallery("people").revision)
        self.prune(gallery_id)


class BusyMeanwhile(GalleryHistory):
    """In which something is done each time that everything has been read."""

    builds = 0
    meanwhile: Callable[[], object] = list

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        yield from super().template_blocks(gallery_id)
        self.builds += 1
        self.meanwhile()


def test_a_new_process_loads_once_while_others_write(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(2))
    history = WrittenMeanwhile(store, new_templates)
    replicas = Replicas(store, history, IndexSource(kind="flat"), extractor=EXTRACTOR)
    replicas.start([])
    try:
        assert replicas.up_to_date("people").templates == 3
        assert history.builds == 1
    finally:
        replicas.stop()
    assert list(reported(store)) == ["another"]


def test_a_gallery_that_comes_later_is_loaded_once(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(2))
    history, gallery = WrittenMeanwhile(store, new_templates), store.gallery("people")
    replica = GalleryReplica(gallery, history, partial(IndexSource(kind="flat").make, gallery), tended=True)
    Upkeep(lambda: [replica], history, IndexSource(kind="flat")).tick()
    replica.catch_up(*store.gallery("people").point)
    assert (history.builds, replica.templates) == (1, 3)


@pytest.mark.parametrize("why", ["a new one is wanted", "the database went back"])
def test_changes_stay_that_an_index_which_is_built_beside_the_old_one_needs(
    store: GalleryStore, new_templates: Templates, why: str
) -> None:
    enroll(store, "anna", new_templates(2))
    standby, gallery, history = Standby(store.engine), store.gallery("people"), BusyMeanwhile(store.engine)
    replica = GalleryReplica(gallery, history, partial(IndexSource(kind="flat").make, gallery), tended=True)
    reports = FollowerReports("me", lambda: [replica], history, quietly=lambda work, *values: work(*values))
    for number in range(3):
        enroll(store, f"subject {number}", new_templates(1))
    replica.follow(*store.gallery("people").point)
    if why == "the database went back":
        reports.report_all()
        standby.promote()
    else:
        history.request_rebuild("people")
        replica.follow(*store.gallery("people").point)
        reports.report_all()

    def meanwhile() -> None:
        enroll(store, f"late {history.builds}", new_templates(1))
        if replica.rebuild_wanted:
            replica.catch_up(*store.gallery("people").point)  # as where a call searches
        reports.report_all()

    history.meanwhile, history.builds = meanwhile, 0
    if why == "a new one is wanted":
        replica.rebuild()
    else:
        replica.follow(*store.gallery("people").point)
    assert (history.builds, replica.lost, replica.rebuild_wanted) == (1, False, False)
    assert replica.point == store.gallery("people").point
    reports.report_all()
    with store.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(ChangeRow)) == 0


def test_reports_go_on_while_an_index_is_built(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.views.follower_reports._EVERY", 0.01)
    enroll(store, "anna", new_templates(2))
    gallery, history = store.gallery("people"), Endless(store)
    history.endless = True
    replica = GalleryReplica(gallery, history, partial(IndexSource(kind="flat").make, gallery), tended=True)
    upkeep = Upkeep(lambda: [replica], history, IndexSource(kind="flat"), pause=0.01)
    upkeep.start()
    try:
        assert history.begun.wait(60)
        revision, first = reported(store)[upkeep.name]
        assert revision == -1  # everything from now on is needed
        while reported(store)[upkeep.name][1] == first:
            pass
    finally:
        upkeep.stop()
    assert reported(store) == {}


@pytest.mark.galleries("visitors", "staff")
def test_all_galleries_are_reported_in_one_transaction_and_idle_ones_not_pruned(
    store: GalleryStore, new_templates: Templates, tmp_path: Path
) -> None:
    source, history = IndexSource(folder=tmp_path / "index"), GalleryHistory(store.engine)
    enroll(store, "anna", new_templates(2))
    replicas = Replicas(store, history, source, extractor=EXTRACTOR)
    for gallery in store.galleries():
        replicas.up_to_date(gallery.name).on_disk.write()
    reports = FollowerReports("me", replicas.all, history, quietly=lambda work, *values: work(*values))
    reports.report_all()
    with store.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(FollowerRow)) == 6
        assert connection.scalar(select(func.count()).select_from(ChangeRow)) == 0
    before = reported(store)["me"][1]
    commits = list[object]()
    event.listen(store.engine, "commit", commits.append)
    reports.report_all()
    assert len(commits) == 1
    assert reported(store)["me"][1] > before
    replicas.stop()


@pytest.mark.galleries("visitors", "staff")
def test_of_many_galleries_those_are_reported_in_which_something_moves_and_the_others_in_turn(
    store: GalleryStore, new_templates: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.views.follower_reports._AT_LEAST", 1)
    source, history = IndexSource(folder=tmp_path / "index"), GalleryHistory(store.engine)
    replicas = Replicas(store, history, source, extractor=EXTRACTOR)
    for gallery in store.galleries():
        replicas.up_to_date(gallery.name)
    reports = FollowerReports("me", replicas.all, history, quietly=lambda work, *values: work(*values))

    def reported_now() -> set[tuple[str, str, int]]:
        columns = select(FollowerRow.name, GalleryRow.name, FollowerRow.revision, FollowerRow.seen_at)
        with store.engine.connect() as connection:
            before = set(connection.execute(columns.join(GalleryRow)).all())
            reports.report_all()
        with store.engine.connect() as connection:
            rows = set(connection.execute(columns.join(GalleryRow)).all()) - before
        return {(name.split()[0], gallery, revision) for name, gallery, revision, _ in rows}

    assert reported_now() == {("me", "people", 0), ("me", "staff", 0), ("me", "visitors", 0)}
    turns = [reported_now() for _ in range(3)]
    assert [len(turn) for turn in turns] == [1, 1, 1]
    assert set[tuple[str, str, int]]().union(*turns) == {("me", name, 0) for name in ("people", "staff", "visitors")}
    enroll(store, "anna", new_templates(2))
    people = replicas.up_to_date("people")
    assert ("me", "people", 1) in reported_now()
    people.on_disk.write()
    assert {("me", "people", 1), ("snapshot", "people", 1)} <= reported_now()
    with store.engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(ChangeRow)) == 0
    replicas.stop()


def test_a_gallery_that_somebody_writes_to_holds_up_its_own_report_alone(
    postgresql_url: str,
) -> None:
    engine = open_engine(postgresql_url, timeout=30)
    migrate(engine)
    store, history = GalleryStore(engine), GalleryHistory(engine)
    first, second = (
        store.create_gallery(name, extractor=EXTRACTOR, dimension=DIMENSION, policy=None) for name in ("one", "two")
    )
    with ThreadPoolExecutor() as threads:
        with engine.begin() as connection:
            connection.execute(select(GalleryRow.id).where(GalleryRow.id == first.id).with_for_update())
            done = threads.submit(history.report_all, [(first.id, "of one", 3), (second.id, "of two", 4)])
            while reported(store).keys() != {"of two"}:
                assert not done.done()
            store.change_gallery("two", {"policy": None})
        done.result(60)
    assert {name: revision for name, (revision, _) in reported(store).items()} == {"of one": 3, "of two": 4}
    history.report_all([(2**40, "of none", 1), (first.id, "of one", 5)])  # as one that was erased meanwhile
    assert {name: revision for name, (revision, _) in reported(store).items()} == {"of one": 5, "of two": 4}
    engine.dispose()


def test_many_changes_go_in_several_transactions_and_no_revision_in_parts(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.sql.history._PRUNED_AT_ONCE", 4)
    history, gallery = GalleryHistory(store.engine), store.gallery("people")
    for number in range(5):
        enroll(store, f"subject {number}", new_templates(3))
    history.report(gallery.id, "living", 4)
    left = list[list[int]]()

    @event.listens_for(store.engine, "commit")
    def look(connection: Connection) -> None:
        found = connection.execute(select(ChangeRow.revision).order_by(ChangeRow.revision))
        left.append(list(found.scalars()))

    assert history.prune(gallery.id) == 12
    event.remove(store.engine, "commit", look)
    last = [5, 5, 5]
    assert [one for one in left if one] == [[3, 3, 3, 4, 4, 4, *last], last, last]


def test_what_one_call_does_not_drop_the_next_ones_do(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.sql.history._PRUNED_AT_ONCE", 1)
    history, gallery = GalleryHistory(store.engine), store.gallery("people")
    for number in range(12):
        enroll(store, f"subject {number}", new_templates(1))
    history.report(gallery.id, "living", store.gallery("people").revision)
    assert [history.prune(gallery.id) for _ in range(3)] == [10, 2, 0]


def test_who_reported_by_a_clock_that_was_ahead_does_not_keep_changes_for_years(
    store: GalleryStore, new_templates: Templates
) -> None:
    history, gallery = GalleryHistory(store.engine), store.gallery("people")
    history.report(gallery.id, "killed in 2037", 0)
    with store.engine.begin() as connection:
        connection.execute(update(FollowerRow).values(seen_at=now() + timedelta(days=4000)))
    for number in range(3):
        enroll(store, f"subject {number}", new_templates(1))
    history.report(gallery.id, "living", 3)
    assert history.prune(gallery.id) == 3
    assert list(reported(store)) == ["living"]
