"""A database that fails over to a standby that lags gives revisions and ids out again, and nobody gets a wrong name."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from app.gallery.index import SegmentedIndex
from app.gallery.records import Gallery, NewTemplate, TemplateBlock
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.replicas import Replicas
from app.gallery.views.upkeep import Upkeep
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR
from tests.app.gallery.snapshots.test_kept import found, replica_of, snapshots
from tests.app.gallery.views.test_replica import enroll
from tests.standby import Standby

pytestmark = pytest.mark.galleries("people")
Templates = Callable[[int], list[NewTemplate]]


def template_id(store: GalleryStore, subject: str) -> int:
    (template,) = store.templates("people", subject=subject, after=0, limit=1).items
    return template.id


def names(store: GalleryStore, replica: GalleryReplica, templates: list[NewTemplate]) -> list[str | None]:
    """Who the templates' own faces are taken for, by a process that reads the gallery before it searches."""
    replica.catch_up(*store.gallery("people").point)
    ids = found(replica, templates)
    keys = {one.id: one.key for one in store.subjects("people", after=0, limit=100).items}
    return [None if subject is None else keys.get(subject) for subject in ids]


class Counted(GalleryHistory):
    """Counts how often all templates are read."""

    builds = 0

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        self.builds += 1
        return super().template_blocks(gallery_id)


def test_who_was_undone_is_nobody_and_who_got_the_ids_is_himself(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    carl, alice, bob = templates = new_templates(3)
    enroll(store, "carl", [carl])
    ahead, behind = replica_of(store, source), replica_of(store, source)
    standby = Standby(store.engine)
    subject = enroll(store, "alice", [alice])
    undone, template = store.gallery("people"), template_id(store, "alice")
    assert names(store, ahead, templates) == ["carl", "alice", None]
    ahead.on_disk.write()
    standby.promote()
    # The next write, before anybody looks, has everything but the mark in common with the one that was undone.
    assert (enroll(store, "bob", [bob]), template_id(store, "bob")) == (subject, template)
    assert store.gallery("people").revision == undone.revision
    assert store.gallery("people").mark != undone.mark
    for process in (ahead, behind, replica_of(store, source)):
        assert names(store, process, templates) == ["carl", None, "bob"]
    assert len(list(source.folder.rglob("damaged-*")) if source.folder else []) == 1


@pytest.mark.parametrize("undone", [1, 3])
@pytest.mark.parametrize("since", [1, 2, 40])
def test_a_history_that_has_gone_on_from_before_is_not_followed_from_what_was_undone(
    store: GalleryStore, source: IndexSource, new_templates: Templates, undone: int, since: int
) -> None:
    carl, *others = templates = new_templates(1 + undone + since)
    enroll(store, "carl", [carl])
    standby = Standby(store.engine)
    for number, template in enumerate(others[:undone]):
        enroll(store, f"undone {number}", [template])
    process = replica_of(store, source)
    process.on_disk.write()
    standby.promote()
    for number, template in enumerate(others[undone:]):
        enroll(store, f"new {number}", [template])
    wanted = ["carl"] + [None] * undone + [f"new {number}" for number in range(since)]
    for one in (process, replica_of(store, source)):
        assert names(store, one, templates) == wanted


def test_a_process_finds_out_by_itself_and_says_that_it_is_behind(
    store: GalleryStore, new_templates: Templates
) -> None:
    history = GalleryHistory(store.engine)
    replicas = Replicas(store, history, IndexSource(kind="flat"), extractor=EXTRACTOR)
    alice, bob = templates = new_templates(2)
    standby = Standby(store.engine)
    enroll(store, "alice", [alice])
    replica = replicas.up_to_date("people")
    standby.promote()
    enroll(store, "bob", [bob])
    assert replicas.lag() == 1
    replica.follow(*store.gallery("people").point)  # as the upkeep does at every look
    assert replicas.lag() == 0
    assert names(store, replica, templates) == [None, "bob"]


def test_no_snapshot_of_what_was_undone_is_left_by_an_erasure(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    anna, alice = templates = new_templates(2)
    enroll(store, "anna", [anna])
    standby = Standby(store.engine)
    enroll(store, "alice", [alice])
    process = replica_of(store, source)
    process.on_disk.write()
    standby.promote()
    store.delete_subject("people", "anna")
    process.erase_snapshots()
    assert names(store, replica_of(store, source), templates) == [None, None]
    assert [path for path in snapshots(process).folder.iterdir() if path.is_dir()] == []


def test_what_falls_back_while_an_index_is_built_is_built_again(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.sql.history._MANY", 1)
    carl, alice, bob, dora = templates = new_templates(4)
    enroll(store, "carl", [carl])
    standby = Standby(store.engine)

    class FallsBack(Counted):
        def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
            first = not self.builds
            for number, block in enumerate(super().template_blocks(gallery_id)):
                if first and number == 0:
                    enroll(store, "alice", [alice])
                yield block
            if first:
                standby.promote()
                store.update_subject("people", "carl", new_key="karl")
                enroll(store, "bob", [bob, dora])

    gallery, history = store.gallery("people"), FallsBack(store.engine)
    replica = GalleryReplica(gallery, history, partial(IndexSource(kind="flat").make, gallery))
    assert names(store, replica, templates) == ["karl", None, "bob", "bob"]
    assert history.builds == 2
    assert replica.templates == 3


def test_a_rebuild_that_is_asked_for_while_an_index_is_built_is_met(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.sql.history._MANY", 1)
    anna, bob = new_templates(2)
    enroll(store, "anna", [anna])

    class AskedMeanwhile(Counted):
        def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
            first = not self.builds
            for block in super().template_blocks(gallery_id):
                if first:
                    self.request_rebuild("people")
                    enroll(store, "bob", [bob])
                first = False
                yield block

    gallery, history = store.gallery("people"), AskedMeanwhile(store.engine)
    replica = GalleryReplica(gallery, history, partial(IndexSource(kind="flat").make, gallery))
    assert names(store, replica, [anna, bob]) == ["anna", "bob"]
    assert (replica.rebuild_wanted, history.builds) == (False, 2)


def test_a_gallery_that_has_the_id_of_one_that_was_undone_gets_an_index_of_its_own(
    store: GalleryStore, new_templates: Templates
) -> None:
    replicas = Replicas(store, GalleryHistory(store.engine), IndexSource(kind="flat"), extractor=EXTRACTOR)
    standby = Standby(store.engine)

    def make(name: str) -> Gallery:
        return store.create_gallery(name, extractor=EXTRACTOR, dimension=DIMENSION, policy=None)

    before = make("undone")
    replica = replicas.up_to_date("undone")
    standby.promote()
    after = make("another")
    assert before.id == after.id
    assert replicas.up_to_date("another") is not replica
    replicas.follow_again()
    assert [one.name for one in replicas.all()] == ["another"]


def test_a_gallery_that_was_undone_gets_no_last_snapshot_in_the_folder_of_another(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    history = GalleryHistory(store.engine)
    replicas = Replicas(store, history, source, extractor=EXTRACTOR)
    upkeep = Upkeep(replicas.all, history, source)
    standby = Standby(store.engine)
    before = store.create_gallery("undone", extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
    alice, bob = new_templates(2)
    store.enroll("undone", "alice", [alice], metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
    replicas.up_to_date("undone")
    standby.promote()
    store.enroll("another", "bob", [bob], metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
    after = store.gallery("another")
    assert before.id == after.id
    upkeep.stop()
    kept = source.snapshots_of(after)
    assert kept is not None
    assert kept.revisions == []


def test_an_erasure_in_a_gallery_that_has_the_id_of_an_undone_one_sets_no_snapshot_aside(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    history = GalleryHistory(store.engine)
    here, there = (Replicas(store, history, source, extractor=EXTRACTOR) for _ in range(2))
    standby = Standby(store.engine)

    def enroll_in(gallery: str, key: str) -> Gallery:
        store.enroll(gallery, key, new_templates(1), metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
        return store.gallery(gallery)

    before = enroll_in("undone", "alice")
    here.up_to_date("undone")
    standby.promote()
    enroll_in("another", "bob")
    after = enroll_in("another", "carl")
    assert before.id == after.id
    there.up_to_date("another").on_disk.write()
    store.delete_subject("another", "carl")
    here.follow(after)
    kept = source.snapshots_of(after)
    assert kept is not None
    assert kept.revisions == [2]
    assert list(kept.folder.glob("damaged-*")) == []


def test_indexes_of_a_database_from_before_marks_stay_in_use(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    anna, bob, dora = templates = new_templates(3)
    enroll(store, "anna", [anna])
    enroll(store, "bob", [bob])
    migrate(store.engine, "0007")
    migrate(store.engine)
    assert store.gallery("people").point == (2, 0)
    replica_of(store, source).on_disk.write()
    for about in source.folder.rglob("snapshot.json") if source.folder else ():
        content = json.loads(about.read_text())
        del content["mark"]
        about.write_text(json.dumps(content))
    enroll(store, "dora", [dora])
    gallery, history = store.gallery("people"), Counted(store.engine)
    replica = GalleryReplica(gallery, history, partial(source.make, gallery), source.snapshots_of(gallery))
    assert names(store, replica, templates) == ["anna", "bob", "dora"]
    assert history.builds == 0


def followed(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> tuple[list[NewTemplate], GalleryReplica, Standby]:
    """Templates of Carl, Alice and Bob, of whom the first two are enrolled; who follows them, and a copy of then."""
    templates = new_templates(3)
    enroll(store, "carl", templates[:1])
    enroll(store, "alice", templates[1:2])
    return templates, replica_of(store, source), Standby(store.engine)


def test_a_snapshot_that_took_in_what_was_undone_is_not_loaded(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates, process, standby = followed(store, source, new_templates)
    save = SegmentedIndex.save

    def save_later(index: SegmentedIndex, folder: Path) -> None:
        """While a snapshot is written somebody is erased and somebody enrolled."""
        store.delete_subject("people", "alice")
        enroll(store, "bob", templates[2:])
        process.catch_up(*store.gallery("people").point)
        save(index, folder)

    with monkeypatch.context() as patched:
        patched.setattr(SegmentedIndex, "save", save_later)
        assert process.on_disk.write() == 2  # which is in both histories
    assert names(store, replica_of(store, source), templates) == ["carl", None, "bob"]
    standby.promote()
    for one in (process, replica_of(store, source)):
        assert names(store, one, templates) == ["carl", "alice", None]


def test_no_snapshot_is_written_of_a_view_that_was_undone_meanwhile(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates, process, standby = followed(store, source, new_templates)
    save, saved = SegmentedIndex.save, list[Path]()

    def save_later(index: SegmentedIndex, folder: Path) -> None:
        saved.append(folder)
        if len(saved) == 1:
            store.delete_subject("people", "alice")
            process.catch_up(*store.gallery("people").point)
            standby.promote()
            enroll(store, "bob", templates[2:])
            process.catch_up(*store.gallery("people").point)
        save(index, folder)

    monkeypatch.setattr(SegmentedIndex, "save", save_later)
    assert process.on_disk.write() == 3
    assert len(saved) == 2
    assert names(store, replica_of(store, source), templates) == ["carl", "alice", "bob"]
    assert [path.name for path in snapshots(process).folder.iterdir() if path.is_dir()] == [f"{3:020d}"]


def test_a_follower_takes_up_what_is_written_after_an_undone_history(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates, leader, standby = followed(store, source, new_templates)
    enroll(store, "dora", new_templates(1))
    leader.catch_up(*store.gallery("people").point)
    leader.on_disk.write()
    follower = replica_of(store, source)
    standby.promote()
    for process in (leader, follower):
        assert names(store, process, templates) == ["carl", "alice", None]
    leader.on_disk.write()
    assert follower.on_disk.adopt()
    assert not follower.on_disk.adopt()
    assert names(store, follower, templates) == ["carl", "alice", None]
