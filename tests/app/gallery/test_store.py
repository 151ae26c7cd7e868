"""The store on SQLite and on PostgreSQL, alike."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any, cast

import numpy as np
import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.exc import IntegrityError, StatementError

from app.gallery.consent import PrivacyRules
from app.gallery.errors import (
    ExtractorMismatch,
    GalleryExists,
    GalleryNotFound,
    SubjectExists,
    SubjectNotFound,
    TemplateNotFound,
)
from app.gallery.policy import FixedDistance, ThresholdPolicy, WantedRates
from app.gallery.records import Enrolment, GalleryChanges, GallerySize, NewTemplate
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import Base, GalleryRow
from tests.databases import steps_of

EXTRACTOR = "net@0123456789ab"
Templates = Callable[[int], list[NewTemplate]]


def enroll(
    store: GalleryStore,
    key: str,
    templates: list[NewTemplate],
    *,
    gallery: str = "people",
    metadata: dict[str, Any] | None = None,
    extractor: str = EXTRACTOR,
) -> Enrolment:
    return store.enroll(gallery, key, templates, metadata=metadata, extractor=extractor, dimension=8)


def history(store: GalleryStore, gallery: str = "people") -> list[tuple[int, str, int]]:
    found = store.gallery(gallery)
    changes = GalleryHistory(store.engine).changes(found.id, after=0, up_to=found.revision)
    return [(one.revision, one.kind, one.template_id) for one in changes]


# -- enrolling


def test_the_first_enrolment_makes_gallery_and_subject(store: GalleryStore, new_templates: Templates) -> None:
    enrolment = enroll(store, "anna", new_templates(2))
    gallery = store.gallery("people")
    assert (gallery.extractor, gallery.dimension, gallery.revision, gallery.policy) == (EXTRACTOR, 8, 1, None)
    assert enrolment.created
    assert enrolment.known == ()
    assert (enrolment.subject.key, enrolment.subject.metadata, enrolment.subject.templates) == ("anna", {}, 2)
    assert enrolment.subject == store.subject("people", "anna")
    assert store.size(gallery) == GallerySize(subjects=1, templates=2, enrolled=1)


def test_a_gallery_that_was_erased_since_it_was_read_has_no_size(store: GalleryStore, new_templates: Templates) -> None:
    for name in ("people", "visitors"):
        enroll(store, "anna", new_templates(2), gallery=name)
    people, visitors = store.galleries()
    store.delete_gallery("people")
    assert store.sizes([people, visitors]) == {visitors.id: GallerySize(subjects=1, templates=2, enrolled=1)}
    with pytest.raises(GalleryNotFound, match="people"):
        store.size(people)


def test_templates_are_counted_once_a_revision(store: GalleryStore, new_templates: Templates) -> None:
    one, two, three = new_templates(3)
    enroll(store, "anna", [one, two])
    gallery = store.gallery("people")
    store.size(gallery)
    with statements_of(store.engine) as statements:
        assert store.size(gallery) == GallerySize(subjects=1, templates=2, enrolled=1)
    assert [statement for statement in statements if "FROM template" in statement] == []
    ids = [template.id for template in store.templates("people", subject="anna", after=0, limit=9).items]
    for change, size in (
        (lambda: enroll(store, "bob", [three]), GallerySize(subjects=2, templates=3, enrolled=2)),
        (lambda: store.delete_template("people", ids[0]), GallerySize(subjects=2, templates=2, enrolled=2)),
        (lambda: store.delete_template("people", ids[1]), GallerySize(subjects=2, templates=1, enrolled=1)),
    ):
        change()
        assert store.size(gallery) == size


def test_a_count_beside_a_write_that_is_undone_is_not_kept(store: GalleryStore, new_templates: Templates) -> None:
    """As by PostgreSQL that fails over to a standby which did not have it."""
    one, two = new_templates(2)
    enroll(store, "anna", [one])
    before, writer = store.gallery("people"), GalleryStore(store.engine)
    with statements_of(store.engine, lambda: enroll(writer, "anna", [two])):
        store.size(before)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM template WHERE id = (SELECT max(id) FROM template)")
        connection.exec_driver_sql(f"UPDATE gallery SET revision = {before.revision}, mark = {before.point.mark}")
    assert store.size(before) == GallerySize(subjects=1, templates=1, enrolled=1)


@contextmanager
def statements_of(engine: Engine, *before_counting: Callable[[], object]) -> Iterator[list[str]]:
    """What an engine is asked; before templates are counted the first time, something is done."""
    asked, to_do = list[str](), list(before_counting)

    def ask(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)
        if to_do and "count(*)" in statement and "FROM template" in statement:
            to_do.pop()()

    event.listen(engine, "before_cursor_execute", ask)
    yield asked
    event.remove(engine, "before_cursor_execute", ask)


def test_a_template_is_stored_bit_for_bit(store: GalleryStore, new_templates: Templates) -> None:
    (template,) = new_templates(1)
    enrolment = enroll(store, "anna", [template])
    (stored,) = store.templates("people", subject="anna", after=0, limit=10).items
    assert (stored,) == enrolment.added
    assert (stored.subject, stored.quality, stored.crop_sha256) == ("anna", template.quality, template.crop_sha256)
    block = store.subject_embeddings(enrolment.subject.id)
    assert (block.ids.tolist(), block.subject_ids.tolist()) == ([stored.id], [enrolment.subject.id])
    assert block.embeddings.dtype == np.float32
    assert np.array_equal(block.embeddings, template.embedding[None])


def test_a_known_subject_gets_further_templates(store: GalleryStore, new_templates: Templates) -> None:
    first = enroll(store, "anna", new_templates(1))
    second = enroll(store, "anna", new_templates(2))
    assert not second.created
    assert (second.subject.id, second.subject.templates) == (first.subject.id, 3)


def test_the_same_crop_again_adds_nothing(store: GalleryStore, new_templates: Templates) -> None:
    old, new = new_templates(2)
    first = enroll(store, "anna", [old])
    again = enroll(store, "anna", [old])
    assert (again.added, again.known, again.created) == ((), first.added, False)
    assert again.subject == first.subject
    both = enroll(store, "anna", [old, new, new])
    assert ([one.crop_sha256 for one in both.added], both.known) == ([new.crop_sha256], first.added)
    assert [revision for revision, _, _ in history(store)] == [1, 2]


def test_two_subjects_may_have_the_same_crop(store: GalleryStore, new_templates: Templates) -> None:
    templates = new_templates(1)
    enroll(store, "anna", templates)
    assert len(enroll(store, "hanna", templates).added) == 1


def test_metadata_is_replaced_where_it_is_given(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1), metadata={"room": 1, "floor": 2})
    assert enroll(store, "anna", new_templates(1)).subject.metadata == {"room": 1, "floor": 2}
    assert enroll(store, "anna", new_templates(1), metadata={"room": 3}).subject.metadata == {"room": 3}
    assert enroll(store, "anna", [], metadata={}).subject.metadata == {}


def test_metadata_keeps_every_json_value(store: GalleryStore, new_templates: Templates) -> None:
    metadata = {"": [1, 2.5, None, True, {"深": "😀"}], "nul": "\x00", "half": "\ud83d", "large": 2**70, "'\"": "\\"}
    enroll(store, "anna", new_templates(1), metadata=metadata)
    assert store.subject("people", "anna").metadata == metadata


def test_times_are_in_utc_and_tell_the_last_change(store: GalleryStore, new_templates: Templates) -> None:
    templates = new_templates(1)
    first = enroll(store, "anna", templates).subject
    unchanged = enroll(store, "anna", templates).subject
    changed = enroll(store, "anna", templates, metadata={"room": 1}).subject
    assert first.created_at.utcoffset() == timedelta(0)
    assert store.gallery("people").created_at <= first.created_at <= first.updated_at
    assert unchanged.updated_at == first.updated_at < changed.updated_at
    assert changed.created_at == first.created_at


def test_embeddings_of_another_extractor_are_refused(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1))
    before = store.gallery("people")
    with pytest.raises(
        ExtractorMismatch,
        match=f"^gallery 'people' belongs to extractor {EXTRACTOR}, but other@1 is running; run the service with that "
        "extractor, move the gallery with `facegallery reembed`, or enroll the photos again into a new gallery$",
    ):
        enroll(store, "bob", new_templates(1), extractor="other@1")
    assert store.gallery("people") == before
    assert store.size(before) == GallerySize(subjects=1, templates=1, enrolled=1)


@pytest.mark.parametrize("key", ["王小明", "محمد", "👩🏽‍🚀", "Ö" * 200, "a'b\"c;--", "%_\\", " anna "])
def test_keys_of_any_script_come_back(store: GalleryStore, new_templates: Templates, key: str) -> None:
    enroll(store, "anna", new_templates(1), gallery=key)
    enroll(store, key, new_templates(1), gallery=key)
    assert store.subject(key, key).key == key
    assert [one.key for one in store.subjects(key, after=0, limit=10).items] == ["anna", key]
    assert [gallery.name for gallery in store.galleries()] == [key]


def test_keys_that_differ_in_case_are_two_subjects(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1))
    assert enroll(store, "Anna", new_templates(1)).created


# -- galleries


@pytest.mark.parametrize("policy", [None, FixedDistance(1.0), WantedRates(fpir=0.01), WantedRates(0.01, 0.0001)])
def test_a_gallery_keeps_its_policy(store: GalleryStore, policy: ThresholdPolicy | None) -> None:
    made = store.create_gallery("people", extractor=EXTRACTOR, dimension=8, policy=policy)
    assert made.policy == policy
    assert store.gallery("people") == made
    assert store.change_gallery("people", {"policy": FixedDistance(0.5)}).policy == FixedDistance(0.5)
    assert store.change_gallery("people", {"policy": policy}) == made


def test_a_change_of_a_gallery_leaves_the_rest_as_it_is(store: GalleryStore) -> None:
    store.create_gallery("people", extractor=EXTRACTOR, dimension=8, policy=FixedDistance(0.5))
    changes: list[GalleryChanges] = [{"require_consent": True}, {"keep_days": 30}, {"unseen_days": 7}]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda one: store.change_gallery("people", one), changes))
    changed = store.change_gallery("people", {"keep_days": None})
    assert (changed.policy, changed.privacy) == (FixedDistance(0.5), PrivacyRules(True, None, 7))
    assert store.gallery("people") == changed


def test_a_taken_name_is_refused(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1))
    with pytest.raises(GalleryExists, match=r"^gallery 'people' exists already$"):
        store.create_gallery("people", extractor=EXTRACTOR, dimension=8, policy=None)
    assert store.subject("people", "anna").templates == 1


def test_galleries_are_listed_by_name(store: GalleryStore) -> None:
    for name in ("c", "a", "b"):
        store.create_gallery(name, extractor=EXTRACTOR, dimension=8, policy=None)
    assert [gallery.name for gallery in store.galleries()] == ["a", "b", "c"]


def test_a_page_of_galleries_loads_no_others_and_goes_on_behind_one_that_was_erased(store: GalleryStore) -> None:
    for name in ("b", "Z", "a", "é", "z"):
        store.create_gallery(name, extractor=EXTRACTOR, dimension=8, policy=None)
    pages, loaded = list[list[str]](), list[GalleryRow]()
    cursor: str | None = ""
    while cursor is not None:
        event.listen(GalleryRow, "load", listen := lambda row, _context: loaded.append(row))
        page, cursor = store.gallery_page(lambda name: name != "a", after=cursor, limit=2)
        event.remove(GalleryRow, "load", listen)
        pages.append([gallery.name for gallery in page])
        if cursor is not None:
            store.delete_gallery(cursor)
    assert pages == [["Z", "b"], ["z", "é"]]
    assert sorted(row.name for row in loaded) == ["Z", "b", "z", "é"]


def test_a_deleted_gallery_leaves_nothing_behind(store: GalleryStore, engine: Engine, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(2))
    enroll(store, "anna", new_templates(1), gallery="others")
    store.delete_gallery("others")
    assert [gallery.name for gallery in store.galleries()] == ["people"]
    store.delete_gallery("people")
    with engine.connect() as connection:
        left = {
            name: connection.scalar(select(func.count()).select_from(table))
            for name, table in Base.metadata.tables.items()
        }
    assert left.pop("storage_to_drop") == 2  # names of what an engine may hold, and nothing about anybody
    assert left == dict.fromkeys(left, 0)


def test_what_is_not_there_is_said(store: GalleryStore, new_templates: Templates) -> None:
    for call in (
        lambda: store.gallery("people"),
        lambda: store.delete_gallery("people"),
        lambda: store.change_gallery("people", {"policy": None}),
        lambda: store.subject("people", "anna"),
        lambda: store.subjects("people", after=0, limit=1),
        lambda: store.templates("people", subject=None, after=0, limit=1),
        lambda: store.delete_subject("people", "anna"),
        lambda: store.delete_template("people", 1),
        lambda: store.update_subject("people", "anna"),
        lambda: GalleryHistory(store.engine).request_rebuild("people"),
    ):
        with pytest.raises(GalleryNotFound, match=r"^there is no gallery 'people'$") as no_gallery:
            call()
        assert no_gallery.value.part == "gallery"
    enroll(store, "bob", new_templates(1))
    for call in (
        lambda: store.subject("people", "anna"),
        lambda: store.templates("people", subject="anna", after=0, limit=1),
        lambda: store.delete_subject("people", "anna"),
        lambda: store.update_subject("people", "anna", new_key="eve"),
    ):
        with pytest.raises(SubjectNotFound, match=r"^gallery 'people' has no subject 'anna'$") as no_subject:
            call()
        assert no_subject.value.part == "subject"


# -- subjects


def test_subjects_come_in_pages(store: GalleryStore, new_templates: Templates) -> None:
    for number in range(7):
        enroll(store, f"subject {number}", new_templates(1))
    enroll(store, "stranger", new_templates(1), gallery="others")
    pages, after = [], 0
    while True:
        page = store.subjects("people", after=after, limit=3)
        pages.append([subject.key for subject in page.items])
        if page.next_cursor is None:
            break
        after = page.next_cursor
        store.delete_subject("people", page.items[-1].key)  # a page goes on even if its start is gone
    assert pages == [["subject 0", "subject 1", "subject 2"], ["subject 3", "subject 4", "subject 5"], ["subject 6"]]


def test_a_page_costs_as_much_in_a_large_gallery(store: GalleryStore, engine: Engine, new_templates: Templates) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL does not say what a query costs it")
    (first,) = enroll(store, "anna", new_templates(1)).added
    looks = (
        lambda: store.subjects("people", after=0, limit=1),
        lambda: store.templates("people", subject="anna", after=first.id - 1, limit=1),
    )
    costs: list[list[int]] = []
    for many in (10, 3000):
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?) INSERT INTO "
                "subject (gallery_id, key, metadata, created_at, updated_at) "
                "SELECT gallery_id, ? || n, metadata, created_at, updated_at FROM subject, number WHERE key = 'anna'",
                (many, f"{many} people, number "),
            )
            connection.exec_driver_sql(
                "INSERT INTO template (gallery_id, subject_id, embedding, detection_score, face_size, sharpness, pose, "
                "crop_sha256, created_at) SELECT one.gallery_id, subject.id, embedding, detection_score, face_size, "
                "sharpness, pose, crop_sha256, one.created_at FROM template AS one, subject "
                "WHERE one.id = ? AND subject.key LIKE ?",
                (first.id, f"{many} people, %"),
            )
        costs.append([])
        for look in looks:
            with steps_of(engine) as steps:
                assert look()
            costs[-1].append(len(steps))
    assert [large - small < 5 for small, large in zip(*costs, strict=True)] == [True, True]


def test_a_last_page_that_is_full_has_no_cursor(store: GalleryStore, new_templates: Templates) -> None:
    for number in range(4):
        enroll(store, str(number), new_templates(1))
    first = store.subjects("people", after=0, limit=2)
    assert first.next_cursor == first.items[-1].id
    assert store.subjects("people", after=first.next_cursor, limit=2).next_cursor is None
    assert store.subjects("people", after=2**62, limit=2).items == ()


def test_subjects_by_id_leave_out_those_that_are_gone(store: GalleryStore, new_templates: Templates) -> None:
    anna, bob = (enroll(store, key, new_templates(1)).subject for key in ("anna", "bob"))
    store.delete_subject("people", "bob")
    assert store.subjects_by_id([anna.id, bob.id, 2**40]) == {anna.id: anna}
    assert store.subjects_by_id([]) == {}


def test_as_many_subjects_by_id_as_a_photo_of_a_crowd_has_candidates(
    store: GalleryStore, new_templates: Templates
) -> None:
    anna = enroll(store, "anna", new_templates(1)).subject
    assert store.subjects_by_id(range(anna.id, anna.id + 10_000)) == {anna.id: anna}


def test_a_subject_is_renamed_and_keeps_its_templates(store: GalleryStore, new_templates: Templates) -> None:
    before = enroll(store, "anna", new_templates(2), metadata={"room": 1}).subject
    after = store.update_subject("people", "anna", new_key="anne")
    assert (after.id, after.key, after.metadata, after.templates) == (before.id, "anne", {"room": 1}, 2)
    assert after == store.subject("people", "anne")
    with pytest.raises(SubjectNotFound):
        store.subject("people", "anna")


def test_a_subject_takes_its_own_key_and_new_metadata(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1), metadata={"room": 1})
    assert store.update_subject("people", "anna", new_key="anna", metadata={"room": 2}).metadata == {"room": 2}


def test_a_key_of_another_subject_is_refused(store: GalleryStore, new_templates: Templates) -> None:
    anna, bob = (enroll(store, key, new_templates(1)).subject for key in ("anna", "bob"))
    enroll(store, "carl", new_templates(1), gallery="others")
    with pytest.raises(SubjectExists, match=r"^gallery 'people' has a subject 'bob' already$"):
        store.update_subject("people", "anna", new_key="bob", metadata={"lost": True})
    assert [store.subject("people", key) for key in ("anna", "bob")] == [anna, bob]
    assert store.update_subject("people", "anna", new_key="carl").key == "carl"


def test_a_deleted_subject_takes_its_templates_along(store: GalleryStore, new_templates: Templates) -> None:
    anna = enroll(store, "anna", new_templates(2))
    bob = enroll(store, "bob", new_templates(1))
    assert store.delete_subject("people", "anna") == 2
    assert [one.id for one in store.templates("people", subject=None, after=0, limit=9).items] == [bob.added[0].id]
    assert store.subject_embeddings(anna.subject.id).embeddings.size == 0
    assert store.subjects("people", after=0, limit=9).items == (bob.subject,)


def test_who_is_erased_while_their_templates_are_read_has_none(store: GalleryStore, new_templates: Templates) -> None:
    anna = enroll(store, "anna", new_templates(1)).subject

    @event.listens_for(store.engine, "after_cursor_execute", once=True)
    def erase(*_: object) -> None:
        store.delete_subject("people", "anna")

    assert len(store.subject_embeddings(anna.id).ids) == 0


@pytest.mark.parametrize("statement", [1, 2])
def test_who_is_erased_while_they_are_read_is_there_or_not(
    store: GalleryStore, new_templates: Templates, statement: int
) -> None:
    anna, asked = enroll(store, "anna", new_templates(1)).subject, count(1)

    @event.listens_for(store.engine, "after_cursor_execute")
    def erase(*_: object) -> None:
        if next(asked) == statement:
            store.delete_subject("people", "anna")

    with suppress(SubjectNotFound):
        assert store.subject("people", "anna") == anna
    with pytest.raises(SubjectNotFound, match=r"^gallery 'people' has no subject 'anna'$"):
        store.subject("people", "anna")


# -- templates


def test_templates_come_in_pages(store: GalleryStore, new_templates: Templates) -> None:
    anna = [one.id for one in enroll(store, "anna", new_templates(3)).added]
    bob = [one.id for one in enroll(store, "bob", new_templates(2)).added]
    first = store.templates("people", subject=None, after=0, limit=4)
    assert [one.id for one in first.items] == [*anna, bob[0]]
    assert first.next_cursor == bob[0]
    rest = store.templates("people", subject=None, after=bob[0], limit=4)
    assert ([one.id for one in rest.items], rest.next_cursor) == ([bob[1]], None)
    of_anna = store.templates("people", subject="anna", after=anna[0], limit=4)
    assert [(one.id, one.subject) for one in of_anna.items] == [(anna[1], "anna"), (anna[2], "anna")]


def test_a_subject_stays_when_its_last_template_goes(store: GalleryStore, new_templates: Templates) -> None:
    (template,) = enroll(store, "anna", new_templates(1)).added
    store.delete_template("people", template.id)
    assert store.subject("people", "anna").templates == 0
    assert store.delete_subject("people", "anna") == 0
    assert history(store) == [(1, "add", template.id), (2, "remove", template.id)]


def test_a_template_is_deleted_only_in_its_own_gallery(store: GalleryStore, new_templates: Templates) -> None:
    (template,) = enroll(store, "anna", new_templates(1)).added
    store.create_gallery("others", extractor=EXTRACTOR, dimension=8, policy=None)
    with pytest.raises(TemplateNotFound, match=f"^gallery 'others' has no template {template.id}$"):
        store.delete_template("others", template.id)
    assert store.subject("people", "anna").templates == 1
    assert store.gallery("others").revision == 0


def test_templates_are_read_in_blocks(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.sql.history._MANY", 3)
    templates = new_templates(7)
    made = enroll(store, "anna", templates)
    enroll(store, "bob", new_templates(1), gallery="others")
    blocks = list(GalleryHistory(store.engine).template_blocks(store.gallery("people").id))
    assert [len(block.ids) for block in blocks] == [3, 3, 1]
    assert np.concatenate([block.ids for block in blocks]).tolist() == [one.id for one in made.added]
    assert np.array_equal(np.concatenate([block.embeddings for block in blocks]), [one.embedding for one in templates])


# -- history


def test_every_write_of_templates_is_one_revision(store: GalleryStore, new_templates: Templates) -> None:
    a, b = (one.id for one in enroll(store, "anna", new_templates(2)).added)
    (c,) = (one.id for one in enroll(store, "bob", new_templates(1)).added)
    store.delete_template("people", b)
    store.update_subject("people", "anna", new_key="anne")
    assert GalleryHistory(store.engine).request_rebuild("people").revision == 4
    enroll(store, "carl", [])
    store.delete_subject("people", "carl")
    store.delete_subject("people", "anne")
    assert history(store) == [
        (1, "add", a),
        (1, "add", b),
        (2, "add", c),
        (3, "remove", b),
        (4, "rebuild", 0),
        (5, "remove", a),
    ]


def test_snapshots_are_to_follow_what_is_erased_and_nothing_else(store: GalleryStore, new_templates: Templates) -> None:
    def asked() -> str | None:
        return store.gallery("people").erasure

    (template, _) = enroll(store, "anna", new_templates(2)).added
    enroll(store, "bob", [])
    store.update_subject("people", "anna", new_key="anne")
    seen = [asked()]
    assert seen == [None]
    for erase in (
        lambda: store.delete_template("people", template.id),
        lambda: store.delete_subject("people", "bob"),  # of an extractor that was left there may be something
        lambda: store.delete_subject("people", "anne"),
    ):
        erase()
        seen.append(asked())
    assert len(set(seen)) == 4


def test_changes_bring_the_embeddings_that_are_still_there(store: GalleryStore, new_templates: Templates) -> None:
    kept, erased = new_templates(2)
    anna = enroll(store, "anna", [kept, erased])
    store.delete_template("people", anna.added[1].id)
    first, second, third = GalleryHistory(store.engine).changes(store.gallery("people").id, after=0, up_to=2)
    assert (first.subject_id, third.subject_id) == (anna.subject.id, anna.subject.id)
    assert first.embedding is not None
    assert np.array_equal(first.embedding, kept.embedding)
    assert (second.embedding, third.embedding) == (None, None)


def test_changes_are_those_between_two_revisions(store: GalleryStore, new_templates: Templates) -> None:
    for key in "abcd":
        enroll(store, key, new_templates(1))
    gallery_id = store.gallery("people").id
    assert [one.revision for one in GalleryHistory(store.engine).changes(gallery_id, after=1, up_to=3)] == [2, 3]
    assert GalleryHistory(store.engine).changes(gallery_id, after=4, up_to=4) == []
    assert GalleryHistory(store.engine).changes(gallery_id + 1, after=0, up_to=4) == []


def test_galleries_have_their_own_revisions(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1))
    enroll(store, "anna", new_templates(1), gallery="others")
    assert [gallery.revision for gallery in store.galleries()] == [1, 1]


def test_no_id_is_used_twice(store: GalleryStore, new_templates: Templates) -> None:
    templates, used = new_templates(1), set[tuple[int, int, int]]()
    for _ in range(3):
        made = enroll(store, "anna", templates)
        used.add((store.gallery("people").id, made.subject.id, made.added[0].id))
        store.delete_template("people", made.added[0].id)
        store.delete_subject("people", "anna")
        store.delete_gallery("people")
    assert [len(set(column)) for column in zip(*used, strict=True)] == [3, 3, 3]


# -- faults and threads


@pytest.mark.parametrize("gallery", ["people", "new"])
def test_a_write_that_fails_halfway_changes_nothing(
    store: GalleryStore, new_templates: Templates, gallery: str
) -> None:
    anna = enroll(store, "anna", new_templates(1), metadata={"room": 1}).subject
    good, bad = new_templates(2)
    with pytest.raises(IntegrityError):
        enroll(store, "anna", [good, replace(bad, crop_sha256=cast(str, None))], gallery=gallery, metadata={"room": 2})
    assert [(one.name, one.revision) for one in store.galleries()] == [("people", 1)]
    assert store.subject("people", "anna") == anna
    assert len(enroll(store, "anna", [good]).added) == 1
    assert [revision for revision, _, _ in history(store)] == [1, 2]


@pytest.mark.parametrize("attempt", range(3))
def test_enrolments_of_one_new_subject_at_the_same_moment(
    store: GalleryStore, new_templates: Templates, attempt: int
) -> None:
    threads = 6
    start, templates = threading.Barrier(threads), [new_templates(2) for _ in range(threads)]

    def run(number: int) -> Enrolment:
        start.wait()
        return enroll(store, "anna", templates[number])

    with ThreadPoolExecutor(threads) as pool:
        enrolments = list(pool.map(run, range(threads)))
    assert len({enrolment.subject.id for enrolment in enrolments}) == 1
    assert sum(enrolment.created for enrolment in enrolments) == 1
    assert all(len(enrolment.added) == 2 for enrolment in enrolments)
    gallery = store.gallery("people")
    size = GallerySize(subjects=1, templates=2 * threads, enrolled=1)
    assert (gallery.revision, store.size(gallery)) == (threads, size)


def test_one_of_many_makes_a_gallery(store: GalleryStore) -> None:
    start = threading.Barrier(6)

    def make(_: int) -> bool:
        start.wait()
        try:
            store.create_gallery("people", extractor=EXTRACTOR, dimension=8, policy=None)
        except GalleryExists:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(make, range(6))) == 1


def test_revisions_become_visible_in_order_and_without_gaps(store: GalleryStore, new_templates: Templates) -> None:
    gallery = store.create_gallery("people", extractor=EXTRACTOR, dimension=8, policy=None)
    work = [[new_templates(1) for _ in range(8)] for _ in range(3)]
    done = threading.Event()

    def write(number: int) -> None:
        for turn, templates in enumerate(work[number]):
            made = enroll(store, f"{number}", templates)
            if turn % 2:
                store.delete_template("people", made.added[0].id)

    def read() -> int:
        reads = 0
        while not done.is_set():
            revision = store.gallery("people").revision
            seen = GalleryHistory(store.engine).changes(gallery.id, after=0, up_to=revision)
            assert [change.revision for change in seen] == list(range(1, revision + 1))
            reads += 1
        return reads

    with ThreadPoolExecutor(4) as pool:
        reader = pool.submit(read)
        try:
            list(pool.map(write, range(3)))
        finally:
            done.set()
        assert reader.result()
    assert store.gallery("people").revision == 3 * (8 + 4)
    assert store.size(gallery) == GallerySize(subjects=3, templates=3 * 4, enrolled=3)


@pytest.mark.parametrize("hours", [-8, 0, 5.5])
def test_a_moment_is_the_same_whatever_its_zone(store: GalleryStore, new_templates: Templates, hours: float) -> None:
    moment = datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=hours)))
    enroll(store, "anna", new_templates(1))
    store.update_subject("people", "anna", terms={"expires_at": moment})
    kept = store.subject("people", "anna").expires_at
    assert kept == moment


def test_a_moment_without_a_zone_is_not_stored(store: GalleryStore, new_templates: Templates) -> None:
    enroll(store, "anna", new_templates(1))
    with pytest.raises(StatementError, match="without a zone"):
        store.update_subject("people", "anna", terms={"expires_at": datetime(2030, 1, 1)})
    assert store.subject("people", "anna").expires_at is None


@pytest.mark.parametrize("levels", [32, 33, 200, 800, 3000])
def test_metadata_of_any_depth_that_an_earlier_version_stored_is_read(
    store: GalleryStore, new_templates: Templates, levels: int
) -> None:
    enroll(store, "anna", new_templates(1))
    stored = '{"badge": 17, "a": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"
    with store.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE subject SET metadata = '{stored}'")
    metadata = store.subject("people", "anna").metadata
    lists = "[" * 31 + ("null" if levels > 32 else "") + "]" * 31
    assert metadata == ({"badge": 17, "a": json.loads(lists)} if levels < 1000 else {})
    assert store.subjects("people", after=0, limit=1).items[0].metadata == metadata
