"""Snapshots that lie sealed on the disk and open in memory alone."""

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention
from app.gallery.errors import DatabaseUnavailable
from app.gallery.records import NewTemplate
from app.gallery.sealing.encryption import SealedRows
from app.gallery.sealing.master_keys import MasterKey, MasterKeys
from app.gallery.sealing.vault import DataKeyRow, Vault
from app.gallery.snapshots.kept import Looked, Snapshots
from app.gallery.snapshots.private_folder import PrivateFolder, private_base
from app.gallery.snapshots.sealed import SealedSnapshots
from app.gallery.snapshots.unsealing import Unsealing
from app.gallery.sql.epochs import begin_epoch
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import GalleryRow, TemplateRow
from app.gallery.views.consistency import check_gallery
from app.gallery.views.index_source import IndexSource, SnapshotSeal
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.replicas import Replicas
from app.gallery.views.upkeep import Upkeep

EXTRACTOR = "net@0123456789ab"
Templates = Callable[[int], list[NewTemplate]]


class Machine:
    """A machine with a disk and a memory of its own, on the database and the vault of the test."""

    def __init__(self, folder: Path, store: GalleryStore, vault: Vault) -> None:
        self.disk, self.memory = folder / "index", folder / "memory"
        folder.mkdir(exist_ok=True)
        self.store, self.history = store, GalleryHistory(store.engine, store.seals)
        self.private = PrivateFolder(private_base(self.memory), "mine")
        self.source = IndexSource(folder=self.disk, snapshot_interval=0.001, seal=SnapshotSeal(vault, self.private))

    def replica(self) -> GalleryReplica:
        gallery = self.store.gallery("people")
        made = GalleryReplica(
            gallery, self.history, partial(self.source.make, gallery), self.source.snapshots_of(gallery)
        )
        made.catch_up(*gallery.point)
        return made

    def reboot(self) -> None:
        self.private.close()

    def key(self) -> str:
        """Id of the key of the one sealed snapshot."""
        (file,) = self.disk.rglob("key")
        return file.read_text()

    def sealed(self) -> list[str]:
        return sorted(path.name for path in self.disk.rglob("*.sealed"))

    def holds(self, folder: Path, template: NewTemplate) -> bool:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return any(template.embedding.tobytes() in path.read_bytes() for path in files)


@pytest.fixture
def store(sealed_store: GalleryStore) -> GalleryStore:
    sealed_store.create_gallery("people", extractor=EXTRACTOR, dimension=8, policy=None)
    return sealed_store


@pytest.fixture
def machine(tmp_path: Path, store: GalleryStore, vault: Vault) -> Iterator[Machine]:
    made = Machine(tmp_path / "one", store, vault)
    yield made
    made.reboot()


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate]) -> int:
    return store.enroll("people", key, templates, metadata=None, extractor=EXTRACTOR, dimension=8).subject.id


def snapshots(replica: GalleryReplica) -> Snapshots:
    assert replica.snapshots is not None
    return replica.snapshots


def found(replica: GalleryReplica, templates: list[NewTemplate]) -> list[int | None]:
    ranked = replica.search(np.stack([one.embedding for one in templates]), top_k=1, rule="best")
    return [near[0].subject_id if near and near[0].distance < 1e-3 else None for near in ranked]


def away(*_: object, **__: object) -> None:
    """In place of what asks the vault."""
    raise DatabaseUnavailable("the vault does not answer")


def full(*_: object, **__: object) -> None:
    """In place of what writes to the disk."""
    raise OSError(28, "No space left on device")


def test_after_a_reboot_the_sealed_snapshot_alone_answers(machine: Machine, new_templates: Templates) -> None:
    templates = new_templates(3)
    anna = enroll(machine.store, "anna", templates)
    machine.replica().on_disk.write()
    assert machine.holds(machine.memory, templates[0])
    assert not machine.holds(machine.disk, templates[0])
    machine.reboot()
    assert not machine.holds(machine.memory, templates[0])
    with Session(machine.store.engine) as session, session.begin():
        session.execute(delete(TemplateRow))  # what is found comes from the snapshot
    again = machine.replica()
    assert found(again, templates) == [anna] * 3
    assert snapshots(again).revisions == [1]


def test_what_a_process_that_was_killed_opened_halfway_is_removed(machine: Machine, new_templates: Templates) -> None:
    enroll(machine.store, "anna", new_templates(3))
    machine.replica().on_disk.write()
    machine.reboot()
    again = snapshots(machine.replica())
    half = again.folder / "opening-0badcafe"
    half.mkdir()
    (half / "vectors").write_bytes(b"of somebody")
    assert again.looked_through(lambda _point: None) == Looked(1, (), 0)
    assert not half.exists()


def test_what_does_not_change_is_sealed_once(machine: Machine, new_templates: Templates) -> None:
    machine.source = replace(machine.source, kind="compressed")
    templates = new_templates(4500)  # enough for a segment
    for first in range(0, 4500, 500):
        enroll(machine.store, f"{first}", templates[first : first + 500])
    replica = machine.replica()
    replica.on_disk.write()
    before = {path.name: path.stat().st_ino for path in machine.disk.rglob("segment-*.vectors")}
    enroll(machine.store, "bob", new_templates(1))
    replica.catch_up(10)
    replica.on_disk.write()
    after = {path.name: path.stat().st_ino for path in machine.disk.rglob("segment-*.vectors")}
    assert machine.sealed() == [f"{10:020d}.sealed"]
    assert before == after
    assert len(before) == 1


def test_drafts_of_processes_that_died_over_them_go_before_another_needs_room(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(machine.store, "anna", new_templates(1))
    leader = machine.replica()
    leader.on_disk.write()
    (sealed,) = machine.disk.rglob("*.sealed")
    for number in range(3):
        (sealed.parent / f"writing-{number}-0badcafe").mkdir()
    enroll(machine.store, "bob", new_templates(1))
    leader.catch_up(2)
    monkeypatch.setattr("app.gallery.snapshots.sealed.seal_file", full)
    with pytest.raises(OSError, match="No space left"):
        leader.on_disk.write()
    assert list(sealed.parent.iterdir()) == [sealed]


def test_a_folder_in_memory_that_was_removed_under_a_process_is_made_anew_for_its_owner_alone(
    machine: Machine, new_templates: Templates
) -> None:
    """As where the system removes what a user has in memory once that one has logged out."""
    enroll(machine.store, "anna", new_templates(1))
    leader = machine.replica()
    shutil.rmtree(machine.memory)
    mask = os.umask(0o022)
    try:
        leader.on_disk.write()
    finally:
        os.umask(mask)
    assert private_base(machine.memory).is_dir()  # which refuses one that others may enter
    assert stat.S_IMODE(machine.disk.stat().st_mode) == 0o700


def test_a_first_snapshot_that_fails_again_and_again_leaves_no_key_for_each_time(
    machine: Machine, vault: Vault, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = machine.store.gallery("people").id
    enroll(machine.store, "anna", new_templates(1))
    leader = machine.replica()

    def key_after_failures() -> str:
        with monkeypatch.context() as patched:
            patched.setattr("app.gallery.snapshots.sealed.seal_file", full)
            for _ in range(3):
                with pytest.raises(OSError, match="No space left"):
                    leader.on_disk.write()
        (left,) = vault.ids([f"snapshot {gallery}"])
        return left

    first = key_after_failures()
    vault.discard(f"snapshot {gallery}")  # as by an erasure on another machine
    second = key_after_failures()
    assert second != first
    leader.on_disk.write()
    assert machine.key() == second


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)


def change_owners(sealed: Path, _other: Path) -> None:
    flip(sealed / "owners.i64")


def change_index(sealed: Path, _other: Path) -> None:
    flip(max((sealed / "index").iterdir(), key=lambda path: path.stat().st_size))


def lose_a_file(sealed: Path, _other: Path) -> None:
    (sealed / "owners.i64").unlink()


def exchange_files(sealed: Path, _other: Path) -> None:
    shutil.copy(sealed / "snapshot.json", sealed / "owners.i64")


def garble_key(sealed: Path, _other: Path) -> None:
    (sealed / "key").write_bytes(b"\xff")


def take_another_gallerys(sealed: Path, other: Path) -> None:
    shutil.rmtree(sealed)
    shutil.copytree(other, sealed)


@pytest.mark.parametrize(
    "damage",
    [change_owners, change_index, lose_a_file, exchange_files, garble_key, take_another_gallerys],
    ids=lambda one: one.__name__,
)
def test_a_damaged_or_foreign_one_is_told_set_aside_and_everything_rebuilt(
    machine: Machine,
    new_templates: Templates,
    damage: Callable[[Path, Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    templates = new_templates(3)
    anna = enroll(machine.store, "anna", templates)
    machine.store.enroll("others", "o", new_templates(1), metadata=None, extractor=EXTRACTOR, dimension=8)
    machine.replica().on_disk.write()
    others = machine.store.gallery("others")
    other = GalleryReplica(
        others, machine.history, partial(machine.source.make, others), machine.source.snapshots_of(others)
    )
    other.catch_up(1)
    other.on_disk.write()
    machine.reboot()
    people = machine.store.gallery("people").id
    (sealed,) = (machine.disk / f"gallery-{people}").rglob("*.sealed")
    (foreign,) = (machine.disk / f"gallery-{others.id}").rglob("*.sealed")
    damage(sealed, foreign)
    checked = check_gallery(machine.store.gallery("people"), machine.history, machine.source)
    assert [text[:23] for text in checked.damaged_snapshots] == ["snapshot of revision 1:"]
    again = machine.replica()
    assert found(again, templates) == [anna] * 3
    assert snapshots(again).revisions == []
    assert len(list(machine.disk.rglob("damaged-*"))) == 1
    assert "snapshot.set_aside" in capsys.readouterr().out


def test_a_damaged_copy_is_told_where_memory_has_no_room_for_a_second(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service has it open there already."""
    enroll(machine.store, "anna", new_templates(3))
    service = machine.replica()
    service.on_disk.write()
    (sealed,) = machine.disk.rglob("*.sealed")
    flip(sealed / "owners.i64")
    monkeypatch.setattr(os, "posix_fallocate", full)
    seen = snapshots(service).looked_through(lambda _point: None)
    (told,) = seen.damaged
    assert seen.count == 1
    assert told.startswith("snapshot of revision 1: owners.i64 does not open")


def test_a_copy_for_which_memory_has_no_room_is_there_and_not_whole(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(machine.store, "anna", new_templates(3))
    machine.replica().on_disk.write()
    machine.reboot()
    monkeypatch.setattr(os, "posix_fallocate", full)
    kept = machine.source.snapshots_of(machine.store.gallery("people"))
    assert kept is not None
    assert kept.looked_through(lambda _point: None) == Looked(0, (), 1)


def test_open_snapshots_from_before_encryption_are_removed(
    machine: Machine, tmp_path: Path, new_templates: Templates
) -> None:
    templates = new_templates(2)
    anna = enroll(machine.store, "anna", templates)
    plain = IndexSource(folder=machine.disk)
    gallery = machine.store.gallery("people")
    before = GalleryReplica(gallery, machine.history, partial(plain.make, gallery), plain.snapshots_of(gallery))
    before.catch_up(1)
    before.on_disk.write()
    assert machine.holds(machine.disk, templates[0])
    assert found(machine.replica(), templates) == [anna] * 2
    assert not machine.holds(machine.disk, templates[0])


# -- erasure


def with_anna_erased(machine: Machine, templates: list[NewTemplate]) -> tuple[GalleryReplica, int]:
    """Anna and Bob are in a snapshot, and Anna was erased since; the process that wrote it, and Bob's id."""
    enroll(machine.store, "anna", templates[:1])
    bob = enroll(machine.store, "bob", templates[1:])
    leader = machine.replica()
    leader.on_disk.write()
    machine.store.delete_subject("people", "anna")
    return leader, bob


def test_an_erased_embedding_leaves_memory_and_disk_and_older_copies_do_not_open(
    machine: Machine, tmp_path: Path, new_templates: Templates
) -> None:
    templates = new_templates(3)
    enroll(machine.store, "anna", templates[:1])
    bob = enroll(machine.store, "bob", templates[1:])
    leader = machine.replica()
    leader.on_disk.write()
    shutil.copytree(machine.disk, tmp_path / "copy")
    machine.store.delete_subject("people", "anna")
    assert leader.erase_snapshots() == 1
    assert not machine.holds(machine.memory, templates[0])
    assert machine.holds(machine.memory, templates[1])
    assert machine.sealed() == [f"{3:020d}.sealed"]
    machine.reboot()
    shutil.rmtree(machine.disk)
    (tmp_path / "copy").rename(machine.disk)
    again = machine.replica()
    assert found(again, templates) == [None, bob, bob]
    assert snapshots(again).outdated  # its key is gone
    assert not machine.holds(machine.memory, templates[1])
    assert list(machine.disk.rglob("damaged-*")) == []


def test_the_leader_sees_to_it_that_another_process_has_erased(machine: Machine, new_templates: Templates) -> None:
    templates = new_templates(2)
    enroll(machine.store, "anna", templates[:1])
    bob = enroll(machine.store, "bob", templates[1:])
    leader, other = machine.replica(), machine.replica()
    upkeep = Upkeep(lambda: [leader], machine.history, machine.source)
    upkeep.tick()
    assert not snapshots(other).lead()
    machine.store.delete_subject("people", "anna")
    assert machine.store.gallery("people").erasure is not None
    upkeep.tick()
    assert not machine.holds(machine.memory, templates[0])
    assert machine.store.gallery("people").erasure is None
    assert other.on_disk.adopt()
    assert found(other, templates) == [None, bob]
    upkeep.stop()


def test_another_machine_erases_with_its_next_snapshot(
    machine: Machine, tmp_path: Path, store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    templates = new_templates(3)
    enroll(store, "anna", templates[:1])
    enroll(store, "bob", templates[1:2])
    second = Machine(tmp_path / "two", store, vault)
    here, there = machine.replica(), second.replica()
    here.on_disk.write()
    there.on_disk.write()
    store.delete_subject("people", "anna")
    here.erase_snapshots()
    assert snapshots(there).outdated
    enroll(store, "carl", templates[2:])
    there.catch_up(4)
    there.on_disk.write()
    assert not second.holds(second.memory, templates[0])
    for replica in (here, there, here):  # neither destroys the other's new key
        assert not snapshots(replica).outdated
        replica.catch_up(4)
        replica.on_disk.write()
    second.reboot()
    assert found(second.replica(), templates)[0] is None
    assert second.sealed() == [f"{4:020d}.sealed"]
    second.reboot()


@pytest.mark.parametrize("end", ["a stop", "a crash in the middle"])
def test_what_is_to_be_erased_outlasts_the_process(
    machine: Machine, new_templates: Templates, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    enroll(machine.store, "anna", templates[:1])
    bob = enroll(machine.store, "bob", templates[1:])
    leader = machine.replica()
    upkeep = Upkeep(lambda: [leader], machine.history, machine.source)
    upkeep.tick()
    sealed = machine.disk.parent / "before"
    shutil.copytree(machine.disk, sealed)
    machine.store.delete_subject("people", "anna")  # and nothing else is told of it
    if end == "a stop":
        upkeep.stop()
        assert machine.store.gallery("people").erasure is None
    else:

        class Died(BaseException): ...

        def die(*_: object, **__: object) -> None:
            raise Died

        monkeypatch.setattr(Snapshots, "write", die)
        with pytest.raises(Died):
            upkeep.tick()
        monkeypatch.undo()
        snapshots(leader).resign()
        machine.reboot()
        leader = machine.replica()
        assert machine.store.gallery("people").erasure is not None
        upkeep = Upkeep(lambda: [leader], machine.history, machine.source)
        upkeep.tick()
        upkeep.stop()
        assert machine.store.gallery("people").erasure is None
    machine.reboot()
    shutil.rmtree(machine.disk)
    sealed.rename(machine.disk)  # the earlier one does not open any more
    again = machine.replica()
    assert found(again, templates) == [None, bob]
    assert snapshots(again).outdated


def test_changes_stay_until_a_snapshot_that_lasts_has_them(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(machine.store, "anna", new_templates(1))
    leader = machine.replica()
    upkeep = Upkeep(lambda: [leader], machine.history, machine.source)
    upkeep.tick()
    enroll(machine.store, "bob", new_templates(1))

    monkeypatch.setattr("app.gallery.snapshots.sealed.seal_file", full)
    upkeep.tick()
    assert snapshots(leader).revisions == [1, 2]  # one that is sealed, and one that lies open
    upkeep.stop()
    gallery = machine.store.gallery("people")
    assert [change.revision for change in machine.history.changes(gallery.id, after=0, up_to=2)] == [2]


def test_keys_that_could_not_be_destroyed_are_destroyed_at_the_next_try(
    machine: Machine, vault: Vault, tmp_path: Path, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vault is away: neither can the snapshot be written anew, nor the old one's key be destroyed."""
    templates = new_templates(1)
    enroll(machine.store, "anna", templates)
    leader = machine.replica()
    leader.on_disk.write()
    shutil.copytree(machine.disk, tmp_path / "copy")
    machine.store.delete_subject("people", "anna")

    for name in ("new_key", "discard"):
        monkeypatch.setattr(Vault, name, away)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            leader.erase_snapshots()
    monkeypatch.undo()
    leader.erase_snapshots()
    assert machine.store.gallery("people").erasure is None
    (key,) = (path.read_text() for path in (tmp_path / "copy").rglob("key"))
    assert key not in vault.open_keys([key])


def test_where_nothing_can_be_written_no_trace_stays_either(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    leader, bob = with_anna_erased(machine, templates)

    monkeypatch.setattr("app.gallery.index.segmented.snapshot.write_state", full)
    assert leader.erase_snapshots() == 1
    assert snapshots(leader).revisions == []
    assert machine.sealed() == []
    assert not machine.holds(machine.memory, templates[0])
    assert found(leader, templates) == [None, bob]
    monkeypatch.undo()
    leader.on_disk.write()
    assert machine.sealed() == [f"{3:020d}.sealed"]


def test_an_erasure_takes_what_was_opened_halfway_with_it(machine: Machine, new_templates: Templates) -> None:
    enroll(machine.store, "anna", new_templates(1))
    leader = machine.replica()
    leader.on_disk.write()
    half = snapshots(leader).folder / "opening-0badcafe"
    half.mkdir()
    (half / "vectors").write_bytes(b"of somebody")
    machine.store.delete_subject("people", "anna")
    leader.erase_snapshots()
    assert not half.exists()
    assert machine.sealed() == [f"{2:020d}.sealed"]


def test_a_gallery_that_is_erased_leaves_nothing(machine: Machine, vault: Vault, new_templates: Templates) -> None:
    enroll(machine.store, "anna", new_templates(1))
    machine.replica().on_disk.write()
    machine.source.forget(machine.store.gallery("people"))
    assert [path for path in machine.disk.rglob("*") if path.is_file()] == []
    assert vault.discard(f"snapshot {machine.store.gallery('people').id}") == 0


def replica_in(machine: Machine, name: str, templates: list[NewTemplate]) -> GalleryReplica:
    """Of a gallery with somebody in it, and with a snapshot."""
    machine.store.enroll(name, "anna", templates, metadata=None, extractor=EXTRACTOR, dimension=8)
    gallery = machine.store.gallery(name)
    made = GalleryReplica(
        gallery, machine.history, partial(machine.source.make, gallery), machine.source.snapshots_of(gallery)
    )
    made.catch_up(gallery.revision)
    made.on_disk.write()
    return made


def test_of_a_gallery_whose_erasure_broke_off_or_that_a_restore_undid_nothing_stays(
    machine: Machine, vault: Vault, tmp_path: Path, forgetting: Forgetting, new_templates: Templates
) -> None:
    people = replica_in(machine, "people", new_templates(1))
    gone = [replica_in(machine, "before", new_templates(1))]
    begin_epoch(machine.store.engine)  # ids are long from here on, and keys have purposes of another form
    gone.append(replica_in(machine, "after", new_templates(1)))
    for replica in gone:
        machine.store.delete_gallery(replica.name)  # and nothing else is told of it
    assert len(vault.purposes("snap")) == 3
    second = Machine(tmp_path / "two", machine.store, vault)  # it has none of the files
    Replicas(second.store, second.history, second.source, extractor=EXTRACTOR).drop_gone()
    assert vault.purposes("snap") == {f"snapshot {people.gallery_id}"}
    here = Replicas(machine.store, machine.history, machine.source, extractor=EXTRACTOR)
    forgetting.connect(follow=here.follow, erase_traces=here.erase_traces, drop_gone=here.drop_gone)
    Retention(machine.store.engine, forgetting).sweep()
    for folder in (machine.disk, machine.private.path):
        assert [path.name for path in folder.glob("gallery-*")] == [f"gallery-{people.gallery_id}"]
    assert not snapshots(people).outdated
    second.reboot()


def test_a_gallery_that_is_made_while_those_that_are_gone_are_looked_for_keeps_its_snapshot(
    machine: Machine, new_templates: Templates
) -> None:
    replica_in(machine, "people", new_templates(1))
    made = list[GalleryReplica]()

    def present() -> set[int]:
        there = set(machine.history.points())
        made.append(replica_in(machine, "new", new_templates(1)))
        return there

    machine.source.drop_gone(present)
    assert snapshots(made[0]).revisions == [1]
    assert not snapshots(made[0]).outdated


# -- the check


def test_templates_that_do_not_open_are_counted_and_named(machine: Machine, new_templates: Templates) -> None:
    made = machine.store.enroll("people", "anna", new_templates(3), metadata=None, extractor=EXTRACTOR, dimension=8)
    second = made.added[1].id
    with Session(machine.store.engine) as session, session.begin():
        session.execute(update(TemplateRow).where(TemplateRow.id == second).values(embedding=b"x" * 61))
    checked = check_gallery(machine.store.gallery("people"), machine.history, machine.source)
    assert (checked.templates, checked.unreadable, checked.whole, checked.mendable) == (2, (second,), False, False)


def test_a_gallery_whose_keys_could_not_be_destroyed_is_owed_that(
    machine: Machine, vault: Vault, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(machine.store, "anna", new_templates(1))
    machine.replica().on_disk.write()
    replicas = Replicas(machine.store, machine.history, machine.source, extractor="other@ba9876543210")
    gone = machine.store.delete_gallery("people")

    monkeypatch.setattr(Vault, "discard", away)
    with pytest.raises(DatabaseUnavailable):
        replicas.follow(gone)
    with pytest.raises(DatabaseUnavailable):
        replicas.follow_again()
    monkeypatch.undo()
    replicas.follow_again()
    assert vault.discard(f"snapshot {gone.id}") == 0
    assert replicas._owed == {}


def test_a_gallery_of_the_same_name_pays_no_debt_of_another(
    machine: Machine, vault: Vault, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(machine.store, "anna", new_templates(1))
    machine.replica().on_disk.write()
    replicas = Replicas(machine.store, machine.history, machine.source, extractor=EXTRACTOR)
    gone = machine.store.delete_gallery("people")

    with monkeypatch.context() as patched:
        patched.setattr(Vault, "discard", away)
        with pytest.raises(DatabaseUnavailable):
            replicas.follow(gone)
    machine.store.create_gallery("people", extractor=EXTRACTOR, dimension=8, policy=None)
    replicas.follow_again()
    assert vault.discard(f"snapshot {gone.id}") == 0


def test_what_is_erased_while_its_snapshot_is_written_is_the_next_ones_business(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(3)
    for key, template in zip(("anna", "bob", "carl"), templates, strict=True):
        enroll(machine.store, key, [template])
    leader = machine.replica()
    leader.on_disk.write()
    machine.store.delete_subject("people", "anna")
    real = Snapshots.write

    def write(*arguments: Any, **named: Any) -> Path:
        machine.store.delete_subject("people", "bob")
        return real(*arguments, **named)

    monkeypatch.setattr(Snapshots, "write", write)
    leader.erase_snapshots()
    monkeypatch.undo()
    assert [machine.holds(machine.memory, one) for one in templates] == [False, True, True]
    assert machine.store.gallery("people").erasure is not None
    leader.erase_snapshots()
    assert [machine.holds(machine.memory, one) for one in templates] == [False, False, True]
    assert machine.store.gallery("people").erasure is None


def test_a_vault_that_is_away_keeps_the_erasure_on_the_list(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    leader, _ = with_anna_erased(machine, templates)
    monkeypatch.setattr(Vault, "discard", away)
    with pytest.raises(DatabaseUnavailable):
        leader.erase_snapshots()
    monkeypatch.undo()
    assert machine.store.gallery("people").erasure is not None
    leader.erase_snapshots()
    assert machine.store.gallery("people").erasure is None
    assert not machine.holds(machine.memory, templates[0])


def refuse_listing(patch: pytest.MonkeyPatch, folder: Path, error: OSError) -> None:
    """No folder in there can be listed."""
    real = Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path.is_relative_to(folder):
            raise error
        return real(path)

    patch.setattr(Path, "iterdir", refused)


def owes_erasure(machine: Machine) -> bool:
    return machine.store.gallery("people").erasure is not None


def test_who_leads_and_was_stopped_does_not_hold_back_an_erasure_for_ever(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    stopped, _ = with_anna_erased(machine, templates)
    bob = machine.store.subject("people", "bob").id
    assert snapshots(stopped).lead()
    other = machine.replica()
    upkeep = Upkeep(lambda: [other], machine.history, machine.source)
    upkeep.tick()
    assert owes_erasure(machine)  # it may be busy
    assert machine.sealed() != []
    monkeypatch.setattr("app.gallery.views.snapshot_keeping._LEADER_SILENT", 0)
    upkeep.tick()
    assert not owes_erasure(machine)
    assert (machine.sealed(), machine.holds(machine.memory, templates[0])) == ([], False)

    going_on = Upkeep(lambda: [stopped], machine.history, machine.source)
    going_on.tick()
    assert len(machine.sealed()) == 1
    machine.reboot()
    assert found(machine.replica(), templates) == [None, bob]
    going_on.stop()
    upkeep.stop()


def test_who_leads_gives_signs_of_life(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.snapshots.lead._EVERY", 0)
    enroll(machine.store, "anna", new_templates(1))
    leader, other = snapshots(machine.replica()), snapshots(machine.replica())
    signs = {other.lead_sign}
    while len(signs) < 4:  # none yet, and three that differ
        assert leader.lead()
        assert not other.lead()
        signs.add(other.lead_sign)
    leader.resign()


def test_a_start_does_not_wait_for_ever_for_who_was_stopped_while_opening_a_snapshot(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    anna = enroll(machine.store, "anna", templates)
    machine.replica().on_disk.write()
    machine.reboot()
    monkeypatch.setattr("app.gallery.snapshots.unsealing._PATIENCE", 0.05)
    place = machine.source.snapshots_of(machine.store.gallery("people"))
    assert place is not None
    place.folder.mkdir(parents=True)
    with (place.folder / "opening").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert found(machine.replica(), templates) == [anna, anna]  # built from SQL
    assert len(machine.sealed()) == 1


def test_of_what_is_set_aside_the_last_stays_until_an_erasure_takes_it_and_its_key(
    machine: Machine, vault: Vault, new_templates: Templates
) -> None:
    templates = new_templates(4)
    enroll(machine.store, "anna", templates[:1])
    for number in (1, 2):
        enroll(machine.store, f"subject {number}", templates[number : number + 1])
        machine.replica().on_disk.write()
        snapshots(machine.replica()).set_all_aside("to see what becomes of it")
    (aside,) = machine.disk.rglob("damaged-*")
    key = (aside / "key").read_text()
    assert vault.open_keys([key])[key] is not None
    machine.reboot()  # whoever has set it aside is gone

    later = machine.replica()
    machine.store.delete_subject("people", "anna")
    upkeep = Upkeep(lambda: [later], machine.history, machine.source)
    upkeep.tick()
    assert machine.store.gallery("people").erasure is None
    assert list(machine.disk.rglob("damaged-*")) == []
    assert vault.open_keys([key]).get(key) is None  # copies elsewhere do not open either
    upkeep.stop()


def test_what_another_opens_while_the_snapshot_is_erased_does_not_stay_open(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    leader, _ = with_anna_erased(machine, templates)
    other = machine.source.snapshots_of(machine.store.gallery("people"))
    assert other is not None
    real, seen = SealedSnapshots.write, []

    def write(*arguments: Any, **named: Any) -> None:
        opened = other.open_newest(lambda _point: None)  # as it was listed before
        seen.append(opened is not None)
        real(*arguments, **named)

    monkeypatch.setattr(SealedSnapshots, "write", write)
    leader.erase_snapshots()
    assert seen == [True]
    assert not machine.holds(machine.memory, templates[0])


def test_a_newer_snapshot_is_opened_where_the_one_that_was_found_is_gone(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    anna = enroll(machine.store, "anna", templates[:1])
    leader = machine.replica()
    leader.on_disk.write()
    bob = enroll(machine.store, "bob", templates[1:])
    leader.catch_up(2)
    real, once = Snapshots._open, iter([leader.on_disk.write])

    def opened(*arguments: Any) -> Any:
        for write in once:
            write()
        return real(*arguments)

    monkeypatch.setattr(Snapshots, "_open", opened)
    monkeypatch.setattr(GalleryHistory, "template_blocks", lambda *_: pytest.fail("read SQL although it is there"))
    assert found(machine.replica(), templates) == [anna, bob]


def test_a_snapshot_that_cannot_be_renamed_or_is_set_aside_by_another_stops_no_start(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    templates = new_templates(1)
    anna = enroll(machine.store, "anna", templates)
    real = Path.rename

    def by_another(path: Path, target: Path) -> Path:
        if "damaged" in str(target):
            real(path, f"{target}-too")
        return real(path, target)

    def by_nobody(path: Path, target: Path) -> Path:
        if "damaged" in str(target):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, target)

    for rename, told in ((by_nobody, "snapshot.damaged"), (by_another, "")):
        machine.replica().on_disk.write()
        machine.reboot()
        (sealed,) = machine.disk.rglob("*[0-9].sealed")
        (sealed / "owners.i64").write_bytes(b"x")
        monkeypatch.setattr(Path, "rename", rename)
        capsys.readouterr()
        assert found(machine.replica(), templates) == [anna]
        assert told in capsys.readouterr().out
        monkeypatch.undo()


def test_a_process_without_files_left_to_open_sets_no_snapshot_aside(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    templates = new_templates(1)
    anna = enroll(machine.store, "anna", templates)
    machine.replica().on_disk.write()

    def none_left(*_: object, **__: object) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", none_left)
    assert found(machine.replica(), templates) == [anna]
    monkeypatch.undo()
    assert machine.sealed() == [f"{1:020d}.sealed"]
    assert "snapshot.not_opened" in capsys.readouterr().out


def test_a_folder_on_the_disk_that_cannot_be_read_stops_neither_a_start_nor_the_upkeep_nor_an_erasure(
    machine: Machine,
    vault: Vault,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As one that a command has made for another user, or that lies on a disk at fault."""
    templates = new_templates(2)
    enroll(machine.store, "anna", templates[:1])
    bob = enroll(machine.store, "bob", templates[1:])
    machine.replica().on_disk.write()
    key = machine.key()
    machine.reboot()
    refuse_listing(monkeypatch, machine.disk, PermissionError(errno.EACCES, "Permission denied"))
    again = machine.replica()
    upkeep = Upkeep(lambda: [again], machine.history, machine.source)
    upkeep.tick()
    machine.store.delete_subject("people", "anna")
    upkeep.tick()
    told = capsys.readouterr().out
    assert ("snapshot.failed" in told, "upkeep.failed" in told) == (True, False)
    assert not owes_erasure(machine)
    assert key not in vault.open_keys([key])
    assert found(again, templates) == [None, bob]
    machine.source.drop_gone(machine.history.points)
    monkeypatch.undo()
    upkeep.stop()


def test_a_folder_in_memory_that_cannot_be_read_stops_no_load_and_leaves_no_copy_that_opens(
    machine: Machine, vault: Vault, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies open there is owed until it can be removed."""
    templates = new_templates(2)
    enroll(machine.store, "anna", templates[:1])
    bob = enroll(machine.store, "bob", templates[1:])
    machine.replica().on_disk.write()
    key = machine.key()
    with monkeypatch.context() as patch:
        refuse_listing(patch, machine.memory, OSError(errno.EMFILE, "Too many open files"))
        again = machine.replica()
        upkeep = Upkeep(lambda: [again], machine.history, machine.source)
        machine.store.delete_subject("people", "anna")
        upkeep.tick()
        assert found(again, templates) == [None, bob]
        assert key not in vault.open_keys([key])
        assert owes_erasure(machine)
    upkeep.stop()
    assert not owes_erasure(machine)
    assert not machine.holds(machine.memory, templates[0])


@pytest.mark.parametrize("when", ["tick", "stop"])
def test_an_index_that_cannot_be_loaded_does_not_hold_back_an_erasure(
    machine: Machine, vault: Vault, new_templates: Templates, when: str
) -> None:
    """As where the master key that has wrapped people's keys is not at hand."""
    enroll(machine.store, "anna", new_templates(1))
    enroll(machine.store, "bob", new_templates(1))
    machine.replica().on_disk.write()
    key = machine.key()
    machine.reboot()
    machine.store.delete_subject("people", "anna")
    without = Vault(vault.engine, MasterKeys([MasterKey.make()]))
    store = GalleryStore(machine.store.engine, seals=SealedRows(without))
    closed, gallery = Machine(machine.disk.parent, store, without), store.gallery("people")
    replica = GalleryReplica(
        gallery, closed.history, partial(closed.source.make, gallery), closed.source.snapshots_of(gallery)
    )
    upkeep = Upkeep(lambda: [replica], closed.history, closed.source)
    getattr(upkeep, when)()
    assert replica.applied_revision == -1
    assert not owes_erasure(machine)
    assert key not in vault.open_keys([key])
    assert machine.sealed() == []
    upkeep.stop()
    closed.reboot()


def test_snapshots_of_a_gallery_that_was_made_after_a_restore(
    machine: Machine, vault: Vault, new_templates: Templates
) -> None:
    enroll(machine.store, "anna", new_templates(1))
    begin_epoch(machine.store.engine)
    machine.store.create_gallery("later", extractor=EXTRACTOR, dimension=8, policy=None)
    bob = new_templates(1)
    machine.store.enroll("later", "bob", bob, metadata=None, extractor=EXTRACTOR, dimension=8)
    later = machine.store.gallery("later")
    made = GalleryReplica(
        later, machine.history, partial(machine.source.make, later), machine.source.snapshots_of(later)
    )
    made.catch_up(*later.point)
    made.on_disk.write()
    (file,) = (machine.disk / f"gallery-{later.id}").rglob("key")
    key = file.read_text()
    machine.store.delete_subject("later", "bob")
    made.erase_snapshots()
    assert key not in vault.open_keys([key])
    with Session(vault.engine) as session:
        purposes = session.scalars(select(DataKeyRow.purpose)).all()
    assert max(map(len, purposes)) <= 20  # SQLite takes more than the column has, PostgreSQL does not


def test_two_machines_that_erase_at_once_end_with_snapshots_that_open(
    machine: Machine, tmp_path: Path, store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    """Each destroys the other's new key; nobody changes the gallery afterwards."""
    templates = new_templates(2)
    enroll(store, "anna", templates[:1])
    bob = enroll(store, "bob", templates[1:])
    second = Machine(tmp_path / "two", store, vault)
    here, there = machine.replica(), second.replica()
    upkeeps = [Upkeep(partial(list, (one,)), machine.history, machine.source) for one in (here, there)]
    for upkeep in upkeeps:
        upkeep.tick()
    store.delete_subject("people", "anna")
    here.erase_snapshots()
    there.erase_snapshots()  # as if it had read the list before the other had cleared it
    assert snapshots(here).outdated
    for _ in range(2):
        time.sleep(0.01)
        for upkeep in upkeeps:
            upkeep.tick()
    assert not snapshots(here).outdated
    assert not snapshots(there).outdated
    for one in (machine, second):
        one.reboot()
        assert found(one.replica(), templates) == [None, bob]
        assert not one.holds(one.memory, templates[0])
        assert one.holds(one.memory, templates[1])
        one.reboot()


@pytest.mark.parametrize("had_one", [True, False])
def test_what_another_machine_erases_while_a_snapshot_is_written_is_not_sealed(
    machine: Machine,
    tmp_path: Path,
    store: GalleryStore,
    vault: Vault,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
    had_one: bool,
) -> None:
    templates = new_templates(3)
    enroll(store, "anna", templates[:1])
    bob = enroll(store, "bob", templates[1:2])
    second = Machine(tmp_path / "two", store, vault)
    here, there = machine.replica(), second.replica()
    here.on_disk.write()
    if had_one:
        there.on_disk.write()
    carl = enroll(store, "carl", templates[2:])
    there.catch_up(3)
    real, erasures = Snapshots._write, iter(["anna"])

    def write(self: Snapshots, *arguments: Any) -> Path:
        place = real(self, *arguments)  # in memory, with anna
        for key in erasures:
            store.delete_subject("people", key)
            here.erase_snapshots()
        return place

    monkeypatch.setattr(Snapshots, "_write", write)
    assert there.on_disk.write() == 4
    monkeypatch.undo()
    assert store.gallery("people").erasure is None
    assert not second.holds(second.memory, templates[0])
    for one in (machine, second):
        one.reboot()
        with Session(store.engine) as session, session.begin():
            session.execute(delete(TemplateRow))  # what is found comes from the snapshot
        assert found(one.replica(), templates) == [None, bob, carl]
        one.reboot()


def test_a_first_snapshot_of_a_machine_that_lags_has_nothing_that_was_erased(
    machine: Machine, tmp_path: Path, store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    templates = new_templates(2)
    enroll(store, "anna", templates[:1])
    enroll(store, "bob", templates[1:])
    second = Machine(tmp_path / "two", store, vault)
    here, there = machine.replica(), second.replica()
    here.on_disk.write()
    store.delete_subject("people", "anna")
    here.erase_snapshots()
    assert there.on_disk.write() == 3
    assert not second.holds(second.memory, templates[0])
    second.reboot()


def test_a_machine_that_others_erase_beside_again_and_again_writes_no_snapshot(
    machine: Machine, vault: Vault, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = machine.store.gallery("people").id
    enroll(machine.store, "anna", new_templates(1))
    leader = machine.replica()
    real = Snapshots._write

    def write(self: Snapshots, *arguments: Any) -> Path:
        vault.discard(f"snapshot {gallery}")
        return real(self, *arguments)

    monkeypatch.setattr(Snapshots, "_write", write)
    assert leader.on_disk.write() is None
    assert machine.sealed() == []
    monkeypatch.undo()
    assert leader.on_disk.write() == 1


def test_snapshots_of_an_extractor_that_was_left_are_erased_where_there_are_no_others(
    machine: Machine, store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(1))
    machine.replica().on_disk.write()
    key = machine.key()
    with Session(store.engine) as session, session.begin():
        session.execute(update(GalleryRow).values(extractor="other@ba9876543210", erasure="0" * 32))
    moved = machine.replica()
    upkeep = Upkeep(lambda: [moved], machine.history, machine.source)
    upkeep.tick()
    upkeep.stop()
    assert store.gallery("people").erasure is None
    assert key not in vault.open_keys([key])
    assert [path.parent.name for path in machine.disk.rglob("*.sealed")] == [snapshots(moved).folder.name]


def test_where_the_last_sweep_of_an_erasure_fails_no_snapshot_is_left(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    leader, _ = with_anna_erased(machine, templates)
    monkeypatch.setattr(Unsealing, "alone", full)
    leader.erase_snapshots()
    monkeypatch.undo()
    assert machine.sealed() == []
    assert not machine.holds(machine.memory, templates[0])
    assert machine.store.gallery("people").erasure is None


def test_a_check_goes_on_beside_who_was_stopped_while_opening_a_snapshot(
    machine: Machine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(machine.store, "anna", new_templates(2))
    replica = machine.replica()
    replica.on_disk.write()
    monkeypatch.setattr("app.gallery.snapshots.unsealing._PATIENCE", 0.05)
    with (snapshots(replica).folder / "opening").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert check_gallery(machine.store.gallery("people"), machine.history, machine.source).whole
