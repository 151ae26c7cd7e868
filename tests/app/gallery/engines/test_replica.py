"""Processes that follow one database and share one engine."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.gallery.engines import IndexEngine, storage_prefix
from app.gallery.engines.protocol import EngineIndex
from app.gallery.errors import DatabaseUnavailable, ExtractorMismatch
from app.gallery.records import Change, NewTemplate, TemplateBlock
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.views.replica import GalleryReplica
from tests.app.gallery.views.test_replica import enroll, identities, search
from tests.standby import Standby

pytestmark = pytest.mark.galleries("people")
OpenEngine = Callable[[], IndexEngine]
Templates = Callable[[int], list[NewTemplate]]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """The engine is what is tested here; which database it stands beside does not matter to it."""
    return sqlite_url


def index_of(store: GalleryStore, shared: IndexEngine) -> EngineIndex:
    return shared.index(store.gallery("people"))


def replica_of(store: GalleryStore, shared: IndexEngine) -> GalleryReplica:
    return GalleryReplica(store.gallery("people"), GalleryHistory(store.engine), lambda: index_of(store, shared))


class CountedHistory(GalleryHistory):
    """Counts how often all templates are read."""

    fills = 0

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        self.fills += 1
        return super().template_blocks(gallery_id)


def started(store: GalleryStore, shared: IndexEngine) -> tuple[GalleryReplica, CountedHistory]:
    """A process that starts now."""
    history = CountedHistory(store.engine)
    return GalleryReplica(store.gallery("people"), history, lambda: index_of(store, shared)), history


def copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def test_what_one_process_writes_the_other_finds(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    here, there, templates = replica_of(store, open_shared()), replica_of(store, open_shared()), new_templates(4)
    for number, template in enumerate(templates):
        subject = enroll(store, f"subject {number}", [template])
        assert identities(here, store, [template]) == identities(there, store, [template]) == [subject]
    store.delete_subject("people", "subject 1")
    for replica in (there, here):
        assert identities(replica, store, templates)[1] is None
        assert (replica.applied_revision, replica.subjects, replica.templates) == (5, 3, 3)


def test_a_row_that_a_dead_process_left_behind_names_nobody(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    replica, (kept, erased) = replica_of(store, open_shared()), new_templates(2)
    anna = enroll(store, "anna", [kept])
    enroll(store, "bob", [erased])
    assert identities(replica, store, [erased]) != [None]
    (template,) = store.templates("people", subject="bob", after=0, limit=1).items
    store.delete_subject("people", "bob")
    assert identities(replica, store, [erased]) == [None]
    index_of(store, open_shared()).add(np.array([template.id]), erased.embedding[None])
    for other in (replica, replica_of(store, open_shared())):
        ((nearest,),) = search(other, store, erased.embedding[None], top_k=5)
        assert nearest.subject_id == anna
        assert nearest.template_id != template.id


def test_a_rebuild_brings_back_what_the_engine_lost(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    replica, templates = replica_of(store, open_shared()), new_templates(2)
    anna = enroll(store, "anna", templates)
    assert identities(replica, store, templates) == [anna, anna]
    index = index_of(store, open_shared())
    index.remove(index.ids()[:1])
    assert len(index) == 1
    GalleryHistory(store.engine).request_rebuild("people")
    assert identities(replica, store, templates) == [anna, anna]
    assert len(index) == 2


@pytest.mark.parametrize("looked", [False, True])
def test_nobody_is_unknown_because_another_process_fills_anew_what_was_removed(
    store: GalleryStore,
    open_shared: OpenEngine,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
    looked: bool,
) -> None:
    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 0.0)
    replica, shared, templates = replica_of(store, open_shared()), open_shared(), new_templates(2)
    anna = enroll(store, "anna", templates)
    assert identities(replica, store, templates) == [anna, anna]
    shared.drop(storage_prefix(store.gallery("people")))  # by somebody's hand
    index = index_of(store, shared)
    index.add(np.array([2]), templates[1].embedding[None])
    if looked:  # the upkeep, which leaves what is being filled to who fills it
        replica.look_at_engine()
    with pytest.raises(DatabaseUnavailable, match="filled anew"):
        identities(replica, store, templates)
    for one in (replica_of(store, shared), replica):
        assert identities(one, store, templates) == [anna, anna]


def test_what_a_process_died_over_while_it_filled_it_anew_is_filled_by_a_reindex(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 0.0)
    replica, shared, templates = replica_of(store, open_shared()), open_shared(), new_templates(3)
    anna = enroll(store, "anna", templates[:2])
    assert identities(replica, store, templates[:2]) == [anna, anna]
    shared.drop(storage_prefix(store.gallery("people")))  # by somebody's hand
    index_of(store, shared).add(np.array([2]), templates[1].embedding[None])
    bob = enroll(store, "bob", templates[2:])  # what others write does not fill it
    with pytest.raises(DatabaseUnavailable, match="or run `facegallery reindex` if this lasts"):
        identities(replica, store, templates)
    GalleryHistory(store.engine).request_rebuild("people")
    assert identities(replica, store, templates) == [anna, anna, bob]


def test_what_a_process_died_over_while_it_filled_it_anew_is_filled_by_who_asks_after_a_while(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.engines.milvus_index._LOOK_SECONDS", 0.0)
    replica, shared, templates = replica_of(store, open_shared()), open_shared(), new_templates(3)
    anna = enroll(store, "anna", templates)
    assert identities(replica, store, templates) == [anna] * 3
    shared.drop(storage_prefix(store.gallery("people")))  # by somebody's hand
    index = index_of(store, shared)
    for after, template_id in ((3600.0, 1), (0.2, 2)):
        monkeypatch.setattr("app.gallery.engines.protocol._STANDS_STILL", after)
        index.add(np.array([template_id]), templates[template_id - 1].embedding[None])
        with pytest.raises(DatabaseUnavailable, match="filled anew"):  # it comes on
            identities(replica, store, templates)
    time.sleep(0.3)
    assert identities(replica, store, templates) == [anna] * 3
    assert (index.point(), len(index)) == (store.gallery("people").point, 3)


def test_an_engine_that_is_ahead_of_a_database_that_was_set_back_is_filled_once(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, tmp_path: Path
) -> None:
    database, night = Path(str(store.engine.url.database)), tmp_path / "night.db"
    templates = new_templates(4)
    anna = enroll(store, "anna", templates[:1])
    copy_database(database, night)
    for number, template in enumerate(templates[1:3]):
        enroll(store, f"undone {number}", [template])
    before, _ = started(store, open_shared())
    assert None not in identities(before, store, templates[:3])
    copy_database(night, database)
    for fills in (1, 0):
        replica, history = started(store, open_shared())
        assert identities(replica, store, templates[:3]) == [anna, None, None]
        assert history.fills == fills
    bob = enroll(store, "bob", templates[3:])
    late, history = started(store, open_shared())
    for one in (before, replica, late):
        assert identities(one, store, templates) == [anna, None, None, bob]
    assert history.fills == 0


def test_an_engine_that_is_ahead_of_what_a_process_knew_is_not_filled_again(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    other, templates = replica_of(store, open_shared()), new_templates(2)
    anna = enroll(store, "anna", templates[:1])
    replica, history = started(store, open_shared())
    known = store.gallery("people").revision
    bob = enroll(store, "bob", templates[1:])
    assert identities(other, store, templates) == [anna, bob]
    replica.catch_up(known)
    assert identities(replica, store, templates) == [anna, bob]
    assert (replica.applied_revision, history.fills) == (2, 0)


def test_an_engine_that_was_told_what_the_database_has_undone_is_filled_anew(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    carl, alice, dora, bob = templates = new_templates(4)
    found = [enroll(store, "carl", [carl]), None, enroll(store, "dora", [dora])]
    ahead, behind = replica_of(store, open_shared()), replica_of(store, open_shared())
    assert identities(behind, store, templates[:3]) == found
    standby = Standby(store.engine)
    store.delete_subject("people", "dora")  # undone as well: the engine has lost who is there again
    undone = enroll(store, "alice", [alice])
    assert identities(ahead, store, templates[:3]) == [found[0], undone, None]
    standby.promote()
    store.update_subject("people", "dora", metadata={"room": 1})
    assert enroll(store, "bob", [bob]) == undone
    for process in (behind, ahead, started(store, open_shared())[0]):
        assert identities(process, store, templates) == [*found, undone]
    index = index_of(store, open_shared())
    assert (index.point(), len(index)) == (store.gallery("people").point, 3)
    late, history = started(store, open_shared())
    assert identities(late, store, templates) == [*found, undone]
    assert history.fills == 0


def test_what_a_process_writes_too_late_into_an_engine_is_set_right(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    alice, bob = templates = new_templates(2)
    slow, quick = replica_of(store, open_shared()), replica_of(store, open_shared())
    assert identities(quick, store, templates) == [None, None]
    standby = Standby(store.engine)
    enroll(store, "alice", [alice])
    (undone,) = store.templates("people", subject="alice", after=0, limit=1).items
    assert identities(slow, store, templates) != [None, None]
    standby.promote()
    subject = enroll(store, "bob", [bob])
    quick.catch_up(*store.gallery("people").point)
    index_of(store, open_shared()).add(np.array([undone.id]), alice.embedding[None])  # by the slow one
    assert identities(slow, store, templates) == identities(quick, store, templates) == [None, subject]


def test_a_gallery_that_moves_to_longer_embeddings_while_an_engine_is_told_what_it_missed_is_said_to_have_moved(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    enroll(store, "anna", templates[:1])
    replica_of(store, open_shared()).catch_up(*store.gallery("people").point)
    enroll(store, "bob", templates[1:])
    gallery, moves, changes = store.gallery("people"), ReembeddingStore(store.engine), GalleryHistory.changes
    late = GalleryReplica(gallery, GalleryHistory(store.engine), lambda: open_shared().index(gallery))

    def move_first(*arguments: Any, **options: Any) -> list[Change]:
        ids = [one.id for one in store.templates("people", subject=None, after=0, limit=9).items]
        moves.add(gallery, "other@1", ids, np.eye(2, 16, dtype=np.float32))
        assert moves.switch(gallery, "other@1", dimension=16, unusable=(), with_crops=True).state == "done"
        return changes(*arguments, **options)

    monkeypatch.setattr(GalleryHistory, "changes", move_first)
    with pytest.raises(ExtractorMismatch):
        late.catch_up(*gallery.point)


def away(*_: object, **__: object) -> None:
    raise DatabaseUnavailable("the engine does not answer")


def test_who_was_added_halfway_when_the_database_fell_back_gives_nobody_a_wrong_name(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    carl, alice, later = templates = new_templates(3)
    anna = enroll(store, "carl", [carl])
    replica, standby = replica_of(store, open_shared()), Standby(store.engine)
    assert identities(replica, store, templates) == [anna, None, None]
    enroll(store, "alice", [alice])
    with monkeypatch.context() as patched:
        patched.setattr(replica.view.index, "add", away)
        with pytest.raises(DatabaseUnavailable):
            identities(replica, store, templates)
    standby.promote()
    enroll(store, "carl", [later])  # gets the id that the template of Alice had
    enroll(store, "dora", [])  # and Dora that of Alice
    assert identities(replica, store, templates) == [anna, None, anna]


def test_who_was_removed_halfway_when_the_database_fell_back_is_found(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    carl, alice = (enroll(store, key, [one]) for key, one in zip(("carl", "alice"), templates, strict=True))
    replica, standby = replica_of(store, open_shared()), Standby(store.engine)
    assert identities(replica, store, templates) == [carl, alice]
    store.delete_subject("people", "alice")
    with monkeypatch.context() as patched:
        patched.setattr(replica.view.index, "set_position", away)
        with pytest.raises(DatabaseUnavailable):
            identities(replica, store, templates)
    standby.promote()
    assert identities(replica, store, templates) == [carl, alice]


def test_what_an_engine_failed_in_the_middle_of_is_gone_on_with(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = new_templates(2)
    carl = enroll(store, "carl", templates[:1])
    replica, history = started(store, open_shared())
    assert identities(replica, store, templates) == [carl, None]
    alice = enroll(store, "alice", templates[1:])
    with monkeypatch.context() as patched:
        patched.setattr(replica.view.index, "set_position", away)
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable):
                identities(replica, store, templates)
    fills = history.fills
    assert identities(replica, store, templates) == [carl, alice]
    assert history.fills == fills


@pytest.mark.parametrize("known", [0, 2])
def test_an_engine_that_missed_something_while_no_process_ran_is_told_and_not_filled_again(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates, known: int
) -> None:
    templates = new_templates(3)
    subjects = [enroll(store, f"subject {number}", [one]) for number, one in enumerate(templates[:known])]
    missing = [None] * (3 - known)
    assert identities(replica_of(store, open_shared()), store, templates) == [*subjects, *missing]
    if known:
        store.delete_subject("people", "subject 0")
    late = enroll(store, "late", templates[known:])
    replica, history = started(store, open_shared())
    assert identities(replica, store, templates) == [None] * bool(known) + subjects[1:] + [late] * len(missing)
    assert (history.fills, len(index_of(store, open_shared()))) == (0, 3 - bool(known))


def test_a_rebuild_that_was_asked_for_while_no_process_ran_is_done_by_the_next(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    templates = new_templates(2)
    anna = enroll(store, "anna", templates)
    assert identities(replica_of(store, open_shared()), store, templates) == [anna, anna]
    index = index_of(store, open_shared())
    index.remove(index.ids()[:1])
    GalleryHistory(store.engine).request_rebuild("people")
    for fills in (1, 0):
        replica, history = started(store, open_shared())
        assert identities(replica, store, templates) == [anna, anna]
        assert history.fills == fills


def test_an_engine_that_missed_what_is_not_written_down_any_more_is_filled_anew(
    store: GalleryStore, open_shared: OpenEngine, new_templates: Templates
) -> None:
    templates = new_templates(2)
    anna = enroll(store, "anna", templates[:1])
    assert identities(replica_of(store, open_shared()), store, templates) == [anna, None]
    store.delete_subject("people", "anna")
    bob = enroll(store, "bob", templates[1:])
    gallery = store.gallery("people")
    GalleryHistory(store.engine).report(gallery.id, "other", gallery.revision)
    assert GalleryHistory(store.engine).prune(gallery.id)
    for fills in (1, 0):
        replica, history = started(store, open_shared())
        assert identities(replica, store, templates) == [None, bob]
        assert (history.fills, len(index_of(store, open_shared()))) == (fills, 1)
