"""Templates at rest, on SQLite and on PostgreSQL."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Engine, event, text
from structlog.testing import capture_logs

from app.gallery.errors import KeyUnavailable, TemplateTampered
from app.gallery.index import INDEX_KINDS
from app.gallery.matching import DEFAULT_RULE
from app.gallery.moving.exporting import open_snapshot
from app.gallery.records import Enrolment, NewTemplate
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.sealing.encryption import Flaw, RowIdentity, SealedRows, open_value, seal_value
from app.gallery.sealing.resealing import (
    check_vault,
    has_sealed_subjects,
    seal_at_first_start,
    seal_plain_rows,
)
from app.gallery.sealing.vault import Vault
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.views.replica import GalleryReplica
from app.telemetry import DAMAGED_TEMPLATES_TOTAL
from tests.databases import few_values, others_wait, steps_of

Templates = Callable[[int], list[NewTemplate]]
IDENTITY = RowIdentity("template", 1, 2, "ab" * 32)


def enroll(store: GalleryStore, key: str, templates: list[NewTemplate]) -> Enrolment:
    return store.enroll("people", key, templates, metadata=None, extractor="net@1", dimension=8)


def embeddings(engine: Engine) -> dict[int, bytes]:
    with engine.connect() as connection:
        return {row.id: bytes(row.embedding) for row in connection.execute(text("SELECT id, embedding FROM template"))}


def change(engine: Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def opened(history: GalleryHistory, store: GalleryStore) -> dict[int, bytes]:
    blocks = list(history.template_blocks(store.gallery("people").id))
    return {
        template_id: vector.tobytes()
        for block in blocks
        for template_id, vector in zip(block.ids.tolist(), block.embeddings, strict=True)
    }


def damaged(reason: str) -> float:
    return float(DAMAGED_TEMPLATES_TOTAL.labels(reason)._value.get())


@pytest.mark.parametrize(
    "other",
    [
        RowIdentity("crop", 1, 2, "ab" * 32),
        RowIdentity("template", 3, 2, "ab" * 32),
        RowIdentity("template", 1, 3, "ab" * 32),
        RowIdentity("template", 1, 2, "cd" * 32),
    ],
)
def test_a_value_opens_in_its_own_row_alone(other: RowIdentity) -> None:
    cipher = AESGCM(bytes(32))
    sealed = seal_value(cipher, IDENTITY, b"face")
    assert open_value(cipher, IDENTITY, sealed) == b"face"
    assert open_value(cipher, other, sealed) is Flaw.TAMPERED
    assert seal_value(cipher, IDENTITY, b"face") != sealed


def test_every_changed_bit_and_every_cut_is_found() -> None:
    cipher = AESGCM(bytes(32))
    sealed = seal_value(cipher, IDENTITY, b"face")
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        assert open_value(cipher, IDENTITY, bytes(changed)) is Flaw.TAMPERED
    assert {open_value(cipher, IDENTITY, sealed[:length]) for length in range(len(sealed))} == {Flaw.TAMPERED}


def test_templates_are_sealed_in_sql_and_open_bit_for_bit(
    engine: Engine, sealed_store: GalleryStore, sealed_history: GalleryHistory, new_templates: Templates
) -> None:
    templates = new_templates(3)
    made = enroll(sealed_store, "anna", templates)
    rows = embeddings(engine)
    assert {len(row) for row in rows.values()} == {8 * 4 + 29}
    assert all(one.embedding.tobytes() not in row for one in templates for row in rows.values())
    expected = {one.id: new.embedding.tobytes() for one, new in zip(made.added, templates, strict=True)}
    assert opened(sealed_history, sealed_store) == expected
    assert sealed_store.subject_embeddings(made.subject.id).embeddings.tobytes() == b"".join(expected.values())
    changes = sealed_history.changes(sealed_store.gallery("people").id, after=0, up_to=1)
    assert {one.template_id: one.embedding.tobytes() for one in changes if one.embedding is not None} == expected


def test_a_stolen_database_opens_without_the_vault_for_nobody(
    engine: Engine, sealed_store: GalleryStore, new_templates: Templates, tmp_path: Path
) -> None:
    made = enroll(sealed_store, "anna", new_templates(1))
    thief = GalleryStore(engine)
    with pytest.raises(KeyUnavailable, match="the templates are sealed, and no vault is open"):
        thief.subject_embeddings(made.subject.id)
    with pytest.raises(KeyUnavailable, match="no vault is open"):
        enroll(thief, "anna", new_templates(1))


def test_further_templates_are_sealed_with_the_same_key(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    enroll(sealed_store, "anna", new_templates(1))
    enroll(sealed_store, "bob", new_templates(1))
    assert sum(vault.wrapped_by().values()) == 2


@pytest.mark.parametrize("damage", ["changed", "swapped", "moved", "plain", "cut"])
def test_a_damaged_row_is_reported_and_never_named_and_the_others_go_on(
    engine: Engine,
    sealed_store: GalleryStore,
    sealed_history: GalleryHistory,
    new_templates: Templates,
    damage: str,
) -> None:
    anna, bob, carl = new_templates(3)
    first, second, third = (
        enroll(sealed_store, key, [one]) for key, one in (("anna", anna), ("bob", bob), ("carl", carl))
    )
    ids = [one.added[0].id for one in (first, second, third)]
    rows = embeddings(engine)
    update = "UPDATE template SET embedding = :value WHERE id = :id"
    if damage == "changed":
        change(engine, update, value=rows[ids[0]][:-1] + bytes([rows[ids[0]][-1] ^ 1]), id=ids[0])
    elif damage == "swapped":
        change(engine, update, value=rows[ids[1]], id=ids[0])
        change(engine, update, value=rows[ids[0]], id=ids[1])
    elif damage == "moved":  # the whole row to another subject
        change(engine, "UPDATE template SET subject_id = :to WHERE id = :id", to=second.subject.id, id=ids[0])
    elif damage == "plain":  # planted by somebody who can write to the database, and has no key
        change(engine, update, value=carl.embedding.tobytes(), id=ids[0])
    else:
        change(engine, update, value=b"", id=ids[0])
    before = damaged("tampered")
    bad = ids[:2] if damage == "swapped" else ids[:1]
    with capture_logs() as logs:
        assert set(opened(sealed_history, sealed_store)) == set(ids) - set(bad)
    assert [(line["event"], line["template"]) for line in logs] == [("template.tampered", one) for one in bad]
    assert damaged("tampered") == before + len(bad)
    replica = GalleryReplica(sealed_store.gallery("people"), sealed_history, partial(INDEX_KINDS["flat"], 8))
    replica.catch_up(*sealed_store.gallery("people").point)
    found = replica.search(np.stack([anna.embedding, carl.embedding]), top_k=3, rule=DEFAULT_RULE)
    named = {candidate.subject_id for candidates in found for candidate in candidates}
    assert named == {
        one.subject.id for one, template in zip((first, second, third), ids, strict=True) if template not in bad
    }


def test_swapped_keys_of_subjects_open_nothing(
    engine: Engine, sealed_store: GalleryStore, sealed_history: GalleryHistory, new_templates: Templates
) -> None:
    first, second = (enroll(sealed_store, key, new_templates(1)).subject.id for key in ("anna", "bob"))
    with engine.connect() as connection:
        keys = {row.id: row.key_id for row in connection.execute(text("SELECT id, key_id FROM subject"))}
    for subject, key in ((first, None), (second, keys[first]), (first, keys[second])):
        change(engine, "UPDATE subject SET key_id = :key WHERE id = :id", key=key, id=subject)
    assert opened(sealed_history, sealed_store) == {}


def test_a_block_of_damaged_rows_does_not_end_the_reading(
    engine: Engine,
    sealed_store: GalleryStore,
    sealed_history: GalleryHistory,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.gallery.sql.history._MANY", 2)
    made = enroll(sealed_store, "anna", new_templates(6))
    for template in made.added[:4]:
        change(engine, "UPDATE template SET embedding = :value WHERE id = :id", value=b"", id=template.id)
    assert list(opened(sealed_history, sealed_store)) == [one.id for one in made.added[4:]]


def test_without_its_key_a_subject_takes_no_templates(
    engine: Engine, sealed_store: GalleryStore, sealed_history: GalleryHistory, vault: Vault, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    change(engine, "UPDATE subject SET key_id = 'lost'")
    before = damaged("key_missing")
    assert opened(sealed_history, sealed_store) == {}
    assert damaged("key_missing") == before + 1
    with pytest.raises(KeyUnavailable, match=r"key is not in the vault.*; restore the newest vault, or erase"):
        enroll(sealed_store, "anna", new_templates(1))
    assert len(embeddings(engine)) == 1


def test_the_vault_of_another_database_is_refused(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    check_vault(engine, vault)
    enroll(sealed_store, "anna", new_templates(1))
    check_vault(engine, vault)
    assert has_sealed_subjects(engine)
    change(engine, "UPDATE subject SET key_id = 'other'")
    with pytest.raises(KeyUnavailable, match="knows none of the keys"):
        check_vault(engine, vault)


def test_an_older_vault_of_the_same_database_is_taken(
    engine: Engine, sealed_store: GalleryStore, vault: Vault, new_templates: Templates
) -> None:
    """However many have been enrolled since: else nobody could erase them, which is what helps then."""
    for number in range(103):
        enroll(sealed_store, f"{number}", new_templates(1))
    change(engine, "UPDATE subject SET key_id = 'lost' || id WHERE key <> '0'")
    check_vault(engine, vault)


# -- rows from before encryption


def test_plain_rows_are_sealed_at_the_first_start_and_never_later(
    engine: Engine,
    store: GalleryStore,
    vault: Vault,
    sealed_history: GalleryHistory,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.gallery.sealing.resealing._SUBJECTS", 2)
    for key in ("anna", "bob", "carl", "dora", "empty"):
        enroll(store, key, new_templates(2) if key != "empty" else [])
    before = opened(GalleryHistory(engine), store)
    seal_at_first_start(engine, vault)
    assert opened(sealed_history, store) == before
    assert {len(row) for row in embeddings(engine).values()} == {8 * 4 + 29}
    change(engine, "UPDATE subject SET key_id = NULL")
    seal_at_first_start(engine, vault)
    assert opened(sealed_history, store) == {}


def test_sealing_that_was_interrupted_goes_on(
    engine: Engine,
    store: GalleryStore,
    vault: Vault,
    sealed_history: GalleryHistory,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.gallery.sealing.resealing._SUBJECTS", 1)
    for key in ("anna", "bob", "carl"):
        enroll(store, key, new_templates(1))
    before = opened(GalleryHistory(engine), store)

    class Dies(SealedRows):
        calls = 0

        def new_keys(self, count: int) -> list[str | None]:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().new_keys(count)

    with pytest.raises(KeyboardInterrupt):
        seal_plain_rows(engine, Dies(vault))
    assert seal_plain_rows(engine, SealedRows(vault)) == 1
    assert opened(sealed_history, store) == before


def test_the_first_rows_that_are_sealed_cost_no_more_than_the_last(
    engine: Engine, store: GalleryStore, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL does not say what a query costs it")
    monkeypatch.setattr("app.gallery.sealing.resealing._SUBJECTS", 100)
    enroll(store, "anna", [])
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 1999) INSERT INTO "
            "subject (gallery_id, key, metadata, created_at, updated_at) "
            "SELECT gallery_id, n, metadata, created_at, updated_at FROM subject, number"
        )
    costs, before = list[int](), 0

    @event.listens_for(engine, "commit")
    def count(_: object) -> None:
        nonlocal before
        costs.append(len(steps) - before)
        before = len(steps)

    with steps_of(engine) as steps:
        assert seal_plain_rows(engine, SealedRows(vault)) == 2000
    event.remove(engine, "commit", count)
    assert costs[0] - costs[19] < 20


def test_others_get_their_turn_while_rows_are_sealed(
    engine: Engine, store: GalleryStore, vault: Vault, new_templates: Templates, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has them wait in a row")
    monkeypatch.setattr("app.gallery.sealing.resealing._SUBJECTS", 10)
    for number in range(60):
        enroll(store, f"person {number}", new_templates(20))
    with others_wait(engine, "UPDATE template") as turns:
        assert seal_plain_rows(engine, SealedRows(vault)) == 60
    assert turns[-1] == 8


def test_what_is_kept_of_people_of_any_number_of_templates_is_sealed(
    engine: Engine, store: GalleryStore, vault: Vault, sealed_history: GalleryHistory, new_templates: Templates
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL takes twice as many values as SQLite, and cannot be told to take fewer")
    made = enroll(store, "anna", [replace(one, crop=b"a picture") for one in new_templates(650)])
    gallery, spare = store.gallery("people"), np.ones((650, 16), np.float32)
    ReembeddingStore(engine).add(gallery, "other@1", [one.id for one in made.added], spare)
    before = opened(GalleryHistory(engine), store)
    with few_values(engine, 600):
        assert seal_plain_rows(engine, SealedRows(vault)) == 1
    assert opened(sealed_history, store) == before
    moves = ReembeddingStore(engine, SealedRows(vault))
    assert {one.image for one in moves.crops_to_embed(gallery, "third@1", after=0, limit=999)} == {b"a picture"}


def test_sealing_leaves_no_embedding_in_the_file(
    sqlite_url: str, tmp_path: Path, vault: Vault, new_templates: Templates
) -> None:
    from app.gallery.sql.database import open_engine
    from app.gallery.sql.migrations import migrate

    engine = open_engine(sqlite_url, timeout=30)
    migrate(engine)
    store = GalleryStore(engine)
    templates = new_templates(40)
    for number, template in enumerate(templates):
        enroll(store, f"person {number}", [template])
    assert all(one.embedding.tobytes() in (tmp_path / "gallery.db-wal").read_bytes() for one in templates)
    seal_at_first_start(engine, vault)
    content = b"".join(path.read_bytes() for path in tmp_path.glob("gallery.db*"))
    assert [one for one in templates if one.embedding.tobytes() in content] == []
    engine.dispose()


# -- rows that change their subject


def test_templates_that_change_their_subject_are_sealed_with_its_key(
    engine: Engine, sealed_store: GalleryStore, sealed_history: GalleryHistory, new_templates: Templates
) -> None:
    crops = [replace(one, crop=b"a picture of " + one.crop_sha256.encode()) for one in new_templates(3)]
    enroll(sealed_store, "anna", crops[:2])
    ann = enroll(sealed_store, "ann", crops[2:])
    gallery = sealed_store.gallery("people")
    moves = ReembeddingStore(engine, sealed_store.seals)
    spare = np.eye(1, 16, dtype=np.float32)
    moves.add(gallery, "other@1", [ann.added[0].id], spare)
    before = opened(sealed_history, sealed_store)
    sealed_store.merge_subjects("people", "ann", "anna")
    assert opened(sealed_history, sealed_store) == before
    assert len(sealed_store.templates("people", subject="anna", after=0, limit=10).items) == 3
    assert {one.image for one in moves.crops_to_embed(gallery, "third@1", after=0, limit=9)} == {
        one.crop for one in crops
    }
    with open_snapshot(engine, "people", subject="anna", seals=sealed_store.seals) as snapshot:
        assert [one.embedding.tolist() for one in snapshot.old_embeddings(crops=True)] == spare.tolist()
        assert snapshot.unreadable == 0
    with engine.connect() as connection:  # the key of the subject that went is kept with the other's
        assert connection.scalar(text("SELECT count(*) FROM key_to_destroy")) == 0
        assert connection.scalar(text("SELECT count(*) FROM inherited_key")) == 1
    assert ann.subject.id not in sealed_store.subjects_by_id([ann.subject.id])


def test_a_damaged_template_does_not_change_its_subject(
    engine: Engine, sealed_store: GalleryStore, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    made = enroll(sealed_store, "ann", new_templates(1))
    change(engine, "UPDATE template SET embedding = :value WHERE id = :id", value=b"x", id=made.added[0].id)
    with pytest.raises(TemplateTampered, match="does not open; erase it first"):
        sealed_store.merge_subjects("people", "ann", "anna")
    assert sealed_store.subject("people", "ann").templates == 1
