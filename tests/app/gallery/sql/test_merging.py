"""Two subjects become one, in every process."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import func, select

from app.gallery.errors import InvalidInput, SubjectNotFound
from app.gallery.index import INDEX_KINDS, ExactIndex
from app.gallery.records import NewTemplate
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import CropRow, SpareEmbeddingRow
from app.gallery.views.replica import GalleryReplica
from tests.databases import few_values

Templates = Callable[[int], list[NewTemplate]]
Answers = list[list[tuple[int, float]]]


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate]) -> None:
    store.enroll("people", key, templates, metadata={"is": key}, extractor="net@1", dimension=8)


def replica_of(store: GalleryStore) -> GalleryReplica:
    return GalleryReplica(store.gallery("people"), GalleryHistory(store.engine), partial(INDEX_KINDS["flat"], 8))


def everything(store: GalleryStore, replica: GalleryReplica, templates: list[NewTemplate]) -> Answers:
    replica.catch_up(*store.gallery("people").point)
    found = replica.search(np.stack([one.embedding for one in templates]), top_k=50, rule="both")
    return [[(one.subject_id, one.distance) for one in candidates] for candidates in found]


def alike(first: Answers, second: Answers) -> bool:
    return all(
        [subject for subject, _ in one] == [subject for subject, _ in two]
        and np.allclose([distance for _, distance in one], [distance for _, distance in two], atol=1e-5)
        for one, two in zip(first, second, strict=True)
    )


def test_templates_move_and_the_other_keeps_its_name(store: GalleryStore, new_templates: Templates) -> None:
    templates = new_templates(5)
    enroll(store, "anna", templates[:2])
    enroll(store, "hanna", templates[2:5])
    before = store.subject("people", "anna")
    merged = store.merge_subjects("people", "hanna", "anna")
    assert merged == store.subject("people", "anna")
    assert (merged.id, merged.key, merged.metadata, merged.templates) == (before.id, "anna", {"is": "anna"}, 5)
    assert merged.updated_at > before.updated_at
    with pytest.raises(SubjectNotFound):
        store.subject("people", "hanna")
    assert [one.crop_sha256 for one in store.templates("people", subject="anna", after=0, limit=9).items] == [
        one.crop_sha256 for one in templates
    ]


def test_crops_that_both_have_are_kept_once(store: GalleryStore, new_templates: Templates) -> None:
    same, other = new_templates(2)
    enroll(store, "anna", [same])
    enroll(store, "hanna", [same, other])
    assert store.merge_subjects("people", "hanna", "anna").templates == 2
    assert store.size(store.gallery("people")).templates == 2


def test_people_of_any_number_of_templates_are_merged(store: GalleryStore, new_templates: Templates) -> None:
    if store.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL takes twice as many values as SQLite, and cannot be told to take fewer")
    same, moved = ([replace(one, crop=b"a picture") for one in new_templates(many)] for many in (310, 610))
    enroll(store, "anna", [replace(one, crop=None) for one in same])
    enroll(store, "hanna", [*same, *moved])
    ids = [one.id for one in store.templates("people", subject="hanna", after=0, limit=1000).items]
    ReembeddingStore(store.engine).add(store.gallery("people"), "net@2", ids, np.ones((920, 8), np.float32))
    with few_values(store.engine, 600):
        assert store.merge_subjects("people", "hanna", "anna").templates == 920
    with store.engine.connect() as connection:
        kept = [connection.scalar(select(func.count()).select_from(table)) for table in (CropRow, SpareEmbeddingRow)]
    assert kept == [920, 920]


def test_who_has_no_template_is_merged_without_a_new_revision(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1))
    enroll(store, "hanna", [])
    revision = store.gallery("people").revision
    assert store.merge_subjects("people", "hanna", "anna").templates == 1
    assert store.gallery("people").revision == revision


def test_nobody_is_merged_with_nobody_or_with_themselves(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1))
    for key, into, part in (("zoe", "anna", "subject"), ("anna", "zoe", "merge_into")):
        with pytest.raises(SubjectNotFound, match=r"has no subject 'zoe'$") as error:
            store.merge_subjects("people", key, into)
        assert error.value.part == part
    with pytest.raises(InvalidInput, match="into itself"):
        store.merge_subjects("people", "anna", "anna")
    assert store.subject("people", "anna").templates == 1


@pytest.mark.parametrize(("due", "part"), [("hanna", "subject"), ("anna", "merge_into")])
def test_who_has_become_due_when_the_gallery_is_locked_is_merged_with_nobody(
    store: GalleryStore, new_templates: Templates, due: str, part: str
) -> None:
    for key in ("anna", "hanna"):
        enroll(store, key, new_templates(1))
    with pytest.raises(SubjectNotFound, match="past its retention") as error:
        store.merge_subjects("people", "hanna", "anna", due=lambda _gallery, row: row.key == due)
    assert error.value.part == part
    assert [store.subject("people", key).templates for key in ("anna", "hanna")] == [1, 1]


def test_a_process_that_follows_finds_the_new_owner(store: GalleryStore, new_templates: Templates) -> None:
    templates = new_templates(4)
    enroll(store, "anna", templates[:1])
    enroll(store, "hanna", templates[1:])
    follower = replica_of(store)
    everything(store, follower, templates)
    merged = store.merge_subjects("people", "hanna", "anna")
    found = everything(store, follower, templates)
    assert [[subject for subject, _ in candidates] for candidates in found] == [[merged.id]] * 4
    assert alike(found, everything(store, replica_of(store), templates))
    assert (follower.subjects, follower.templates) == (1, 4)


@pytest.mark.parametrize("seed", range(3))
def test_replaying_merges_gives_what_loading_the_end_gives(
    store: GalleryStore, new_templates: Templates, seed: int
) -> None:
    chance, templates = random.Random(seed), new_templates(30)
    keys = [f"subject {number}" for number in range(8)]
    for key in keys:
        enroll(store, key, chance.sample(templates, 3))
    follower = replica_of(store)
    for _ in range(30):
        there = [one.key for one in store.subjects("people", after=0, limit=50).items]
        step = chance.choice(["enroll", "merge", "merge", "template", "search"])
        if step == "enroll":
            enroll(store, chance.choice(keys), chance.sample(templates, 2))
        elif step == "merge" and len(there) > 1:
            store.merge_subjects("people", *chance.sample(there, 2))
        elif step == "template":
            stored = store.templates("people", subject=chance.choice(there), after=0, limit=50).items
            if stored:
                store.delete_template("people", chance.choice(stored).id)
        else:
            everything(store, follower, templates)
    assert alike(everything(store, follower, templates), everything(store, replica_of(store), templates))


def test_a_follower_between_the_two_revisions_of_a_merge_ends_right(
    store: GalleryStore, new_templates: Templates
) -> None:
    templates = new_templates(3)
    enroll(store, "anna", templates[:1])
    enroll(store, "hanna", templates[1:])
    follower = replica_of(store)
    follower.catch_up(2)
    store.merge_subjects("people", "hanna", "anna")
    follower.catch_up(3)
    assert alike(everything(store, follower, templates), everything(store, replica_of(store), templates))


class Watched(ExactIndex):
    """Remembers what a search finds right after each change, as another thread's would."""

    def __init__(self) -> None:
        super().__init__(8)
        self.search_beside: Callable[[], object] = lambda: None
        self.found: list[object] = []

    def add(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        super().add(ids, embeddings)
        self.found.append(self.search_beside())

    def remove(self, ids: NDArray[np.int64]) -> int:
        removed = super().remove(ids)
        self.found.append(self.search_beside())
        return removed


def test_a_search_beside_the_replay_of_a_merge_finds_the_person(store: GalleryStore, new_templates: Templates) -> None:
    same, moved, new = new_templates(3)
    enroll(store, "anna", [same])
    enroll(store, "hanna", [same, moved])
    index = Watched()
    replica = GalleryReplica(store.gallery("people"), GalleryHistory(store.engine), lambda: index)
    replica.catch_up(2)
    store.merge_subjects("people", "hanna", "anna")  # one template goes, and one moves
    enroll(store, "zoe", [new])
    index.found.clear()
    index.search_beside = lambda: [
        near[0].distance for near in replica.search(moved.embedding[None], top_k=1, rule="best")
    ]
    replica.catch_up(5)
    assert index.found == [[0.0], [0.0]]
    assert everything(store, replica, [moved])[0][0][0] == store.subject("people", "anna").id


def test_two_revisions_of_a_merge_are_replayed_in_one_go(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.sql.history._MANY", 3)
    for key in ("anna", "bob", "carl"):
        enroll(store, key, new_templates(2))
    store.merge_subjects("people", "bob", "anna")  # revisions 4 and 5
    store.merge_subjects("people", "carl", "anna")  # revisions 6 and 7
    history, gallery = GalleryHistory(store.engine), store.gallery("people")
    ends, end = [], 0
    while end < 7:
        end, taken = history.slice_of_changes(gallery.id, after=(before := end), up_to=7)
        assert taken == end - before
        ends.append(end)
    assert ends == [1, 2, 3, 5, 7]
    follower = replica_of(store)
    follower.catch_up(7)
    assert (follower.subjects, follower.templates) == (1, 6)
