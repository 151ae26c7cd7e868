"""Processes that follow one database, each with an index of its own."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import event
from structlog.testing import capture_logs

from app.gallery.deadline import within
from app.gallery.errors import ExtractorMismatch, TimedOut
from app.gallery.index import INDEX_KINDS, ExactIndex, IndexKind, SegmentedIndex
from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.upkeep import Limits
from app.gallery.matching import Candidate, MatchingRule, subject_distances
from app.gallery.records import Change, NewTemplate, TemplateBlock
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import GalleryRow
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.replicas import Replicas
from tests.app.gallery.conftest import DIMENSION, EXTRACTOR

pytestmark = pytest.mark.galleries("people")
Templates = Callable[[int], list[NewTemplate]]


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate]) -> int:
    made = store.enroll("people", key, templates, metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
    return made.subject.id


def replica_of(store: GalleryStore, kind: IndexKind = "flat") -> GalleryReplica:
    return GalleryReplica(store.gallery("people"), GalleryHistory(store.engine), lambda: INDEX_KINDS[kind](DIMENSION))


def search(
    replica: GalleryReplica,
    store: GalleryStore,
    probes: NDArray[np.float32],
    *,
    top_k: int = 5,
    rule: MatchingRule = "best",
) -> list[list[Candidate]]:
    replica.catch_up(*store.gallery("people").point)
    return replica.search(probes, top_k=top_k, rule=rule)


def identities(replica: GalleryReplica, store: GalleryStore, templates: list[NewTemplate]) -> list[int | None]:
    """The subjects whose template is the probe itself."""
    found = search(replica, store, np.stack([template.embedding for template in templates]), top_k=1)
    return [near[0].subject_id if near and near[0].distance < 1e-6 else None for near in found]


def test_a_replica_starts_with_nothing(store: GalleryStore) -> None:
    replica = replica_of(store)
    assert (replica.applied_revision, replica.subjects, replica.templates) == (-1, 0, 0)
    assert search(replica, store, np.eye(DIMENSION, dtype=np.float32)[:2]) == [[], []]
    assert replica.applied_revision == 0


def test_a_replica_loads_what_is_there(store: GalleryStore, new_templates: Templates) -> None:
    templates = new_templates(3)
    anna, bob = enroll(store, "anna", templates[:2]), enroll(store, "bob", templates[2:])
    replica = replica_of(store)
    assert identities(replica, store, templates) == [anna, anna, bob]
    assert (replica.applied_revision, replica.subjects, replica.templates) == (2, 2, 3)


def test_what_one_process_writes_the_other_finds(store: GalleryStore, new_templates: Templates) -> None:
    here, there, templates = replica_of(store), replica_of(store), new_templates(3)
    for number, template in enumerate(templates):
        subject = enroll(store, f"subject {number}", [template])
        assert identities(here, store, [template]) == identities(there, store, [template]) == [subject]


def test_what_one_process_erases_the_other_loses(store: GalleryStore, new_templates: Templates) -> None:
    replica, templates = replica_of(store), new_templates(4)
    anna, bob = enroll(store, "anna", templates[:3]), enroll(store, "bob", templates[3:])
    assert identities(replica, store, templates) == [anna, anna, anna, bob]
    store.delete_template("people", store.templates("people", subject="anna", after=0, limit=1).items[0].id)
    assert identities(replica, store, templates) == [None, anna, anna, bob]
    assert (replica.subjects, replica.templates) == (2, 3)
    store.delete_subject("people", "anna")
    assert identities(replica, store, templates) == [None, None, None, bob]
    assert (replica.subjects, replica.templates) == (1, 1)


def test_how_far_a_process_is_behind_is_asked_without_loading_galleries(
    store: GalleryStore, new_templates: Templates
) -> None:
    replicas = Replicas(store, GalleryHistory(store.engine), IndexSource(), extractor=EXTRACTOR)
    replicas.up_to_date("people")
    for number, template in enumerate(new_templates(2)):
        enroll(store, f"subject {number}", [template])
    loaded = list[GalleryRow]()
    event.listen(GalleryRow, "load", listen := lambda row, _context: loaded.append(row))
    assert replicas.lag() == 2
    event.remove(GalleryRow, "load", listen)
    assert loaded == []


def test_probes_of_many_load_balancers_share_one_reading_of_all_galleries(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = Replicas(store, GalleryHistory(store.engine), IndexSource(), extractor=EXTRACTOR)
    replicas.up_to_date("people")
    asked = list[str]()
    event.listen(store.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    lags = list[int]()
    for key in ("anna", "bob"):
        enroll(store, key, new_templates(1))
        asked.clear()
        lags += [replicas.lag() for _ in range(3)]
        assert len([one for one in asked if one != "BEGIN"]) == 1
        late = time.monotonic() + 1
        monkeypatch.setattr("app.gallery.views.replicas.time.monotonic", lambda late=late: late)
    replicas.up_to_date("people")
    assert [*lags, replicas.lag()] == [1, 1, 1, 2, 2, 2, 0]


@pytest.mark.parametrize("rule", ["best", "mean", "both"])
def test_a_decision_on_embeddings_of_half_precision_is_made_on_exact_ones(
    store: GalleryStore, new_templates: Templates, rule: MatchingRule
) -> None:
    index = SegmentedIndex(DIMENSION, compress_from=LEAST_TRAINING, half=True, limits=Limits(tail=64))
    replica = GalleryReplica(store.gallery("people"), GalleryHistory(store.engine), lambda: index)
    templates, probes = new_templates(LEAST_TRAINING), np.stack([template.embedding for template in new_templates(3)])
    by_subject = {enroll(store, f"subject {row}", templates[row::8]): templates[row::8] for row in range(7)}
    found, statements = search(replica, store, probes, rule=rule), list[str]()
    event.listen(store.engine, "before_cursor_execute", lambda *asked: statements.append(asked[2]))
    assert replica.search(probes, top_k=5, rule=rule) == found
    assert not statements  # nothing is rounded yet
    by_subject[enroll(store, "subject 7", templates[7::8])] = templates[7::8]
    replica.catch_up(*store.gallery("people").point)
    while replica.tend():
        pass
    rounded = index.vectors(index.ids())
    assert (rounded == rounded.astype(np.float16)).all()
    found = search(replica, store, probes, rule=rule)
    for probe, candidates in zip(probes, found, strict=True):
        for candidate in candidates:
            own = np.stack([template.embedding for template in by_subject[candidate.subject_id]])
            assert candidate.distance == subject_distances(probe, own, np.array([0]), rule)[0]
    nearest = [candidates[0].distance for candidates in found]
    limited = replica.search(probes, top_k=5, rule=rule, limit=max(nearest))
    assert [near and near[0].distance for near in limited] == nearest
    statements.clear()
    assert replica.search(probes, top_k=5, rule=rule, limit=0.9 * min(nearest)) == [[], [], []]
    assert not statements  # nobody is near enough to be compared with


@pytest.mark.parametrize("rule", ["mean", "both"])
def test_the_mean_of_a_subject_follows_its_templates(
    store: GalleryStore, new_templates: Templates, rule: MatchingRule
) -> None:
    replica, (probe, *templates) = replica_of(store), new_templates(5)

    def distance_is_that_of(wanted: list[NewTemplate]) -> bool:
        vectors = np.stack([template.embedding for template in wanted])
        (distance,) = subject_distances(probe.embedding, vectors, np.zeros(1, np.intp), rule)
        ((found,),) = search(replica, store, probe.embedding[None], rule=rule)
        return found.distance == pytest.approx(distance, abs=1e-6)

    for number in range(1, 5):
        enroll(store, "anna", templates[:number])
        assert distance_is_that_of(templates[:number])
    stored = store.templates("people", subject="anna", after=0, limit=10).items
    store.delete_template("people", stored[1].id)
    assert distance_is_that_of([templates[0], *templates[2:]])
    store.delete_template("people", stored[0].id)
    assert distance_is_that_of(templates[2:])
    store.delete_template("people", stored[3].id)
    assert distance_is_that_of(templates[2:3])


def test_what_came_and_went_in_between_is_never_seen(store: GalleryStore, new_templates: Templates) -> None:
    replica, (template,) = replica_of(store), new_templates(1)
    replica.catch_up(0)
    enroll(store, "anna", [template])
    store.delete_subject("people", "anna")
    assert identities(replica, store, [template]) == [None]
    assert (replica.applied_revision, replica.subjects, replica.templates) == (2, 0, 0)


def test_a_subject_without_templates_does_not_count(store: GalleryStore, new_templates: Templates) -> None:
    replica = replica_of(store)
    enroll(store, "anna", new_templates(1))
    enroll(store, "bob", [])
    replica.catch_up(1)
    assert replica.subjects == 1


def test_rows_read_later_than_their_revision_do_no_harm(store: GalleryStore, new_templates: Templates) -> None:
    replica, templates = replica_of(store), new_templates(3)
    anna = enroll(store, "anna", templates[:2])
    bob = enroll(store, "bob", templates[2:])
    store.delete_template("people", store.templates("people", subject="anna", after=0, limit=1).items[0].id)
    replica.catch_up(1)  # loads the present rows under an older revision
    assert identities(replica, store, templates) == [None, anna, bob]
    assert (replica.applied_revision, replica.subjects, replica.templates) == (3, 2, 2)


def test_an_older_revision_changes_nothing(store: GalleryStore, new_templates: Templates) -> None:
    replica = replica_of(store)
    enroll(store, "anna", new_templates(1))
    replica.catch_up(1)
    replica.catch_up(0)
    assert (replica.applied_revision, replica.templates) == (1, 1)


def test_a_wanted_rebuild_makes_a_new_index(store: GalleryStore, new_templates: Templates) -> None:
    made: list[SegmentedIndex] = []

    def make_index() -> SegmentedIndex:
        made.append(SegmentedIndex(DIMENSION, compress_from=None))
        return made[-1]

    replica, templates = (
        GalleryReplica(store.gallery("people"), GalleryHistory(store.engine), make_index),
        new_templates(2),
    )
    anna = enroll(store, "anna", templates[:1])
    assert identities(replica, store, templates) == [anna, None]
    before = len(made)
    GalleryHistory(store.engine).request_rebuild("people")
    bob = enroll(store, "bob", templates[1:])
    assert identities(replica, store, templates) == [anna, bob]
    assert len(made) == before + 1
    assert (replica.applied_revision, replica.subjects, replica.templates) == (3, 2, 2)


def test_a_rebuild_brings_back_a_damaged_index(store: GalleryStore, new_templates: Templates) -> None:
    made: list[ExactIndex] = []

    def make_index() -> ExactIndex:
        made.append(ExactIndex(DIMENSION))
        return made[-1]

    replica, templates = (
        GalleryReplica(store.gallery("people"), GalleryHistory(store.engine), make_index),
        new_templates(1),
    )
    anna = enroll(store, "anna", templates)
    assert identities(replica, store, templates) == [anna]
    made[-1].remove(np.arange(100))
    assert identities(replica, store, templates) == [None]
    GalleryHistory(store.engine).request_rebuild("people")
    assert identities(replica, store, templates) == [anna]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", ["best", "both"])
def test_following_a_history_gives_what_loading_its_end_gives(
    store: GalleryStore, new_templates: Templates, seed: int, rule: MatchingRule
) -> None:
    chance, templates = random.Random(seed), new_templates(60)
    followers = [replica_of(store, "flat"), replica_of(store, "exact")]
    keys, stored = [f"subject {number}" for number in range(6)], set[str]()
    for _ in range(40):
        step = chance.choices(["enroll", "template", "subject", "rebuild", "rename", "search"], [8, 4, 2, 1, 1, 8])[0]
        key = chance.choice(keys)
        if step == "enroll":
            enroll(store, key, chance.sample(templates, chance.randint(1, 4)))
            stored.add(key)
        elif step == "rebuild":
            GalleryHistory(store.engine).request_rebuild("people")
        elif step == "search":
            search(chance.choice(followers), store, templates[0].embedding[None])
        elif key in stored and step == "template":
            there = store.templates("people", subject=key, after=0, limit=100).items
            if there:
                store.delete_template("people", chance.choice(there).id)
        elif key in stored and step == "subject":
            store.delete_subject("people", key)
            stored.remove(key)
        elif key in stored:
            store.update_subject("people", key, new_key=f"{key}*")
            keys.append(f"{key}*")
            stored = stored - {key} | {f"{key}*"}
    probes = np.stack([template.embedding for template in templates])
    fresh = replica_of(store, "exact")
    wanted = search(fresh, store, probes, top_k=50, rule=rule)
    size = store.size(store.gallery("people"))
    assert fresh.templates == size.templates
    for follower in followers:
        found = search(follower, store, probes, top_k=50, rule=rule)
        assert (follower.subjects, follower.templates) == (fresh.subjects, fresh.templates)
        for candidates, wanted_candidates in zip(found, wanted, strict=True):
            assert [one.subject_id for one in candidates] == [one.subject_id for one in wanted_candidates]
            distances = [one.distance for one in wanted_candidates]
            assert [one.distance for one in candidates] == pytest.approx(distances, abs=1e-6)


def test_what_is_acknowledged_is_found_by_every_thread(store: GalleryStore, new_templates: Templates) -> None:
    replicas, templates = [replica_of(store), replica_of(store)], new_templates(40)
    acknowledged: list[tuple[int, NewTemplate]] = []
    done = threading.Event()

    def write() -> None:
        for number, template in enumerate(templates):
            acknowledged.append((enroll(store, f"subject {number}", [template]), template))
            if number % 10 == 9:
                GalleryHistory(store.engine).request_rebuild("people")

    def read(number: int) -> int:
        reads = 0
        while not done.is_set() or not reads:
            if acknowledged:
                subject, template = acknowledged[-1]
                assert identities(replicas[number % 2], store, [template]) == [subject]
                reads += 1
        return reads

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read, number) for number in range(4)]
        try:
            pool.submit(write).result()
        finally:
            done.set()
        assert all(reader.result() for reader in readers)


def test_a_request_waits_for_another_that_follows_no_longer_than_it_may(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, templates = replica_of(store), new_templates(2)
    anna = enroll(store, "anna", templates[:1])
    assert identities(replica, store, templates) == [anna, None]
    bob = enroll(store, "bob", templates[1:])
    asked, answered = threading.Event(), threading.Event()
    changes = GalleryHistory.changes

    def hang(*arguments: Any, **options: Any) -> list[Change]:
        """As a database that does not answer for a while."""
        asked.set()
        assert answered.wait(60)
        return changes(*arguments, **options)

    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patched:
        patched.setattr(GalleryHistory, "changes", hang)
        following = pool.submit(replica.catch_up, 2)
        assert asked.wait(60)
        with within(0.05), pytest.raises(TimedOut, match="took too long"):
            replica.catch_up(2)
        assert not following.done()
        answered.set()
        following.result(60)
    assert identities(replica, store, templates) == [anna, bob]


def test_a_gallery_that_moves_to_longer_embeddings_while_it_is_followed_is_said_to_have_moved(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, templates = replica_of(store), new_templates(2)
    enroll(store, "anna", templates[:1])
    replica.catch_up(*store.gallery("people").point)
    enroll(store, "bob", templates[1:])
    point, changes = store.gallery("people").point, GalleryHistory.changes
    gallery, moves = store.gallery("people"), ReembeddingStore(store.engine)

    def move_first(*arguments: Any, **options: Any) -> list[Change]:
        ids = [one.id for one in store.templates("people", subject=None, after=0, limit=9).items]
        moves.add(gallery, "other@1", ids, np.eye(2, 2 * DIMENSION, dtype=np.float32))
        switch = moves.switch(gallery, "other@1", dimension=2 * DIMENSION, unusable=(), with_crops=True)
        assert switch.state == "done"
        return changes(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(GalleryHistory, "changes", move_first)
        with pytest.raises(ExtractorMismatch):
            replica.catch_up(*point)
    with pytest.raises(ExtractorMismatch):
        GalleryReplica(gallery, GalleryHistory(store.engine), lambda: ExactIndex(DIMENSION)).catch_up(*point)


@pytest.mark.parametrize("dimension", [4, 16])
def test_a_gallery_that_moves_while_its_index_is_built_is_said_to_have_moved_and_not_to_be_damaged(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch, dimension: int
) -> None:
    monkeypatch.setattr("app.gallery.sql.history._MANY", 2)
    enroll(store, "anna", new_templates(4))
    gallery, moves = store.gallery("people"), ReembeddingStore(store.engine)

    class Moves(GalleryHistory):
        def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
            blocks = super().template_blocks(gallery_id)
            yield next(blocks)
            ids = [one.id for one in store.templates("people", subject=None, after=0, limit=9).items]
            moves.add(gallery, "other@1", ids, np.eye(4, dimension, dtype=np.float32))
            moves.switch(gallery, "other@1", dimension=dimension, unusable=(), with_crops=True)
            yield from blocks

    replica = GalleryReplica(gallery, Moves(store.engine), lambda: ExactIndex(DIMENSION))
    with capture_logs() as logs, pytest.raises(ExtractorMismatch):
        replica.catch_up(*gallery.point)
    assert [line for line in logs if line["log_level"] == "error"] == []
