"""A gallery that moves loses nobody without a word, and no crop."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, event, text

from app.gallery.errors import MoveRefused
from app.gallery.moving.exporting import open_snapshot
from app.gallery.records import NewTemplate
from app.gallery.reembedding.move import Move, move_back
from app.gallery.reembedding.store import ReembeddingStore, Spares, Switch
from app.gallery.sealing.encryption import SealedRows
from app.gallery.sealing.resealing import seal_plain_rows
from app.gallery.sealing.vault import Vault
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import migrate
from app.gallery.store import GalleryStore
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from tests.databases import others_wait, steps_of

Templates = Callable[[int], list[NewTemplate]]
OLD, NEW = "old@1", "new@1"


def with_crops(templates: list[NewTemplate]) -> list[NewTemplate]:
    return [replace(one, crop=b"a picture of " + one.crop_sha256.encode()) for one in templates]


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate], extractor: str = OLD) -> None:
    store.enroll("people", key, templates, metadata=None, extractor=extractor, dimension=8)


def move(store: GalleryStore) -> None:
    """Move the gallery to the new extractor, with made-up embeddings."""
    gallery, moves = store.gallery("people"), ReembeddingStore(store.engine, store.seals)
    ids = [one.id for one in store.templates("people", subject=None, after=0, limit=99).items]
    moves.add(gallery, NEW, ids, np.eye(len(ids), 8, dtype=np.float32))
    assert moves.switch(gallery, NEW, dimension=8, unusable=(), with_crops=True) == Switch("done")


def templates_of(store: GalleryStore) -> dict[str, int]:
    return {one.key: one.templates for one in store.subjects("people", after=0, limit=9).items}


def crops_of(store: GalleryStore) -> set[bytes]:
    moves = ReembeddingStore(store.engine, store.seals)
    return {one.image for one in moves.crops_to_embed(store.gallery("people"), "third@1", after=0, limit=9)}


def count(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def erasures(store: GalleryStore) -> dict[str, str | None]:
    with store.engine.connect() as connection:
        return {row.name: row.erasure for row in connection.execute(text("SELECT name, erasure FROM gallery"))}


def test_the_last_embeddings_of_a_move_cost_no_more_than_the_first(
    engine: Engine, store: GalleryStore, new_templates: Templates
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL does not say what a query costs it")
    enroll(store, "anna", new_templates(2000))
    gallery, moves, costs = store.gallery("people"), ReembeddingStore(store.engine), []
    ids = [one.id for one in store.templates("people", subject=None, after=0, limit=2000).items]
    for start in range(0, 2000, 100):
        with steps_of(engine) as steps:
            moves.add(gallery, NEW, ids[start : start + 100], np.ones((100, 8), np.float32))
        costs.append(len(steps))
    assert costs[-1] - costs[1] < 20


def test_who_still_comes_costs_no_more_in_a_gallery_that_has_nearly_moved(
    engine: Engine, store: GalleryStore, new_templates: Templates
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL does not say what a query costs it")
    moves, costs = ReembeddingStore(engine), []
    for many in (200, 3000):
        made = store.enroll(f"{many}", "anna", new_templates(many), metadata=None, extractor=OLD, dimension=8)
        gallery, ids = store.gallery(f"{many}"), [one.id for one in made.added]
        moves.add(gallery, NEW, ids, np.ones((many, 8), np.float32))
        store.enroll(f"{many}", "bob", with_crops(new_templates(9)), metadata=None, extractor=OLD, dimension=8)
        with steps_of(engine) as steps:
            switch = moves.switch(gallery, NEW, dimension=8, unusable=ids[:1], with_crops=True, at_most=2)
        assert switch.state == "waiting"
        costs.append(len(steps))
    assert costs[1] - costs[0] < 5


@pytest.fixture
def moved(sealed_store: GalleryStore, new_templates: Templates) -> GalleryStore:
    """A gallery that moved with its only subject."""
    enroll(sealed_store, "anna", new_templates(1))
    move(sealed_store)
    return sealed_store


def test_galleries_move_apart_and_know_their_own_spares_alone_also_where_all_is_set_aside(
    moved: GalleryStore, new_templates: Templates
) -> None:
    moves = ReembeddingStore(moved.engine, moved.seals)
    for name in ("begun", "aside"):
        moved.enroll(name, "bob", with_crops(new_templates(1)), metadata=None, extractor=OLD, dimension=8)
    begun, aside = moved.gallery("begun"), moved.gallery("aside")
    (template,) = moved.templates("begun", subject=None, after=0, limit=9).items
    assert moves.last_template(begun) == template.id
    assert moves.spares(moved.gallery("people")) == Spares(OLD, previous=True)
    assert moves.spares(begun) is None
    moves.add(begun, NEW, [template.id], np.eye(1, 8, dtype=np.float32))
    assert moves.spares(begun) == Spares(NEW, previous=False)
    assert (moves.count_missing(begun, NEW), moves.count_missing(aside, NEW)) == (0, 1)
    assert moves.incomplete(begun, NEW, with_crops=False) == []
    assert moves.crops_to_embed(begun, NEW, after=0, limit=9) == []
    assert moves.switch(begun, NEW, dimension=8, unusable=(), with_crops=True) == Switch("done")
    moves.switch(aside, NEW, dimension=8, unusable=(), with_crops=False, without_missing=True)
    assert moves.spares(moved.gallery("aside")) == Spares(OLD, previous=True)
    before = erasures(moved)
    assert moves.discard(moved.gallery("aside")) == 1
    assert moves.spares(moved.gallery("begun")) == Spares(OLD, previous=True)
    after = erasures(moved)
    assert {name for name in after if after[name] != before[name]} == {"aside"}  # whose snapshots are to be erased


def test_a_template_with_a_damaged_crop_is_waited_for_no_more(
    sealed_store: GalleryStore, new_templates: Templates
) -> None:
    moves = ReembeddingStore(sealed_store.engine, sealed_store.seals)
    enroll(sealed_store, "anna", with_crops(new_templates(1)))
    gallery = sealed_store.gallery("people")
    (template,) = sealed_store.templates("people", subject=None, after=0, limit=9).items
    assert moves.switch(gallery, NEW, dimension=8, unusable=(), with_crops=True).state == "waiting"
    assert moves.switch(gallery, NEW, dimension=8, unusable=[template.id], with_crops=True).state == "refused"


def test_embeddings_of_a_third_extractor_or_of_a_gallery_that_has_moved_are_refused(
    sealed_store: GalleryStore, new_templates: Templates
) -> None:
    moves, one = ReembeddingStore(sealed_store.engine, sealed_store.seals), np.eye(1, 8, dtype=np.float32)
    enroll(sealed_store, "anna", new_templates(1))
    before = sealed_store.gallery("people")
    (template,) = sealed_store.templates("people", subject=None, after=0, limit=9).items
    moves.add(before, NEW, [template.id], one)
    with pytest.raises(MoveRefused, match="has begun to move to another extractor"):
        moves.add(before, "third@1", [template.id], one)
    assert moves.switch(before, NEW, dimension=8, unusable=(), with_crops=True) == Switch("done")
    with pytest.raises(MoveRefused, match="was moved or made anew meanwhile"):
        moves.add(before, OLD, [template.id], one)


@pytest.mark.parametrize("without_missing", [False, True])
@pytest.mark.parametrize("crops", [False, True])
def test_who_is_enrolled_at_the_last_moment_is_not_set_aside_without_a_word(
    moved: GalleryStore,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
    without_missing: bool,
    crops: bool,
) -> None:
    switch = ReembeddingStore.switch

    def late(self: ReembeddingStore, *arguments: object, **named: object) -> Switch:
        enroll(moved, "bob", with_crops(new_templates(2)) if crops else new_templates(2), NEW)
        return switch(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(ReembeddingStore, "switch", late)
    back: Move = move_back(moved, "people", None, without_missing=without_missing)
    assert [(one.key, one.missing, one.templates) for one in back.incomplete] == [("bob", 2, 2)]
    assert (back.state, back.gallery.extractor) == (("moved", OLD) if without_missing else ("incomplete", NEW))
    assert templates_of(moved) == {"anna": 1, "bob": 0 if without_missing else 2}


def test_a_crop_is_set_aside_with_its_template_and_comes_back(moved: GalleryStore, new_templates: Templates) -> None:
    photos = with_crops(new_templates(2))
    enroll(moved, "bob", photos, NEW)
    assert move_back(moved, "people", None, without_missing=True).state == "moved"
    assert (templates_of(moved), crops_of(moved)) == ({"anna": 1, "bob": 0}, set())
    forth = move_back(moved, "people", None)
    assert (forth.gallery.extractor, forth.incomplete) == (NEW, ())
    assert (templates_of(moved), crops_of(moved)) == ({"anna": 1, "bob": 2}, {one.crop for one in photos})
    assert count(moved.engine, "set_aside_template") == 0


def test_a_photo_enrolled_again_without_its_crop_gets_the_one_that_was_set_aside(
    moved: GalleryStore, new_templates: Templates
) -> None:
    (photo,) = with_crops(new_templates(1))
    enroll(moved, "bob", [photo], NEW)
    move_back(moved, "people", None, without_missing=True)
    enroll(moved, "bob", [replace(photo, crop=None)])
    (again,) = moved.templates("people", subject="bob", after=0, limit=9).items
    moves = ReembeddingStore(moved.engine, moved.seals)
    moves.add(moved.gallery("people"), NEW, [again.id], np.eye(1, 8, dtype=np.float32))
    assert move_back(moved, "people", None).gallery.extractor == NEW
    assert moved.templates("people", subject="bob", after=0, limit=9).items == (again,)
    assert (crops_of(moved), count(moved.engine, "set_aside_template")) == ({photo.crop}, 0)


def test_what_was_set_aside_of_a_photo_goes_with_its_template(moved: GalleryStore, new_templates: Templates) -> None:
    photos = with_crops(new_templates(2))
    enroll(moved, "bob", photos, NEW)
    enroll(moved, "carl", photos, NEW)
    move_back(moved, "people", None, without_missing=True)
    enroll(moved, "bob", photos[:1])
    (again,) = moved.templates("people", subject="bob", after=0, limit=9).items
    moved.delete_template("people", again.id)
    assert move_back(moved, "people", None).gallery.extractor == NEW
    assert templates_of(moved) == {"anna": 1, "bob": 1, "carl": 2}


def test_crops_that_are_set_aside_follow_a_merge(moved: GalleryStore, new_templates: Templates) -> None:
    both, one = with_crops(new_templates(2))
    enroll(moved, "bob", [both, one], NEW)
    enroll(moved, "carl", [replace(both, crop=None)], NEW)
    move_back(moved, "people", None, without_missing=True)
    moved.merge_subjects("people", "bob", "carl")
    assert move_back(moved, "people", None).gallery.extractor == NEW
    assert (templates_of(moved), crops_of(moved)) == ({"anna": 1, "carl": 2}, {both.crop, one.crop})


def test_crops_that_are_set_aside_are_exported_and_erased_with_their_subject(
    moved: GalleryStore, new_templates: Templates
) -> None:
    (photo,) = with_crops(new_templates(1))
    enroll(moved, "bob", [photo], NEW)
    move_back(moved, "people", None, without_missing=True)
    for crops in (True, False):
        with open_snapshot(moved.engine, "people", subject="bob", seals=moved.seals) as snapshot:
            (old,) = snapshot.old_embeddings(crops=crops)
            assert (old.crop, snapshot.unreadable) == (photo.crop if crops else None, 0)
    moved.delete_subject("people", "bob")
    assert count(moved.engine, "set_aside_template") == 0


def test_old_embeddings_go_in_several_transactions_and_nobody_goes_back_to_half_of_them(
    engine: Engine, sealed_store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.reembedding.store._DISCARDED_AT_ONCE", 2)
    enroll(sealed_store, "anna", new_templates(5))
    move(sealed_store)
    gallery, moves = sealed_store.gallery("people"), ReembeddingStore(engine, sealed_store.seals)
    commits = list[Connection]()

    @event.listens_for(engine, "commit")
    def break_off(connection: Connection) -> None:
        if commits:
            raise KeyboardInterrupt
        commits.append(connection)

    assert gallery.erasure is None
    with pytest.raises(KeyboardInterrupt):
        moves.discard(gallery)
    event.remove(engine, "commit", break_off)
    assert count(engine, "spare_embedding") == 3
    assert sealed_store.gallery("people").erasure is not None
    back = move_back(sealed_store, "people", None)
    assert (back.state, [(one.missing, one.templates) for one in back.incomplete]) == ("incomplete", [(2, 5)])
    assert moves.discard(gallery) == 3
    assert moves.spares(gallery) is None


def test_embeddings_of_a_gallery_that_moves_while_its_old_ones_go_are_kept(
    engine: Engine, sealed_store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(sealed_store, "anna", new_templates(5))
    move(sealed_store)
    gallery, moves = sealed_store.gallery("people"), ReembeddingStore(engine, sealed_store.seals)

    def go_back(_engine: Engine) -> None:
        move_back(sealed_store, "people", None, without_missing=True)

    monkeypatch.setattr("app.gallery.reembedding.store._DISCARDED_AT_ONCE", 2)
    monkeypatch.setattr("app.gallery.reembedding.store.let_others_write", go_back)
    with pytest.raises(MoveRefused, match="was moved or made anew meanwhile"):
        moves.discard(gallery)
    assert (count(engine, "spare_embedding"), count(engine, "set_aside_template")) == (3, 2)
    assert moves.spares(sealed_store.gallery("people")) == Spares(NEW, previous=True)


def test_others_get_their_turn_while_old_embeddings_go(
    engine: Engine, store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has them wait in a row")
    monkeypatch.setattr("app.gallery.reembedding.store._DISCARDED_AT_ONCE", 200)
    made = store.enroll("people", "anna", new_templates(1200), metadata=None, extractor=OLD, dimension=8)
    gallery, moves = store.gallery("people"), ReembeddingStore(engine)
    moves.add(gallery, NEW, [one.id for one in made.added], np.ones((1200, 8), np.float32))
    with others_wait(engine, "DELETE FROM spare_embedding") as turns:
        assert moves.discard(gallery) == 1200
    assert turns[-1] == 8


def test_crops_from_before_encryption_are_sealed_where_they_are_set_aside(
    store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    enroll(store, "anna", new_templates(1))
    move(store)
    (photo,) = with_crops(new_templates(1))
    enroll(store, "bob", [photo], NEW)
    move_back(store, "people", None, without_missing=True)
    seal_plain_rows(store.engine, SealedRows(vault))
    sealed = GalleryStore(store.engine, seals=SealedRows(vault))
    with sealed.engine.connect() as connection:
        assert photo.crop not in connection.scalar(text("SELECT crop FROM set_aside_template"))
    move_back(sealed, "people", None)
    assert crops_of(sealed) == {photo.crop}


def test_a_step_down_keeps_what_is_set_aside_but_its_crops(moved: GalleryStore, new_templates: Templates) -> None:
    enroll(moved, "bob", with_crops(new_templates(1)), NEW)
    move_back(moved, "people", None, without_missing=True)
    migrate(moved.engine, "0005")
    migrate(moved.engine)
    move_back(moved, "people", None)
    assert (templates_of(moved), crops_of(moved)) == ({"anna": 1, "bob": 1}, set())


def test_who_was_set_aside_and_merged_meanwhile_is_found_at_once_when_the_gallery_is_back(
    store: GalleryStore, new_templates: Templates, tmp_path: Path
) -> None:
    source, history = IndexSource(kind="flat", folder=tmp_path / "index"), GalleryHistory(store.engine)
    aside, kept = new_templates(2)
    enroll(store, "aside", [aside])
    enroll(store, "kept", [kept])

    def process() -> GalleryReplica:
        gallery = store.gallery("people")
        replica = GalleryReplica(
            gallery, history, partial(source.make, gallery), source.snapshots_of(gallery), tended=True
        )
        replica.catch_up(*gallery.point)
        return replica

    living = process()
    living.on_disk.write()
    gallery, moves = store.gallery("people"), ReembeddingStore(store.engine)
    (template,) = store.templates("people", subject="kept", after=0, limit=9).items
    moves.add(gallery, NEW, [template.id], np.eye(1, 8, dtype=np.float32))
    moves.switch(gallery, NEW, dimension=8, unusable=(), with_crops=True, without_missing=True)
    merged = store.merge_subjects("people", "aside", "kept")
    move_back(store, "people", None)
    living.catch_up(*store.gallery("people").point)
    for replica in (living, process()):  # before anything is done in the background
        found = replica.search(np.stack([aside.embedding, kept.embedding]), top_k=1, rule="best")
        assert [near[0].subject_id for near in found] == [merged.id] * 2
