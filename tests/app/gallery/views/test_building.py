"""Which process of a machine builds a large index, and what the others do meanwhile."""

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from app.gallery.deadline import within
from app.gallery.errors import Busy, DatabaseUnavailable, TimedOut
from app.gallery.index import SegmentedIndex
from app.gallery.records import NewTemplate
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.views.gallery_reading import never
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replicas import Replicas
from tests.app.gallery.conftest import EXTRACTOR
from tests.app.gallery.views.test_follower_reports import BusyMeanwhile
from tests.app.gallery.views.test_undone_history import Counted
from tests.app.gallery.views.test_upkeep import Process, enroll
from tests.standby import Standby

pytestmark = pytest.mark.galleries("people")
Templates = Callable[[int], list[NewTemplate]]


class One(Process):
    """A process whose buildings are counted."""

    def __init__(self, store: GalleryStore, source: IndexSource) -> None:
        self.counted = Counted(store.engine)
        super().__init__(store, source, self.counted)

    def lives(self) -> None:
        """Show that it lives, and do nothing else."""
        assert self.replica.snapshots is not None
        assert self.replica.snapshots.lead()


def up_to_date(store: GalleryStore, source: IndexSource) -> tuple[One, One]:
    """A process that leads and one that follows."""
    both = One(store, source), One(store, source)
    for process in both:
        process.upkeep.tick()
    return both


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.gallery.views.gallery_reading._LARGE", 0)


@pytest.fixture(autouse=True)
def each_look_is_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.gallery.snapshots.lead._EVERY", 0)


@pytest.fixture
def source(tmp_path: Path) -> IndexSource:
    return IndexSource(folder=tmp_path / "index", snapshot_interval=3600)


@pytest.fixture
def history(store: GalleryStore) -> GalleryHistory:
    return GalleryHistory(store.engine)


def test_who_leads_builds_and_the_others_take_it_up(
    store: GalleryStore, source: IndexSource, history: GalleryHistory, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader, follower = both = up_to_date(store, source)
    for process in both:
        process.damage()
    history.request_rebuild("people")
    before = [process.counted.builds for process in both]
    follower.upkeep.tick()
    wanted = [process.replica.rebuild_wanted for process in both]
    assert follower.found(templates) == [None] * 3
    enroll(store, "bob", new_templates(1))
    leader.upkeep.tick()
    assert leader.found(templates) == [anna] * 3
    follower.upkeep.tick()
    wanted += [process.replica.rebuild_wanted for process in both]
    assert wanted == [False, True, False, False]
    assert follower.found(templates) == [anna] * 3
    assert np.subtract([process.counted.builds for process in both], before).tolist() == [1, 0]


def test_without_a_snapshot_calls_are_refused_until_who_leads_has_written_one(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader, follower = One(store, source), One(store, source)
    leader.lives()
    follower.upkeep.tick()
    with pytest.raises(Busy):
        follower.find(templates)
    assert follower.replica.awaited()
    leader.upkeep.tick()
    follower.upkeep.tick()
    assert not follower.replica.awaited()
    assert follower.find(templates) == [anna] * 3
    assert follower.counted.builds == 0


def test_who_waits_does_not_report_at_every_look(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(3))
    leader, follower = One(store, source), One(store, source)
    leader.lives()
    written = list[str]()
    event.listen(store.engine, "before_cursor_execute", lambda *arguments: written.append(arguments[2].split()[0]))
    for _ in range(5):
        follower.upkeep.tick()
    assert follower.replica.awaited()
    assert 1 <= written.count("INSERT") <= 2  # with the first look, and of all once in a while


def test_a_start_goes_on_while_another_builds(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader = One(store, source)
    leader.lives()
    counted = Counted(store.engine)
    starting = Replicas(store, counted, source, extractor=EXTRACTOR)
    starting.start([])
    assert starting.awaited() == 1
    starting.stop()
    leader.upkeep.tick()
    again = Replicas(store, counted, source, extractor=EXTRACTOR)
    again.start([])
    ranked = again.up_to_date("people").search(templates[0].embedding[None], top_k=1, rule="best")
    again.stop()
    assert ranked[0][0].subject_id == anna
    assert counted.builds == 0


@pytest.mark.galleries("staff")
@pytest.mark.parametrize("owes", [False, True])
def test_what_a_start_has_built_is_taken_up_while_it_builds_the_next(
    store: GalleryStore, source: IndexSource, new_templates: Templates, owes: bool
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    if owes:
        enroll(store, "bob", new_templates(1))
        store.delete_subject("people", "bob")
    history, follower = BusyMeanwhile(store.engine), One(store, source)

    def meanwhile() -> None:
        if history.builds == 2:
            follower.upkeep.tick()

    history.meanwhile = meanwhile
    starting = Replicas(store, history, source, extractor=EXTRACTOR)
    starting.start([])
    assert follower.found(templates) == [anna] * 3
    assert (history.builds, follower.counted.builds) == (2, 0)
    assert store.gallery("people").erasure is None
    starting.stop()


@pytest.mark.galleries("staff")
def test_a_start_goes_on_where_what_it_has_built_cannot_be_written(
    store: GalleryStore,
    source: IndexSource,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    enroll(store, "anna", new_templates(3))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SegmentedIndex, "save", full)
    starting = Replicas(store, history := BusyMeanwhile(store.engine), source, extractor=EXTRACTOR)
    starting.start([])
    assert (history.builds, starting.awaited()) == (2, 0)
    assert "snapshot.failed" in "".join(capsys.readouterr())
    starting.stop()


def test_a_snapshot_from_before_the_wish_is_not_what_is_waited_for(
    store: GalleryStore, source: IndexSource, history: GalleryHistory, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(3))
    leader, follower = One(store, source), One(store, source)
    leader.upkeep.tick()
    follower.upkeep.tick()
    enroll(store, "bob", new_templates(1))
    leader.find(new_templates(1))
    history.request_rebuild("people")
    leader.replica.on_disk.write()
    for _ in range(2):
        follower.upkeep.tick()
        assert follower.replica.rebuild_wanted
    assert follower.replica.snapshots is not None
    assert follower.replica.snapshots.known == 2


def test_a_view_that_was_to_be_built_anew_meanwhile_is_not_kept(
    store: GalleryStore,
    source: IndexSource,
    history: GalleryHistory,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    templates = new_templates(3)
    enroll(store, "anna", templates)
    leader = One(store, source)
    leader.upkeep.tick()
    rewrite = SegmentedIndex.rewrite_erased

    def meanwhile(index: SegmentedIndex) -> None:
        rewrite(index)
        history.request_rebuild("people")
        leader.find(templates)

    monkeypatch.setattr(SegmentedIndex, "rewrite_erased", meanwhile)
    assert leader.replica.on_disk.write(erase=True) is None
    assert leader.replica.rebuild_wanted
    assert leader.replica.snapshots is not None
    assert leader.replica.snapshots.revisions == []


def test_who_waited_builds_once_nobody_leads(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader, follower = One(store, source), One(store, source)
    leader.lives()
    follower.upkeep.tick()
    assert leader.replica.snapshots is not None
    leader.replica.snapshots.resign()  # as where it is killed
    follower.upkeep.tick()
    assert follower.find(templates) == [anna] * 3


def test_who_waited_builds_where_who_leads_writes_no_snapshot(
    store: GalleryStore, source: IndexSource, history: GalleryHistory, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader, follower = One(store, source), One(store, source)
    leader.lives()
    for _ in range(3):
        follower.upkeep.tick()
        assert follower.replica.awaited()
        leader.lives()
    follower.upkeep.tick()
    assert follower.find(templates) == [anna] * 3
    follower.damage()
    history.request_rebuild("people")
    for _ in range(3):
        follower.upkeep.tick()
        assert follower.replica.rebuild_wanted  # it waits anew
        leader.lives()
    follower.upkeep.tick()
    assert follower.found(templates) == [anna] * 3


def test_who_waited_builds_where_who_leads_hangs(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader, follower = One(store, source), One(store, source)
    leader.lives()
    follower.upkeep.tick()
    assert follower.replica.awaited()
    monkeypatch.setattr("app.gallery.views.building._SILENT", 0)
    follower.upkeep.tick()
    assert follower.find(templates) == [anna] * 3


def test_without_snapshots_everybody_builds(store: GalleryStore, tmp_path: Path, new_templates: Templates) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    none_written = IndexSource(folder=tmp_path / "index", snapshot_interval=0)
    leader, follower = One(store, none_written), One(store, none_written)
    leader.lives()
    follower.upkeep.tick()
    assert follower.find(templates) == [anna] * 3


def test_a_snapshot_that_is_too_old_is_read_once_while_a_newer_one_is_waited_for(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader = One(store, source)
    leader.upkeep.tick()
    bob = enroll(store, "bob", more := new_templates(1))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM change")
    follower, loads = One(store, source), list[int]()
    load = SegmentedIndex.load

    def noted(*arguments: object, **options: object) -> SegmentedIndex:
        loads.append(1)
        return load(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentedIndex, "load", noted)
    for _ in range(3):
        follower.upkeep.tick()
        assert follower.replica.awaited()
    assert len(loads) == 1
    leader.upkeep.tick()
    follower.upkeep.tick()
    assert follower.find([*templates, *more]) == [anna] * 3 + [bob]
    assert (len(loads), follower.counted.builds) == (3, 0)  # who leads has looked at it as well


def test_a_snapshot_that_cannot_be_opened_is_tried_once_at_each_look(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(store, "anna", new_templates(3))
    leader, follower = up_to_date(store, source)
    enroll(store, "bob", new_templates(1))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM change")
    leader.upkeep.tick()
    tries = list[int]()

    def load(*_: object, **_options: object) -> SegmentedIndex:
        tries.append(1)
        raise OSError("too many open files")

    monkeypatch.setattr(SegmentedIndex, "load", load)
    follower.upkeep.tick()
    assert follower.replica.awaited()
    assert len(tries) == 1


def test_a_wish_that_was_undone_is_not_waited_for(
    store: GalleryStore, source: IndexSource, history: GalleryHistory, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    _, follower = both = up_to_date(store, source)
    standby = Standby(store.engine)
    history.request_rebuild("people")
    follower.upkeep.tick()
    standby.promote()
    for process in both:
        process.upkeep.tick()
    assert not follower.replica.rebuild_wanted
    assert follower.found(templates) == [anna] * 3
    assert follower.counted.builds == 0


def test_a_view_that_the_database_comes_back_to_is_not_awaited(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates[:1])
    before = Standby(store.engine)
    bob = enroll(store, "bob", templates[1:])
    process = One(store, source)
    process.upkeep.tick()
    present = Standby(store.engine)
    before.promote()
    with pytest.raises(Busy):
        process.find(templates)
    present.promote()
    assert process.find(templates) == [anna, bob, bob]
    process.upkeep.tick()
    assert not process.replica.awaited()
    assert process.replica.on_disk.write() is not None


def test_what_a_wish_has_built_that_comes_while_an_index_is_tended_is_written_at_once(
    store: GalleryStore,
    source: IndexSource,
    history: GalleryHistory,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader, follower = up_to_date(store, source)
    follower.damage()
    maintain = SegmentedIndex.maintain

    def meanwhile(index: SegmentedIndex) -> bool:
        monkeypatch.setattr(SegmentedIndex, "maintain", maintain)
        history.request_rebuild("people")
        leader.find(templates)
        return True

    enroll(store, "bob", new_templates(1))
    monkeypatch.setattr(SegmentedIndex, "maintain", meanwhile)
    for process in (leader, leader, follower):
        process.upkeep.tick()
    assert not follower.replica.rebuild_wanted
    assert follower.found(templates) == [anna] * 3
    assert follower.counted.builds == 0


@pytest.mark.parametrize("who_leads", ["is gone", "hangs"])
def test_what_was_built_before_who_leads_fell_silent_is_taken_up(
    store: GalleryStore,
    source: IndexSource,
    history: GalleryHistory,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
    who_leads: str,
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader, follower = up_to_date(store, source)
    follower.damage()
    history.request_rebuild("people")
    follower.upkeep.tick()
    leader.upkeep.tick()
    assert leader.replica.snapshots is not None
    if who_leads == "hangs":
        monkeypatch.setattr("app.gallery.views.building._SILENT", 0)
    else:
        leader.replica.snapshots.resign()
    follower.upkeep.tick()
    assert follower.found(templates) == [anna] * 3
    assert (follower.replica.rebuild_wanted, follower.counted.builds) == (False, 0)


def test_a_start_does_not_wait_for_an_index_that_was_asked_for_meanwhile(
    store: GalleryStore, source: IndexSource, history: GalleryHistory, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    before = One(store, source)
    before.upkeep.tick()
    before.upkeep.stop()
    history.request_rebuild("people")
    starting = One(store, source)
    starting.upkeep.load(starting.replica, store.gallery("people"), never)
    assert starting.found(templates) == [anna] * 3
    assert (starting.replica.rebuild_wanted, starting.counted.builds) == (True, 0)
    starting.upkeep.tick()
    assert (starting.replica.rebuild_wanted, starting.counted.builds) == (False, 1)


def test_what_a_start_has_built_is_not_refused_where_nobody_can_say_whether_it_is_large(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    starting = One(store, source)

    def away(*_: object) -> bool:
        raise DatabaseUnavailable("the database does not answer; try again")

    monkeypatch.setattr(starting.counted, "has_more_than", away)
    starting.upkeep.load(starting.replica, store.gallery("people"), never)
    assert starting.found(templates) == [anna] * 3


def test_who_waits_at_its_end_leaves_the_snapshot_that_it_waited_for(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader, follower = One(store, source), One(store, source)
    leader.upkeep.tick()
    standby = Standby(store.engine)
    enroll(store, "bob", new_templates(1))
    follower.upkeep.tick()
    standby.promote()
    assert leader.replica.snapshots is not None
    leader.replica.snapshots.set_all_aside("as where there was none")
    follower.upkeep.tick()
    assert follower.replica.awaited()
    leader.replica.on_disk.write()
    for process in (leader, follower):
        process.upkeep.stop()
    again = One(store, source)
    again.upkeep.tick()
    assert again.found(templates) == [anna] * 3
    assert again.counted.builds == 0


def test_a_call_that_who_leads_answers_while_it_builds_is_no_look(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    history = BusyMeanwhile(store.engine)
    leader, follower = Replicas(store, history, source, extractor=EXTRACTOR), One(store, source)

    def meanwhile() -> None:
        for _ in range(4):
            with within(0.1), suppress(TimedOut):  # which is all that such a call can do
                leader.erase_traces(store.gallery("people"), True)
            follower.upkeep.tick()

    history.meanwhile = meanwhile
    leader.start([])
    leader.stop()
    assert follower.replica.awaited()
    follower.upkeep.tick()
    assert follower.found(templates) == [anna] * 3
    assert follower.counted.builds == 0


def test_another_replica_of_the_gallery_waits_anew(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(3))
    leader, follower, again = (One(store, source) for _ in range(3))
    leader.lives()
    for _ in range(3):
        follower.upkeep.tick()
        leader.lives()
    follower.served[:] = [again.replica]  # as where the gallery was of another extractor meanwhile
    follower.upkeep.tick()
    assert again.replica.awaited()
    assert again.counted.builds == 0


@pytest.mark.parametrize("why", ["index.gap", "gallery.went_back"])
def test_why_an_index_is_waited_for_is_told_once(
    store: GalleryStore, source: IndexSource, new_templates: Templates, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    leader, follower = One(store, source), One(store, source)
    enroll(store, "anna", new_templates(3))
    standby = Standby(store.engine)
    enroll(store, "bob", new_templates(1))
    for process in (leader, follower):
        process.upkeep.tick()
    if why == "gallery.went_back":
        standby.promote()
    else:
        enroll(store, "carl", new_templates(1))
        with store.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM change")
    capsys.readouterr()
    for _ in range(3):
        follower.upkeep.tick()
        with pytest.raises(Busy):
            follower.find(new_templates(1))
    told = "".join(capsys.readouterr())
    assert (told.count(why), told.count("index.awaited")) == (1, 1)


def test_a_command_that_has_erased_something_is_not_waited_for(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    command = Replicas(store, GalleryHistory(store.engine), source, extractor=EXTRACTOR)
    for key in ("bob", "carl"):
        enroll(store, key, new_templates(1))
        store.delete_subject("people", key)
        assert command.erase_traces(store.gallery("people"), False) == 0
        assert store.gallery("people").erasure is None
    process = One(store, source)
    process.upkeep.tick()
    assert process.find(templates) == [anna] * 3
    command.stop()
