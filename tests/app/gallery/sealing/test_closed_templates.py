"""A template that does not open is not known: by an enrolment, an import of photos, an import of an archive."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Engine, select, text

from app.gallery.erasure.forgetting import Forgetting
from app.gallery.errors import KeyUnavailable, SubjectNotFound
from app.gallery.index import ExactIndex
from app.gallery.moving.import_journal import ImportJournal
from app.gallery.moving.import_sources import people_of_folder
from app.gallery.moving.importing import ImportReport, PeopleImport
from app.gallery.moving.portable import Stored
from app.gallery.photos import PhotoReader
from app.gallery.records import Enrolment, NewTemplate
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.sealing.encryption import Flaw, RowSeals, SealedRow, SealedRows
from app.gallery.sealing.vault import DataKeyRow, Vault
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.rows import crop_identity, sealed_columns
from app.gallery.store import GalleryStore
from app.gallery.tables import CropRow, SubjectRow, TemplateRow
from app.gallery.views.replica import GalleryReplica
from model.image import ImageLimits
from model.pipeline import Networks
from model.quality import QualityLimits
from tests.app.gallery.archives import export, fill, read_back, templates_with_crops

Templates = Callable[[int], list[NewTemplate]]


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate]) -> Enrolment:
    return store.enroll("people", key, templates, metadata=None, extractor="net@1", dimension=8)


def change(engine: Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def lose_key(engine: Engine, vault: Vault, key: str) -> None:
    """As if the vault were older than the subject."""
    with engine.connect() as connection:
        key_id = connection.execute(text("SELECT key_id FROM subject WHERE key = :key"), {"key": key}).scalar_one()
    change(vault.engine, f"DELETE FROM {DataKeyRow.__tablename__} WHERE id = :id", id=key_id)


def opened(store: GalleryStore, key: str) -> int:
    return len(store.subject_embeddings(store.subject("people", key).id).ids)


def test_the_same_photo_makes_a_damaged_template_whole(
    engine: Engine, sealed_store: GalleryStore, sealed_history: GalleryHistory, new_templates: Templates
) -> None:
    """In its row, so that the crop stays, and so that an index that has started without it takes it in."""
    templates = [replace(one, crop=b"png") for one in new_templates(2)]
    made = enroll(sealed_store, "anna", templates)
    first, second = (one.id for one in made.added)
    change(engine, "UPDATE template SET embedding = :value WHERE id = :id", value=b"\1damaged", id=first)
    gallery = sealed_store.gallery("people")
    replica = GalleryReplica(gallery, sealed_history, partial(ExactIndex, 8))
    replica.catch_up(*gallery.point)
    assert len(replica.view.index) == 1
    again = enroll(sealed_store, "anna", [replace(one, crop=None) for one in templates])
    assert ([one.id for one in again.added], [one.id for one in again.known]) == ([first], [second])
    assert sealed_store.subject_embeddings(made.subject.id).embeddings.tolist() == [
        one.embedding.tolist() for one in templates
    ]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM crop").scalar_one() == 2
    gallery = sealed_store.gallery("people")
    replica.catch_up(*gallery.point)
    assert replica.view.index.vectors(np.array([first])).tolist() == [templates[0].embedding.tolist()]
    assert enroll(sealed_store, "anna", templates).added == ()
    assert sealed_store.gallery("people") == gallery


def test_an_embedding_that_no_index_takes_holds_up_nobody_until_the_same_photo_makes_it_whole(
    sealed_store: GalleryStore, sealed_history: GalleryHistory, new_templates: Templates
) -> None:
    anna, bob, carl = new_templates(3)
    enroll(sealed_store, "anna", [anna])
    gallery = sealed_store.gallery("people")
    running = GalleryReplica(gallery, sealed_history, partial(ExactIndex, 8))
    running.catch_up(*gallery.point)
    (bad,) = enroll(sealed_store, "bob", [replace(bob, embedding=np.zeros(8, np.float32))]).added
    (good,) = enroll(sealed_store, "carl", [carl]).added
    gallery = sealed_store.gallery("people")
    started = GalleryReplica(gallery, sealed_history, partial(ExactIndex, 8))
    for replica in (running, started):
        replica.catch_up(*gallery.point)
        assert len(replica.view.index) == 2
        assert replica.view.index.vectors(np.array([good.id])).tolist() == [carl.embedding.tolist()]
    assert [one.id for one in enroll(sealed_store, "bob", [bob]).added] == [bad.id]
    running.catch_up(*sealed_store.gallery("people").point)
    assert running.view.index.vectors(np.array([bad.id])).tolist() == [bob.embedding.tolist()]


def test_the_same_photo_makes_a_damaged_crop_whole(
    engine: Engine, sealed_store: GalleryStore, new_templates: Templates
) -> None:
    def crops() -> list[bytes]:
        moves = ReembeddingStore(sealed_store.engine, sealed_store.seals)
        return [one.image for one in moves.crops_to_embed(sealed_store.gallery("people"), "new@1", after=0, limit=9)]

    templates = [replace(one, crop=b"png of " + one.crop_sha256.encode()) for one in new_templates(2)]
    first, second = enroll(sealed_store, "anna", templates).added
    images = [one.crop for one in templates]
    change(engine, "UPDATE crop SET image = :value WHERE template_id = :id", value=b"\1damaged", id=first.id)
    assert crops() == [b"", images[1]]
    sealed = "SELECT image FROM crop WHERE template_id = :id"
    with engine.connect() as connection:
        before = connection.execute(text(sealed), {"id": second.id}).scalar_one()
    assert enroll(sealed_store, "anna", templates).added == ()
    assert crops() == images
    with engine.connect() as connection:
        assert connection.execute(text(sealed), {"id": second.id}).scalar_one() == before


def test_a_subject_whose_key_is_missing_knows_no_photo_until_it_was_erased(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, vault: Vault, new_templates: Templates
) -> None:
    """Nothing is erased because of a missing key: a newer vault may open it still."""
    templates = new_templates(2)
    enroll(sealed_store, "anna", templates)
    lose_key(engine, vault, "anna")
    before = sealed_store.gallery("people")
    for given in (templates, templates[:1], new_templates(1)):
        with pytest.raises(KeyUnavailable, match=r"restore the newest vault, or erase the subject and enroll it anew$"):
            enroll(sealed_store, "anna", given)
    assert sealed_store.gallery("people") == before
    assert sealed_store.subject("people", "anna").templates == 2
    assert forgetting.forget("people", "anna")["pending"] == []
    assert len(enroll(sealed_store, "anna", templates).added) == opened(sealed_store, "anna") == 2


def test_a_destroyed_key_is_never_revived(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, vault: Vault, new_templates: Templates
) -> None:
    templates = new_templates(1)
    enroll(sealed_store, "anna", templates)
    with engine.connect() as connection:
        key_id = connection.exec_driver_sql("SELECT key_id FROM subject").scalar_one()
    vault.destroy([key_id])  # she was forgotten after the backup that the database comes from
    for given in (templates, new_templates(1)):
        with pytest.raises(KeyUnavailable, match=r"^the subject was forgotten and came back with a backup"):
            enroll(sealed_store, "anna", given)
    assert forgetting.erase_what_came_back() == 1
    assert enroll(sealed_store, "anna", templates).created
    assert opened(sealed_store, "anna") == 1
    assert vault.open_keys([key_id]) == {key_id: None}


# -- imports


def test_an_import_of_photos_refuses_those_of_a_subject_without_its_key_and_goes_on(
    engine: Engine,
    sealed_store: GalleryStore,
    vault: Vault,
    networks: Networks,
    astronaut: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    reader = PhotoReader(
        networks, image_limits=ImageLimits(), quality_limits=QualityLimits(), workers=2, queue_timeout=30
    )
    for name, view in (("anna/0", astronaut), ("anna/1", astronaut[:, ::-1]), ("bob/0", astronaut[10:])):
        file = tmp_path / "people" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(view)).save(file)

    def run() -> ImportReport:
        job = PeopleImport(sealed_store, reader, "people", workers=2, max_bytes=10**7)
        return job.run(people_of_folder(tmp_path / "people"))

    assert run().added == 3
    assert run().passed_over == 3
    lose_key(engine, vault, "anna")
    change(engine, "DELETE FROM subject WHERE key = 'bob'")
    Image.fromarray(astronaut[:500]).save(tmp_path / "people" / "anna" / "2.png")
    report = run()
    assert (report.added, report.known, report.passed_over) == (1, 0, 0)
    assert [(one.photo, one.slug) for one in report.refused] == [
        (f"anna/{number}.png", "key-unavailable") for number in range(3)
    ]
    assert {one.detail.partition(";")[2] for one in report.refused} == {
        " restore the newest vault, or erase the subject and enroll it anew"
    }
    assert sealed_store.subject("people", "bob").templates == 1
    sealed_store.delete_subject("people", "anna")
    assert (run().added, opened(sealed_store, "anna")) == (3, 3)
    change(engine, "UPDATE template SET embedding = :value", value=b"\1damaged")
    assert (run().added, run().passed_over) == (4, 4)
    assert opened(sealed_store, "anna") == 3


def test_a_photo_of_a_person_who_is_forgotten_meanwhile_is_no_damage(
    engine: Engine,
    sealed_store: GalleryStore,
    vault: Vault,
    forgetting: Forgetting,
    new_templates: Templates,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Late(SealedRows):
        """Asks for keys when Anna was forgotten since her rows were read."""

        def open(self, rows: Sequence[SealedRow]) -> list[bytes | Flaw]:
            forgetting.forget("people", "anna")
            return super().open(rows)

    made = enroll(sealed_store, "anna", new_templates(1))
    journal = ImportJournal(engine, Late(vault))
    journal.remember("people", [(made.added[0].id, "0" * 64)])
    assert not journal.has("people", "anna", "0" * 64, with_crop=False)
    assert "template." not in capsys.readouterr().out


def test_an_import_of_an_archive_refuses_a_subject_without_its_key_and_takes_the_others(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, networks: Networks, tmp_path: Path
) -> None:
    fill(sealed_store, templates_with_crops(), networks.extractor.card.identity)
    export(sealed_store, tmp_path / "a.zip")
    change(
        engine,
        "UPDATE template SET embedding = :value WHERE subject_id = (SELECT id FROM subject WHERE key = 'bob/é')",
        value=b"\1damaged",
    )
    for key in ("anna", "nobody"):  # of the latter there is nothing to seal
        lose_key(engine, vault, key)
    stored = read_back(tmp_path / "a.zip", sealed_store, networks)
    assert (stored.added, stored.known) == (3, 0)
    assert [(one.subject, one.slug) for one in stored.refused] == [("anna", "key-unavailable")]
    assert (opened(sealed_store, "bob/é"), opened(sealed_store, "anna")) == (3, 0)
    sealed_store.delete_subject("people", "anna")
    assert read_back(tmp_path / "a.zip", sealed_store, networks) == Stored(added=2, known=3)
    assert opened(sealed_store, "anna") == 2


# -- merges


def crop_of(engine: Engine, seals: RowSeals, subject: str) -> list[bytes | Flaw]:
    query = (
        select(*sealed_columns(TemplateRow), CropRow.image)
        .select_from(TemplateRow)
        .join(CropRow, CropRow.template_id == TemplateRow.id)
        .join(SubjectRow, SubjectRow.id == TemplateRow.subject_id)
        .where(SubjectRow.key == subject)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return seals.open([SealedRow(row.key_id, crop_identity(row), row.image) for row in rows])


def test_a_merge_makes_a_template_whole_that_opens_with_the_other_alone(
    engine: Engine, sealed_store: GalleryStore, sealed_history: GalleryHistory, new_templates: Templates
) -> None:
    (template,) = new_templates(1)
    made = enroll(sealed_store, "anna", [template])
    enroll(sealed_store, "hanna", [template])
    change(engine, "UPDATE template SET embedding = :bytes WHERE id = :id", bytes=b"x", id=made.added[0].id)
    gallery = sealed_store.gallery("people")
    follower = GalleryReplica(gallery, sealed_history, partial(ExactIndex, 8))
    follower.catch_up(gallery.revision)
    merged = sealed_store.merge_subjects("people", "hanna", "anna")
    assert (merged.id, merged.templates, opened(sealed_store, "anna")) == (made.subject.id, 1, 1)
    follower.catch_up(sealed_store.gallery("people").revision)
    ((found,),) = follower.search(template.embedding[None], top_k=5, rule="best")
    assert (found.subject_id, found.template_id) == (made.subject.id, made.added[0].id)


def test_a_merge_keeps_the_template_that_opens_where_the_others_twin_does_not(
    engine: Engine, sealed_store: GalleryStore, new_templates: Templates
) -> None:
    (template,) = new_templates(1)
    enroll(sealed_store, "anna", [template])
    broken = enroll(sealed_store, "hanna", [template]).added[0].id
    change(engine, "UPDATE template SET embedding = :bytes WHERE id = :id", bytes=b"x", id=broken)
    sealed_store.merge_subjects("people", "hanna", "anna")
    assert opened(sealed_store, "anna") == 1


@pytest.mark.parametrize("theirs", ["none", "damaged"])
def test_a_merge_keeps_a_crop_and_an_embedding_of_another_extractor_that_only_the_dropped_twin_has(
    engine: Engine, sealed_store: GalleryStore, new_templates: Templates, theirs: str
) -> None:
    (template,) = new_templates(1)
    has = theirs == "damaged"
    kept = enroll(sealed_store, "anna", [replace(template, crop=b"png" if has else None)]).added[0].id
    gone = enroll(sealed_store, "hanna", [replace(template, crop=b"png")]).added[0].id
    gallery, moves = sealed_store.gallery("people"), ReembeddingStore(engine, sealed_store.seals)
    spare = new_templates(1)[0].embedding
    moves.add(gallery, "net@2", [kept, gone] if has else [gone], np.stack([spare] * (2 if has else 1)))
    if has:
        change(engine, "UPDATE crop SET image = :bytes WHERE template_id = :id", bytes=b"x", id=kept)
        change(engine, "UPDATE spare_embedding SET embedding = :bytes WHERE template_id = :id", bytes=b"x", id=kept)
    sealed_store.merge_subjects("people", "hanna", "anna")
    assert crop_of(engine, sealed_store.seals, "anna") == [b"png"]
    assert moves.switch(gallery, "net@2", dimension=8, unusable=(), with_crops=False).state == "done"
    found = sealed_store.subject_embeddings(sealed_store.subject("people", "anna").id)
    assert found.ids.tolist() == [kept]
    assert np.array_equal(found.embeddings[0], spare)


def test_a_merge_into_somebody_whose_key_is_lost_drops_no_twin(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    (template,) = new_templates(1)
    enroll(sealed_store, "anna", [template])
    enroll(sealed_store, "hanna", [template])
    lose_key(engine, vault, "anna")
    with pytest.raises(KeyUnavailable):
        sealed_store.merge_subjects("people", "hanna", "anna")
    assert opened(sealed_store, "hanna") == 1


class ErasedMeanwhile(SealedRows):
    """A vault that is asked for keys when somebody was erased a moment after their rows were read."""

    def __init__(self, vault: Vault, forgetting: Forgetting) -> None:
        super().__init__(vault)
        self._erase = forgetting.erase

    def open(self, rows: Sequence[SealedRow]) -> list[bytes | Flaw]:
        with suppress(SubjectNotFound):
            self._erase("people", "anna")
        return super().open(rows)


def test_who_is_erased_while_their_rows_are_read_is_no_damage(
    engine: Engine,
    sealed_store: GalleryStore,
    vault: Vault,
    forgetting: Forgetting,
    new_templates: Templates,
    capsys: pytest.CaptureFixture[str],
) -> None:
    enroll(sealed_store, "anna", new_templates(2))
    gallery = sealed_store.gallery("people")
    history = GalleryHistory(engine, ErasedMeanwhile(vault, forgetting))
    changes = history.changes(gallery.id, after=0, up_to=1)
    assert [change.embedding for change in changes] == [None, None]  # their removal follows
    enroll(sealed_store, "anna", new_templates(2))
    assert list(history.template_blocks(gallery.id)) == []
    assert "template." not in capsys.readouterr().out
