"""`facegallery check`: every kind of difference is found, and mended."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.gallery.errors import ExtractorMismatch, GalleryNotFound
from app.gallery.records import NewTemplate, OwnerBlock
from app.gallery.sealing.vault import Vault
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import ChangeRow, GalleryRow, SubjectRow, TemplateRow
from app.gallery.views import consistency
from app.gallery.views.consistency import Consistency, Differing, check_gallery, check_rows, repair_gallery
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica

EXTRACTOR = "net@0123456789ab"
Templates = Callable[[int], list[NewTemplate]]


@pytest.fixture
def gallery(store: GalleryStore, source: IndexSource, new_templates: Templates) -> GalleryStore:
    """Two people, and a snapshot that holds them."""
    for key in ("anna", "bob"):
        store.enroll("people", key, new_templates(3), metadata=None, extractor=EXTRACTOR, dimension=8)
    found = store.gallery("people")
    replica = GalleryReplica(
        found, GalleryHistory(store.engine), partial(source.make, found), source.snapshots_of(found)
    )
    replica.catch_up(*found.point)
    replica.on_disk.write()
    return store


def checked(store: GalleryStore, source: IndexSource) -> Consistency:
    return check_gallery(store.gallery("people"), GalleryHistory(store.engine), source)


def behind_its_back(store: GalleryStore, statement: object) -> None:
    with Session(store.engine) as session, session.begin():
        session.execute(statement)  # type: ignore[call-overload]


def test_a_whole_gallery_is_whole(gallery: GalleryStore, source: IndexSource) -> None:
    assert checked(gallery, source) == Consistency("people", 6, 0, 0, 0, 0, (), snapshots=1)
    assert checked(gallery, source).whole


def test_what_the_index_lacks_is_counted_and_named(
    gallery: GalleryStore, source: IndexSource, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.enroll("people", "cleo", new_templates(2), metadata=None, extractor=EXTRACTOR, dimension=8)
    behind_its_back(gallery, update(ChangeRow).where(ChangeRow.revision == 3).values(kind="remove"))
    assert checked(gallery, source) == Consistency(
        "people", 8, 2, 0, 0, 0, (), differing=Differing(missing=(7, 8)), snapshots=1
    )
    monkeypatch.setattr(consistency, "LISTED", 1)
    assert checked(gallery, source) == Consistency(
        "people", 8, 2, 0, 0, 0, (), differing=Differing(missing=(7,)), snapshots=1
    )


def test_a_row_that_was_removed_behind_its_back_is_surplus(gallery: GalleryStore, source: IndexSource) -> None:
    first = gallery.templates("people", subject="anna", after=0, limit=1).items[0].id
    behind_its_back(gallery, TemplateRow.__table__.delete().where(TemplateRow.id == first))  # type: ignore[attr-defined]
    assert checked(gallery, source) == Consistency(
        "people", 5, 0, 1, 0, 0, (), differing=Differing(surplus=(first,)), snapshots=1
    )


def test_another_embedding_and_another_subject_are_told_apart(gallery: GalleryStore, source: IndexSource) -> None:
    first = gallery.templates("people", subject="anna", after=0, limit=1).items[0].id
    other = np.eye(8, dtype="<f4")[0].tobytes()
    behind_its_back(gallery, update(TemplateRow).where(TemplateRow.id == first).values(embedding=other))
    bob = gallery.subject("people", "bob").id
    behind_its_back(gallery, update(TemplateRow).where(TemplateRow.id == first + 1).values(subject_id=bob))
    differing = Differing(moved=(first + 1,), changed=(first,))
    assert checked(gallery, source) == Consistency("people", 6, 0, 0, 1, 1, (), differing=differing, snapshots=1)
    repair_gallery(gallery.gallery("people"), GalleryHistory(gallery.engine), source)
    assert checked(gallery, source) == Consistency("people", 6, 0, 0, 0, 0, ())


def test_a_damaged_snapshot_is_told_and_left_until_it_is_repaired(gallery: GalleryStore, source: IndexSource) -> None:
    assert source.folder is not None
    (owners,) = source.folder.rglob("owners.i64")
    owners.write_bytes(b"")
    found = checked(gallery, source)
    assert not found.whole
    assert found.damaged_snapshots[0].startswith("snapshot of revision 2: ")
    assert owners.is_file()
    repair_gallery(gallery.gallery("people"), GalleryHistory(gallery.engine), source)
    assert checked(gallery, source).whole


def test_of_rows_alone_it_is_said_whether_they_open(
    sealed_store: GalleryStore, sealed_history: GalleryHistory, vault: Vault, new_templates: Templates
) -> None:
    for key in ("anna", "bob", "cleo"):
        sealed_store.enroll("people", key, new_templates(2), metadata=None, extractor=EXTRACTOR, dimension=8)
    behind_its_back(sealed_store, update(TemplateRow).where(TemplateRow.id == 1).values(embedding=b"damaged"))
    with Session(sealed_store.engine) as session:
        key_id = session.scalars(select(SubjectRow.key_id).where(SubjectRow.key == "bob")).one()
    vault.destroy([str(key_id)])  # he was forgotten after the backup that the database comes from
    gallery = sealed_store.gallery("people")
    found = check_rows(gallery, sealed_history)
    assert found == Consistency("people", 3, 0, 0, 0, 0, (), (1, 3, 4), (3, 4), compared=False)
    assert check_gallery(gallery, sealed_history, IndexSource()) == replace(found, compared=True)


class Beside(GalleryHistory):
    """History in which something is written each time that owners were read."""

    write: Callable[[], object]

    def owner_blocks(self, gallery_id: int) -> Iterator[OwnerBlock]:
        yield from super().owner_blocks(gallery_id)
        self.write()


def test_what_a_running_service_writes_is_no_difference(
    gallery: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    numbers = count()

    def write() -> None:
        key = f"new {next(numbers)}"
        gallery.enroll("people", key, new_templates(1), metadata=None, extractor=EXTRACTOR, dimension=8)

    for number in range(3):
        gallery.enroll("people", f"{number}", new_templates(2), metadata=None, extractor=EXTRACTOR, dimension=8)
    history = Beside(gallery.engine)
    history.write = write
    found = check_gallery(gallery.gallery("people"), history, source)
    assert found.whole
    history.write = lambda: [
        gallery.delete_subject("people", gallery.subjects("people", after=0, limit=1).items[0].key)
    ]
    assert check_gallery(gallery.gallery("people"), history, source).whole


class Measured(GalleryHistory):
    """History that notes how much memory is in use when the owners are first read."""

    before: int | None = None

    def owner_blocks(self, gallery_id: int) -> Iterator[OwnerBlock]:
        if self.before is None:
            self.before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
        return super().owner_blocks(gallery_id)


def test_ids_take_a_few_bytes_for_each_template(
    store: GalleryStore, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets of the ids of ten million templates took gigabytes."""
    monkeypatch.setattr("app.gallery.sql.history._MANY", 100)  # so that what is read at once counts for little
    store.enroll("people", "anna", new_templates(10_000), metadata=None, extractor=EXTRACTOR, dimension=8)
    gallery, history = store.gallery("people"), Measured(store.engine)
    tracemalloc.start()
    try:
        assert check_rows(gallery, GalleryHistory(store.engine)).templates == 10_000
        _, of_rows = tracemalloc.get_traced_memory()
        assert check_gallery(gallery, history, IndexSource()).whole
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert of_rows < 100 * 10_000
    assert peak - (history.before or 0) < 100 * 10_000  # what comes on top of the index


def test_changes_that_a_check_has_yet_to_follow_are_kept(
    gallery: GalleryStore, source: IndexSource, new_templates: Templates
) -> None:
    """Else it loads its index anew from SQL, and nothing is missing in that one."""
    gallery.enroll("people", "cleo", new_templates(2), metadata=None, extractor=EXTRACTOR, dimension=8)
    behind_its_back(gallery, update(ChangeRow).where(ChangeRow.revision == 3).values(kind="remove"))
    service, history = GalleryHistory(gallery.engine), Beside(gallery.engine)

    def write() -> None:
        gallery.enroll("people", "dora", new_templates(1), metadata=None, extractor=EXTRACTOR, dimension=8)
        present = gallery.gallery("people")
        service.report(present.id, "service", present.revision)
        service.prune(present.id)

    history.write = write
    found = gallery.gallery("people")
    differing = Differing(missing=(7, 8))
    assert check_gallery(found, history, source) == Consistency(
        "people", 8, 2, 0, 0, 0, (), differing=differing, snapshots=1
    )
    assert service.changes(found.id, after=3, up_to=4) != []
    assert service.prune(found.id) == 1  # nobody needs them any more


def test_a_gallery_that_is_erased_or_moves_meanwhile_has_no_differences(
    gallery: GalleryStore, source: IndexSource
) -> None:
    found, history = gallery.gallery("people"), Beside(gallery.engine)
    history.write = lambda: behind_its_back(gallery, update(GalleryRow).values(extractor="other@ba9876543210"))
    with pytest.raises(ExtractorMismatch):
        check_gallery(found, history, source)

    def erase() -> None:
        with suppress(GalleryNotFound):
            gallery.delete_gallery("people")

    history.write = erase
    with pytest.raises(GalleryNotFound):
        check_gallery(found, history, source)
