"""Views on disk: what a restart loads, what it refuses, and what is left behind."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.gallery.deadline import within
from app.gallery.errors import TimedOut
from app.gallery.index import SegmentedIndex, SnapshotDamaged
from app.gallery.records import NewTemplate
from app.gallery.snapshots.kept import Snapshots
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import ChangeRow, GalleryRow, TemplateRow
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.upkeep import Upkeep
from app.gallery.views.view_on_disk import ViewOnDisk
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR
from tests.databases import store_in

pytestmark = pytest.mark.galleries("people")
Templates = Callable[[int], list[NewTemplate]]


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate]) -> int:
    made = store.enroll("people", key, templates, metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
    return made.subject.id


def replica_of(store: GalleryStore, source: IndexSource) -> GalleryReplica:
    gallery = store.gallery("people")
    history = GalleryHistory(store.engine)
    replica = GalleryReplica(gallery, history, partial(source.make, gallery), source.snapshots_of(gallery))
    replica.catch_up(*gallery.point)
    return replica


def snapshots(replica: GalleryReplica) -> Snapshots:
    assert replica.snapshots is not None
    return replica.snapshots


def found(replica: GalleryReplica, templates: list[NewTemplate]) -> list[int | None]:
    probes = np.stack([template.embedding for template in templates])
    ranked = replica.search(probes, top_k=1, rule="best")
    return [near[0].subject_id if near and near[0].distance < 1e-3 else None for near in ranked]


def embeddings_gone_from_sql(store: GalleryStore) -> None:
    """What a view shows afterwards came from a snapshot."""
    with Session(store.engine) as session, session.begin():
        session.execute(delete(TemplateRow))


def test_a_restart_loads_the_snapshot_and_replays_what_came_since(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(4)
    anna, bob = enroll(store, "anna", templates[:2]), enroll(store, "bob", templates[2:3])
    assert replica_of(store, source).on_disk.write() == 2
    store.delete_subject("people", "bob")
    cleo = enroll(store, "cleo", templates[3:])
    again = replica_of(store, source)
    assert found(again, templates) == [anna, anna, None, cleo]
    assert (again.applied_revision, again.subjects, again.templates) == (4, 2, 3)
    assert bob not in {anna, cleo}


def test_a_snapshot_alone_answers(store: GalleryStore, source: IndexSource, new_templates: Templates) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    replica_of(store, source).on_disk.write()
    embeddings_gone_from_sql(store)
    assert found(replica_of(store, source), templates) == [anna] * 3


def test_only_the_newest_snapshot_stays(store: GalleryStore, source: IndexSource, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1))
    replica = replica_of(store, source)
    replica.on_disk.write()
    enroll(store, "bob", new_templates(1))
    replica.catch_up(2)
    replica.on_disk.write()
    replica.on_disk.write()  # the same revision told anew
    assert snapshots(replica).revisions == [2]
    assert [path.name for path in snapshots(replica).folder.iterdir() if path.name.startswith("writing")] == []


def damage_index(place: Path) -> None:
    path = max((path for path in (place / "index").iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it may be a link that another snapshot shares
    path.write_bytes(content)


def damage_owners(place: Path) -> None:
    content = bytearray((place / "owners.i64").read_bytes())
    content[0] ^= 1
    (place / "owners.i64").write_bytes(content)


def cut_owners(place: Path) -> None:
    (place / "owners.i64").write_bytes((place / "owners.i64").read_bytes()[:-3])


def make_foreign(place: Path) -> None:
    about = json.loads((place / "snapshot.json").read_text())
    (place / "snapshot.json").write_text(json.dumps(about | {"extractor": "another@0123456789ab"}))


def make_garbage(place: Path) -> None:
    (place / "snapshot.json").write_text("[]")


def lose_index(place: Path) -> None:
    shutil.rmtree(place / "index")


@pytest.mark.parametrize(
    "damage",
    [damage_index, damage_owners, cut_owners, make_foreign, make_garbage, lose_index],
    ids=lambda one: one.__name__,
)
def test_a_damaged_or_foreign_snapshot_is_set_aside_and_everything_rebuilt(
    store: GalleryStore,
    source: IndexSource,
    new_templates: Templates,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    templates = new_templates(5)
    anna = enroll(store, "anna", templates)
    replica = replica_of(store, source)
    replica.on_disk.write()
    damage(snapshots(replica).folder / f"{1:020d}")
    again = replica_of(store, source)
    assert found(again, templates) == [anna] * 5
    assert snapshots(again).revisions == []
    assert [path.name[:28] for path in snapshots(again).folder.glob("damaged-*")] == [f"damaged-{1:020d}"]
    assert "snapshot.set_aside" in capsys.readouterr().out


def test_a_snapshot_of_a_later_past_is_not_trusted(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    """As after an older backup of the database was put back."""
    templates = new_templates(2)
    anna = enroll(store, "anna", templates[:1])
    enroll(store, "bob", templates[1:])
    replica = replica_of(store, source)
    replica.on_disk.write()
    with Session(store.engine) as session, session.begin():
        session.execute(delete(ChangeRow).where(ChangeRow.revision == 2))
        session.scalars(select(GalleryRow)).one().revision = 1
        session.execute(delete(TemplateRow).where(TemplateRow.subject_id != anna))
    assert found(replica_of(store, source), templates) == [anna, None]
    replica.catch_up(1)  # the process that was ahead finds out as well
    assert found(replica, templates) == [anna, None]
    assert replica.applied_revision == 1


def test_a_full_disk_leaves_the_earlier_snapshot(
    store: GalleryStore, source: IndexSource, new_templates: Templates, tmp_path: Path
) -> None:
    enroll(store, "anna", new_templates(2))
    replica_of(store, source).on_disk.write()
    url = store.engine.url.render_as_string(hide_password=False)
    code = f"""
import resource, signal
from tests.app.gallery.snapshots import test_kept as t
from app.gallery.sql.database import open_engine
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = t.GalleryStore(open_engine({url!r}, timeout=30))
replica = t.replica_of(store, t.IndexSource(folder=t.Path({str(source.folder)!r})))
resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
try:
    replica.on_disk.write()
except OSError as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["OSError"], done.stderr
    again = replica_of(store, source)
    assert snapshots(again).revisions == [1]
    assert [path.name for path in snapshots(again).folder.glob("writing-*")] == []
    assert again.templates == 2


def test_one_process_leads(store: GalleryStore, source: IndexSource, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1))
    first, second = snapshots(replica_of(store, source)), snapshots(replica_of(store, source))
    assert first.lead()
    assert first.lead()
    assert not second.lead()
    first.resign()
    assert second.lead()


def test_a_gallery_of_another_database_with_the_same_ids_is_another_one(
    store: GalleryStore, source: IndexSource, new_templates: Templates, tmp_path: Path
) -> None:
    """A database is removed and made anew, and its data folder stays."""
    for key in ("anna", "bob"):
        enroll(store, key, new_templates(1))
    replica_of(store, source).on_disk.write()
    with store_in(tmp_path / "new.db") as new:
        new.create_gallery("people", extractor=EXTRACTOR, dimension=DIMENSION, policy=None)
        assert new.gallery("people").id == store.gallery("people").id
        templates = new_templates(4)
        ids = [enroll(new, f"{number}", [template]) for number, template in enumerate(templates)]
        assert found(replica_of(new, source), templates) == ids


def test_a_follower_takes_up_what_the_leader_has_written(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(5)
    anna = enroll(store, "anna", templates[:3])
    leader, follower = replica_of(store, source), replica_of(store, source)
    assert not follower.on_disk.adopt()
    leader.on_disk.write()
    bob = enroll(store, "bob", templates[3:])
    store.delete_template("people", store.templates("people", subject="anna", after=0, limit=1).items[0].id)
    follower.catch_up(3)
    before = follower.view.index
    assert follower.on_disk.adopt()
    assert not follower.on_disk.adopt()
    assert follower.view.index is not before
    assert found(follower, templates) == [None, anna, anna, bob, bob]
    assert follower.applied_revision == 3


def test_an_erased_embedding_leaves_the_files(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    templates = new_templates(3)
    enroll(store, "anna", templates)
    replica = replica_of(store, source)
    replica.on_disk.write()

    def files_hold(template: NewTemplate) -> bool:
        files = [path for path in snapshots(replica).folder.rglob("*") if path.is_file()]
        return any(template.embedding.tobytes() in path.read_bytes() for path in files)

    assert all(map(files_hold, templates))
    store.delete_template("people", store.templates("people", subject="anna", after=0, limit=1).items[0].id)
    replica.catch_up(2)
    replica.on_disk.write(erase=True)
    assert [files_hold(template) for template in templates] == [False, True, True]


def test_who_erases_waits_for_the_upkeep_no_longer_than_the_request_may(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(store, "anna", new_templates(1))
    replica = replica_of(store, source)
    replica.on_disk.write()
    store.delete_subject("people", "anna")
    real = ViewOnDisk.write

    def write(writer: ViewOnDisk, **options: bool) -> int | None:
        """The upkeep has begun with something long right before."""
        writer._tending.acquire()
        with within(0.05):
            return real(writer, **options)

    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patched:
        patched.setattr(ViewOnDisk, "write", write)
        erasing = pool.submit(replica.erase_snapshots)
        try:
            with pytest.raises(TimedOut):
                erasing.result(30)
        finally:
            replica._tending.release()
    assert store.gallery("people").erasure is not None
    replica.erase_snapshots()
    assert store.gallery("people").erasure is None


def test_an_erasure_takes_along_what_was_set_aside(
    store: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    for number in range(3):
        enroll(store, f"{number}", new_templates(1))
        replica = replica_of(store, source)
        replica.on_disk.write()
        snapshots(replica).set_all_aside("to see what becomes of it")
        assert len(list(snapshots(replica).folder.glob("damaged-*"))) == 1
    replica.on_disk.write(erase=True)
    assert list(snapshots(replica).folder.glob("damaged-*")) == []


def test_a_view_that_is_loaded_anew_while_its_snapshot_is_prepared_is_the_one_that_is_written(
    store: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(4)
    people = [enroll(store, f"{number}", [template]) for number, template in enumerate(templates[:3])]
    replica = replica_of(store, source)
    store.delete_subject("people", "0")
    real, once = SegmentedIndex.rewrite_erased, iter([1])

    def rewrite_erased(index: SegmentedIndex) -> None:
        for _ in once:  # somebody identifies meanwhile, and what would have to be replayed was dropped
            people.append(enroll(store, "3", templates[3:]))
            with Session(store.engine) as session, session.begin():
                session.execute(delete(ChangeRow))
            replica.catch_up(*store.gallery("people").point)
        real(index)

    monkeypatch.setattr(SegmentedIndex, "rewrite_erased", rewrite_erased)
    replica.on_disk.write(erase=True)
    again = replica_of(store, source)
    assert snapshots(again).revisions == [5]
    assert found(again, templates) == [None, *people[1:]]


def test_what_does_not_change_is_written_once(store: GalleryStore, tmp_path: Path, new_templates: Templates) -> None:
    source = IndexSource("compressed", folder=tmp_path / "index")
    templates = new_templates(5000)
    for first in range(0, 5000, 500):
        enroll(store, f"{first}", templates[first : first + 500])
    replica = replica_of(store, source)
    seen = []
    for number in range(3):
        replica.on_disk.write()
        folder = snapshots(replica).folder
        seen.append({path.name: path.stat().st_ino for path in folder.rglob("segment-*.vectors")})
        enroll(store, f"late {number}", new_templates(1))
        replica.catch_up(11 + number)
    assert len(seen[0]) == 1
    assert seen[0] == seen[1] == seen[2]


def test_what_an_earlier_process_was_to_erase_is_erased_at_the_next_start(
    store: GalleryStore, tmp_path: Path, new_templates: Templates
) -> None:
    source = IndexSource("compressed", folder=tmp_path / "index", snapshot_interval=0.001)
    templates = new_templates(5000)  # enough for a segment, whose files are linked
    for first in range(0, 5000, 500):
        enroll(store, f"{first}", templates[first : first + 500])
    replica = replica_of(store, source)
    replica.on_disk.write()
    store.delete_subject("people", "0")
    replica.catch_up(11)
    replica.on_disk.write()

    def files_hold(template: NewTemplate) -> bool:
        files = [path for path in snapshots(replica).folder.rglob("*") if path.is_file()]
        return any(template.embedding.tobytes() in path.read_bytes() for path in files)

    assert files_hold(templates[0])
    again = replica_of(store, source)
    upkeep = Upkeep(lambda: [again], GalleryHistory(store.engine), source)
    upkeep.tick()
    assert not files_hold(templates[0])
    assert files_hold(templates[600])
    upkeep.stop()


# -- pruning


def reported(store: GalleryStore, **revisions: int) -> GalleryHistory:
    history = GalleryHistory(store.engine)
    for name, revision in revisions.items():
        history.report(store.gallery("people").id, name, revision)
    return history


def left(store: GalleryStore) -> list[int]:
    gallery = store.gallery("people")
    changes = GalleryHistory(store.engine).changes(gallery.id, after=0, up_to=gallery.revision)
    return [change.revision for change in changes]


def test_changes_that_every_follower_has_are_dropped(store: GalleryStore, new_templates: Templates) -> None:
    for key in "abcd":
        enroll(store, key, new_templates(1))
    history = reported(store, one=3, other=2)
    gallery_id = store.gallery("people").id
    assert history.prune(gallery_id) == 2
    assert left(store) == [3, 4]
    history.leave(["other"])
    assert history.prune(gallery_id) == 1
    assert history.prune(gallery_id, silent_for=timedelta(0)) == 0  # everybody is silent: nothing is dropped
    assert left(store) == [4]


def test_who_finds_a_gap_loads_anew(store: GalleryStore, source: IndexSource, new_templates: Templates) -> None:
    templates = new_templates(4)
    anna = enroll(store, "anna", templates[:1])
    replica = replica_of(store, source)
    replica.on_disk.write()
    store.delete_subject("people", "anna")
    bob = enroll(store, "bob", templates[1:])
    reported(store, other=2).prune(store.gallery("people").id)
    assert left(store) == [3, 3, 3]
    replica.catch_up(3)
    assert found(replica, templates) == [None, bob, bob, bob]
    assert found(replica_of(store, source), templates) == [None, bob, bob, bob]
    assert anna != bob


def test_upkeep_writes_snapshots_reports_and_prunes(
    store: GalleryStore, tmp_path: Path, new_templates: Templates
) -> None:
    source = IndexSource(folder=tmp_path / "index", snapshot_interval=0.001)
    enroll(store, "anna", new_templates(2))
    replica = replica_of(store, source)
    upkeep = Upkeep(lambda: [replica], GalleryHistory(store.engine), source)
    upkeep.tick()
    assert snapshots(replica).revisions == [1]
    assert left(store) == []
    enroll(store, "bob", new_templates(1))
    replica.catch_up(2)
    upkeep.stop()
    assert snapshots(replica).revisions == [2]
    assert replica_of(store, source).templates == 3
    assert left(store) == [2]  # nobody has reported it: the process left before


@pytest.mark.parametrize("rewritten", ["removed", "the same revision anew"])
def test_a_snapshot_that_the_leader_replaces_while_it_is_read_is_not_damaged(
    store: GalleryStore, source: IndexSource, new_templates: Templates, rewritten: str
) -> None:
    templates = new_templates(3)
    anna = enroll(store, "anna", templates)
    leader = replica_of(store, source)
    leader.on_disk.write()
    gallery, history = store.gallery("people"), GalleryHistory(store.engine)
    assert source.folder is not None

    def read(times: int) -> Snapshots:
        """Snapshots of which the leader takes one away the first time that its index is opened."""
        left = [None] * times

        def open_index(folder: Path) -> SegmentedIndex:
            if left:
                left.pop()
                shutil.rmtree(folder.parent)
                if rewritten != "removed":
                    leader.on_disk.write()
                    raise SnapshotDamaged("the reader was at a file that went")
            return SegmentedIndex.load(folder, DIMENSION, compress_from=None)

        return Snapshots(source.folder or Path(), gallery, open_index)

    seen = read(1).looked_through(partial(history.contradiction, gallery.id))
    assert (seen.count, seen.damaged) == (rewritten != "removed", ())
    leader.on_disk.write()
    make_index = partial(source.make, gallery)
    follower = GalleryReplica(gallery, history, make_index, read(1))
    follower.catch_up(1)
    assert found(follower, templates) == [anna] * 3
    assert list(source.folder.rglob("damaged-*")) == []
    assert snapshots(leader).revisions == ([] if rewritten == "removed" else [1])


@pytest.mark.parametrize("whole", [True, False])
def test_one_process_leads_also_after_the_folder_was_removed(
    store: GalleryStore, source: IndexSource, new_templates: Templates, whole: bool
) -> None:
    enroll(store, "anna", new_templates(1))
    first, second = snapshots(replica_of(store, source)), snapshots(replica_of(store, source))
    assert (first.lead(), second.lead()) == (True, False)
    if whole:
        second.erase()  # as the service of another extractor does after an erasure
    else:
        (second.folder / "lead").unlink()
    assert [second.lead(), first.lead(), second.lead(), first.lead()] == [True, False, True, False]
    second.resign()
    assert first.lead()
    first.resign()
