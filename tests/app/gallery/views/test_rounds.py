"""Of many galleries a look visits those in which there is something to do, and a few of the others in turn."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from app.gallery.errors import Busy
from app.gallery.records import Change, NewTemplate
from app.gallery.sealing.vault import Vault
from app.gallery.snapshots.private_folder import PrivateFolder, private_base
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.views.index_source import IndexSource, SnapshotSeal
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.replicas import Replicas
from app.gallery.views.upkeep import Upkeep
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR

NAMES = ["guests", "people", "staff", "thieves", "visitors"]
pytestmark = pytest.mark.galleries(*NAMES)
Templates = Callable[[int], list[NewTemplate]]


@pytest.fixture(autouse=True)
def two_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.gallery.views.rounds._AT_LEAST", 2)


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the galleries that were visited, in order."""
    visited, follow = list[str](), GalleryReplica.follow

    def noted(replica: GalleryReplica, revision: int, mark: int, **options: Callable[[], bool]) -> None:
        visited.append(replica.name)
        follow(replica, revision, mark, **options)

    monkeypatch.setattr(GalleryReplica, "follow", noted)
    return visited


class Process:
    """A process that has an index of every gallery, and has looked at each."""

    def __init__(self, store: GalleryStore, source: IndexSource, history: GalleryHistory | None = None) -> None:
        self.history = history or GalleryHistory(store.engine)
        self.replicas = Replicas(store, self.history, source, extractor=EXTRACTOR)
        for name in NAMES:
            self.replicas.up_to_date(name)
        drop = self.replicas._let_go
        self.upkeep = Upkeep(self.replicas.all, self.history, source, drop=drop)
        for _ in range(3):
            self.upkeep.tick()

    def revisions(self) -> list[int]:
        return [replica.applied_revision for replica in self.replicas.all()]

    def dies(self) -> None:
        """All that others notice of it."""
        for replica in self.replicas.all():
            assert replica.snapshots is not None
            replica.snapshots.resign()


def enroll(store: GalleryStore, names: list[str], templates: list[NewTemplate]) -> None:
    for name in names:
        store.enroll(name, "anna", templates, metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)


def test_where_nothing_happens_a_look_asks_once_and_visits_a_few_each_in_its_turn(
    store: GalleryStore, source: IndexSource, new_templates: Templates, visits: list[str]
) -> None:
    enroll(store, NAMES, new_templates(1))
    process = Process(store, source)
    asked, looks = list[str](), list[list[str]]()
    event.listen(store.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    for _ in range(3):
        visits.clear()
        process.upkeep.tick()
        looks.append(list(visits))
    assert len([one for one in asked if one != "BEGIN"]) == 3
    assert sorted(len(visited) for visited in looks) == [1, 2, 2]
    assert sorted(name for visited in looks for name in visited) == NAMES


def test_what_has_changed_is_visited_until_its_snapshot_is_written(
    store: GalleryStore,
    source: IndexSource,
    new_templates: Templates,
    visits: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process(store, source)
    enroll(store, NAMES, new_templates(1))
    for _ in range(2):
        visits.clear()
        process.upkeep.tick()
        assert sorted(visits) == NAMES
        assert process.revisions() == [1] * 5
    late = time.monotonic() + source.snapshot_interval
    monkeypatch.setattr("app.gallery.views.upkeep.time.monotonic", lambda: late)
    process.upkeep.tick()
    assert [one.snapshots.lasting for one in process.replicas.all() if one.snapshots is not None] == [1] * 5
    visits.clear()
    process.upkeep.tick()
    assert len(visits) <= 2


def test_what_is_to_be_loaded_anew_is_visited_at_the_next_look(
    store: GalleryStore, source: IndexSource, visits: list[str]
) -> None:
    process = Process(store, source)
    for _ in range(3):
        for replica in process.replicas.all():
            replica._followed.lost = True  # as a search finds it, with no change in SQL
        visits.clear()
        process.upkeep.tick()
        assert sorted(visits) == NAMES


def test_a_visit_that_failed_is_made_again_at_the_next_look(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    class Away(GalleryHistory):
        """In which changes cannot be read for a moment."""

        away = False

        def changes(self, gallery_id: int, *, after: int, up_to: int) -> list[Change]:
            if self.away:
                raise Busy("the database is away")
            return super().changes(gallery_id, after=after, up_to=up_to)

    history = Away(store.engine)
    process = Process(store, source, history)
    enroll(store, NAMES, new_templates(1))
    history.away = True
    process.upkeep.tick()
    assert process.revisions() == [0] * 5
    history.away = False
    process.upkeep.tick()
    assert process.revisions() == [1] * 5


def test_what_was_erased_leaves_the_snapshots_at_the_next_look_after_the_leader_has_died(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    enroll(store, NAMES, new_templates(1))
    leader, follower = Process(store, source), Process(store, source)
    for name in NAMES:
        store.delete_subject(name, "anna")
    leader.dies()
    follower.upkeep.tick()
    assert [one.erasure for one in store.galleries()] == [None] * 5


def test_who_waits_for_the_snapshot_of_a_leader_that_dies_writes_it_at_the_next_look(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    leader, follower = Process(store, source), Process(store, source)
    enroll(store, NAMES, new_templates(1))
    for _ in range(2):
        leader.upkeep.tick()  # which wrote one a moment ago, and waits
        follower.upkeep.tick()
    leader.dies()
    follower.upkeep.tick()
    assert [one.snapshots.lasting for one in follower.replicas.all() if one.snapshots is not None] == [1] * 5


def test_a_leader_asks_the_vault_once_for_all_galleries_and_finds_the_one_whose_key_is_gone(
    store: GalleryStore, vault: Vault, tmp_path: Path, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(store, NAMES, new_templates(1))
    seal = SnapshotSeal(vault, PrivateFolder(private_base(tmp_path / "memory"), "mine"))
    source = IndexSource(folder=tmp_path / "index", seal=seal)
    process = Process(store, source)
    asked, clock = list[str](), time.monotonic()
    event.listen(vault.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))

    def asked_in_a_round() -> int:
        nonlocal clock
        clock += source.snapshot_interval
        monkeypatch.setattr("app.gallery.views.upkeep.time.monotonic", lambda: clock)
        asked.clear()
        for _ in range(3):
            process.upkeep.tick()
        return len([one for one in asked if one != "BEGIN"])

    def keys() -> dict[str, str]:
        return {file.parents[2].name: file.read_text() for file in (tmp_path / "index").rglob("key")}

    before = keys()
    assert asked_in_a_round() == 1
    people = f"gallery-{store.gallery('people').id}"
    vault.discard(f"snapshot {store.gallery('people').id}")  # as another machine does that erases, or keeps none
    asked_in_a_round()
    after = keys()
    assert [name for name in before if before[name] != after[name]] == [people]
    assert vault.open_keys([after[people]]) != {}
    assert asked_in_a_round() == 1
    source.close()


def test_galleries_that_are_gone_are_let_go_at_the_next_look(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    enroll(store, NAMES, new_templates(1))
    process = Process(store, source)
    for name in NAMES:
        store.delete_gallery(name)
    process.upkeep.tick()
    assert process.replicas.all() == []


def test_a_stop_looks_for_last_snapshots_where_something_has_changed(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(store, source)
    enroll(store, ["people"], new_templates(1))
    people = process.replicas.up_to_date("people")
    looked, last = list[str](), Upkeep._last_snapshot

    def noted(upkeep: Upkeep, replica: GalleryReplica) -> None:
        looked.append(replica.name)
        last(upkeep, replica)

    monkeypatch.setattr(Upkeep, "_last_snapshot", noted)
    process.upkeep.stop()
    assert people.snapshots is not None
    assert people.snapshots.lasting == 1
    assert "people" in looked
    assert len(looked) <= 3


@pytest.mark.parametrize(("kept", "each"), [(False, 3), (True, 1)])
def test_a_start_asks_for_each_gallery_a_few_times(
    store: GalleryStore, source: IndexSource, new_templates: Templates, *, kept: bool, each: int
) -> None:
    enroll(store, NAMES, new_templates(1))
    if kept:
        Process(store, source).dies()
    asked, mine = list[str](), threading.get_ident()

    @event.listens_for(store.engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if threading.get_ident() == mine and statement != "BEGIN":
            asked.append(statement)

    def start() -> int:
        asked.clear()
        indexes = source if kept else IndexSource()
        replicas = Replicas(store, GalleryHistory(store.engine), indexes, extractor=EXTRACTOR)
        replicas.start([])
        found = len(asked)
        assert [one.templates for one in replicas.all()] == [1] * len(store.galleries())
        replicas.stop()
        return found

    all_five = start()
    store.delete_gallery("guests")
    assert all_five - start() == each
