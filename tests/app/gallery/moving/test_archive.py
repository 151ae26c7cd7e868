"""A gallery goes out as one file and comes back as it was."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, delete, func, select, update

from app.gallery.consent import Consent, PrivacyRules
from app.gallery.crops import decode_crop
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.errors import ExtractorMismatch, SubjectNotFound
from app.gallery.index import ExactIndex
from app.gallery.moving.archive import ArchiveReader, write_archive
from app.gallery.moving.archive_manifest import SUBJECTS, TEMPLATES
from app.gallery.moving.exporting import open_snapshot
from app.gallery.moving.portable import Stored
from app.gallery.policy import WantedRates
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.tables import CropRow
from app.gallery.views.replica import GalleryReplica
from model.pipeline import Networks
from tests.app.gallery.archives import Templates, export, fill, lines, read_back, templates_with_crops
from tests.databases import store_in


@pytest.fixture
def extractor(networks: Networks) -> str:
    return networks.extractor.card.identity


@pytest.fixture
def templates() -> Templates:
    return templates_with_crops()


@pytest.fixture
def filled(store: GalleryStore, templates: Templates, extractor: str) -> GalleryStore:
    fill(store, templates, extractor)
    return store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[GalleryStore]:
    """The store of another, empty database."""
    with store_in(tmp_path / "other.db") as store:
        yield store


def test_the_same_gallery_comes_back(
    filled: GalleryStore, other: GalleryStore, networks: Networks, tmp_path: Path
) -> None:
    manifest = export(filled, tmp_path / "a.zip")
    assert (manifest.subjects, manifest.templates, manifest.crops) == (3, 5, 5)
    assert read_back(tmp_path / "a.zip", other, networks) == Stored(added=5)
    again = export(other, tmp_path / "b.zip")
    assert (again.members, again.policy) == (manifest.members, WantedRates(fpir=0.02))  # the digests are equal


def test_the_same_decisions_come_back(
    filled: GalleryStore, other: GalleryStore, networks: Networks, tmp_path: Path
) -> None:
    export(filled, tmp_path / "a.zip")
    read_back(tmp_path / "a.zip", other, networks)
    probes = np.random.default_rng(1).normal(size=(20, 128)).astype(np.float32)
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)

    def decisions(store: GalleryStore) -> list[list[tuple[str, float]]]:
        gallery = store.gallery("people")
        replica = GalleryReplica(gallery, GalleryHistory(store.engine), partial(ExactIndex, 128))
        replica.catch_up(*gallery.point)
        found = replica.search(probes, top_k=5, rule="both")
        keys = store.subjects_by_id([one.subject_id for candidates in found for one in candidates])
        return [[(keys[one.subject_id].key, one.distance) for one in candidates] for candidates in found]

    assert decisions(other) == decisions(filled)
    assert len(decisions(filled)[0]) == 2


def test_again_adds_nothing(filled: GalleryStore, networks: Networks, tmp_path: Path) -> None:
    export(filled, tmp_path / "a.zip")
    before = filled.gallery("people")
    assert read_back(tmp_path / "a.zip", filled, networks) == Stored(known=5)
    assert filled.gallery("people") == before


def test_the_progress_leaves_out_the_checking_and_what_was_there_already(
    filled: GalleryStore, other: GalleryStore, networks: Networks, tmp_path: Path
) -> None:
    """Else rate and time left would be far from the truth where an import goes on after a break."""
    export(filled, tmp_path / "a.zip")
    told: list[tuple[int, int]] = []
    for passed_over in (0, 2, 5):
        read_back(tmp_path / "a.zip", other, networks, progress=lambda *counts: told.append(counts))
        assert told == [(0, 0), (5, passed_over)]
        told.clear()
        if not passed_over:
            other.delete_subject("people", "bob/é")


def test_people_without_a_consent_are_refused_and_the_others_stored(
    filled: GalleryStore, other: GalleryStore, networks: Networks, extractor: str, tmp_path: Path
) -> None:
    """Also where a subject is there already, unless the archive has the consent that it lacks."""
    consent = Consent("the lab", datetime(2026, 1, 1, tzinfo=UTC))
    filled.update_subject("people", "bob/é", terms={"consent": consent})
    export(filled, tmp_path / "a.zip")
    rules = PrivacyRules(require_consent=True)
    other.create_gallery("people", extractor=extractor, dimension=128, policy=None, privacy=rules)
    stored = read_back(tmp_path / "a.zip", other, networks)
    assert (stored.added, [one.subject for one in stored.refused]) == (3, ["anna", "nobody"])
    assert {one.slug for one in stored.refused} == {"consent-required"}
    assert [one.key for one in other.subjects("people", after=0, limit=9).items] == ["bob/é"]
    other.change_gallery("people", {"require_consent": False})
    other.enroll("people", "anna", [], metadata=None, extractor=extractor, dimension=128)
    other.change_gallery("people", {"require_consent": True})
    stored = read_back(tmp_path / "a.zip", other, networks)
    assert (stored.added, stored.known, [one.subject for one in stored.refused]) == (0, 3, ["anna", "nobody"])
    filled.update_subject("people", "anna", terms={"consent": consent})
    export(filled, tmp_path / "b.zip")
    stored = read_back(tmp_path / "b.zip", other, networks)
    assert (stored.added, stored.known, [one.subject for one in stored.refused]) == (2, 3, ["nobody"])
    assert other.subject("people", "anna").consent == consent


def test_a_subject_that_is_there_gets_what_it_lacks_and_keeps_its_metadata(
    filled: GalleryStore, networks: Networks, tmp_path: Path
) -> None:
    export(filled, tmp_path / "a.zip")
    filled.delete_template("people", filled.templates("people", subject="anna", after=0, limit=1).items[0].id)
    filled.update_subject("people", "anna", metadata={"room": 2})
    filled.delete_subject("people", "bob/é")
    assert read_back(tmp_path / "a.zip", filled, networks) == Stored(added=4, known=1)
    assert (filled.subject("people", "anna").templates, filled.subject("people", "anna").metadata) == (2, {"room": 2})
    assert filled.subject("people", "bob/é").templates == 3


def test_another_gallery_takes_it_in(filled: GalleryStore, networks: Networks, tmp_path: Path) -> None:
    export(filled, tmp_path / "a.zip")
    assert read_back(tmp_path / "a.zip", filled, networks, gallery="copy") == Stored(added=5)
    assert filled.size(filled.gallery("copy")) == filled.size(filled.gallery("people"))


def test_crops_stay_out_where_they_are_not_wanted(
    filled: GalleryStore, other: GalleryStore, networks: Networks, tmp_path: Path
) -> None:
    assert export(filled, tmp_path / "a.zip", crops=False).crops == 0
    export(filled, tmp_path / "b.zip")
    read_back(tmp_path / "b.zip", other, networks, keep_crops=False)
    assert export(other, tmp_path / "c.zip").crops == 0


def test_one_person_alone(filled: GalleryStore, other: GalleryStore, networks: Networks, tmp_path: Path) -> None:
    manifest = export(filled, tmp_path / "a.zip", "anna")
    assert (manifest.subject, manifest.subjects, manifest.templates) == ("anna", 1, 2)
    (subject,) = lines(tmp_path / "a.zip", SUBJECTS)
    assert (subject["subject"], subject["metadata"]) == ("anna", {"room": [1, "深"]})
    template, _ = lines(tmp_path / "a.zip", TEMPLATES)
    assert sorted(template) == ["created_at", "crop", "crop_sha256", "embedding", "quality", "subject"]
    assert len(base64.b64decode(template["embedding"])) == 512
    assert read_back(tmp_path / "a.zip", other, networks) == Stored(added=2)
    with pytest.raises(SubjectNotFound):
        export(filled, tmp_path / "b.zip", "zoe")
    assert not (tmp_path / "b.zip").exists()


def test_the_file_shows_one_moment_and_nobody_else_may_read_it(
    filled: GalleryStore, extractor: str, templates: Templates, tmp_path: Path
) -> None:
    with open_snapshot(filled.engine, "people") as snapshot:
        filled.enroll("people", "late", templates(1), metadata=None, extractor=extractor, dimension=128)
        filled.delete_subject("people", "anna")
        write_archive(tmp_path / "a.zip", snapshot, subject=None, crops=True)
    assert [one["subject"] for one in lines(tmp_path / "a.zip", SUBJECTS)] == ["anna", "nobody", "bob/é"]
    assert len(lines(tmp_path / "a.zip", TEMPLATES)) == 5
    assert (tmp_path / "a.zip").stat().st_mode & 0o777 == 0o600


def test_who_is_forgotten_while_it_is_written_is_left_out_and_no_damage(
    sealed_store: GalleryStore,
    forgetting: Forgetting,
    templates: Templates,
    extractor: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(sealed_store, templates, extractor)
    with open_snapshot(sealed_store.engine, "people", seals=sealed_store.seals) as snapshot:
        forgetting.forget("people", "anna")
        manifest = write_archive(tmp_path / "a.zip", snapshot, subject=None, crops=True)
        assert (snapshot.unreadable, manifest.templates, manifest.crops) == (0, 3, 3)
    assert {one["subject"] for one in lines(tmp_path / "a.zip", TEMPLATES)} == {"bob/é"}
    assert "template.forgotten" not in capsys.readouterr().out


def test_what_no_archive_may_hold_is_left_out_and_counted(
    filled: GalleryStore, templates: Templates, extractor: str, other: GalleryStore, networks: Networks, tmp_path: Path
) -> None:
    (bad,) = templates(1)
    bad = replace(bad, embedding=np.zeros(128, np.float32))
    filled.enroll("people", "anna", [bad], metadata=None, extractor=extractor, dimension=128)
    with open_snapshot(filled.engine, "people", seals=filled.seals) as snapshot:
        assert write_archive(tmp_path / "a.zip", snapshot, subject=None, crops=True).templates == 5
        assert snapshot.unreadable == 1
    assert read_back(tmp_path / "a.zip", other, networks) == Stored(added=5)


def test_where_writing_fails_the_old_file_stays(filled: GalleryStore, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("old")
    with open_snapshot(filled.engine, "people") as snapshot:

        class Full:
            gallery, size = snapshot.gallery, staticmethod(snapshot.size)
            subjects = staticmethod(snapshot.subjects)

            def templates(self, *, crops: bool) -> Any:
                yield from list(snapshot.templates(crops=crops))[:2]
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            write_archive(tmp_path / "a.zip", Full(), subject=None, crops=True)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.glob("a.zip*")] == ["a.zip"]
    assert (tmp_path / "a.zip").read_text() == "old"


def test_a_subject_with_very_many_templates_comes_in_pieces(
    other: GalleryStore, extractor: str, templates: Templates, networks: Networks, tmp_path: Path
) -> None:
    (pattern,) = templates(1)
    many = [replace(pattern, crop=None, crop_sha256=f"{number:064x}") for number in range(2500)]
    other.enroll("people", "anna", many, metadata=None, extractor=extractor, dimension=128)
    other.enroll("people", "bob", templates(1), metadata=None, extractor=extractor, dimension=128)
    export(other, tmp_path / "a.zip")
    with ArchiveReader(tmp_path / "a.zip") as archive:
        assert [(one.key, len(one.templates)) for one in archive.subjects()] == [
            ("anna", 1000),
            ("anna", 1000),
            ("anna", 500),
            ("bob", 1),
        ]
    assert read_back(tmp_path / "a.zip", other, networks, gallery="copy") == Stored(added=2501)
    assert other.subject("copy", "anna").templates == 2500


def test_a_subject_that_comes_in_pieces_keeps_its_moments(
    filled: GalleryStore, other: GalleryStore, extractor: str, templates: Templates, networks: Networks, tmp_path: Path
) -> None:
    (pattern,) = templates(1)
    many = [replace(pattern, crop=None, crop_sha256=f"{number:064x}") for number in range(1500)]
    filled.enroll("people", "anna", many, metadata=None, extractor=extractor, dimension=128)
    export(filled, tmp_path / "a.zip")
    read_back(tmp_path / "a.zip", other, networks)
    assert other.subject("people", "anna").templates == 1502
    assert other.subject("people", "anna").updated_at == filled.subject("people", "anna").updated_at
    bob = other.update_subject("people", "bob/é", metadata={})
    other.delete_template("people", other.templates("people", subject="bob/é", after=0, limit=1).items[0].id)
    assert read_back(tmp_path / "a.zip", other, networks) == Stored(added=1, known=1504)
    assert other.subject("people", "bob/é").updated_at > bob.updated_at


@pytest.mark.parametrize("lost", ["none was kept", "one was damaged"])
def test_templates_that_are_there_get_the_crops_that_they_lack(
    sealed_store: GalleryStore, templates: Templates, extractor: str, networks: Networks, tmp_path: Path, lost: str
) -> None:
    fill(sealed_store, templates, extractor)
    manifest = export(sealed_store, tmp_path / "a.zip")
    with sealed_store.engine.begin() as connection:
        if lost == "none was kept":
            connection.execute(delete(CropRow))
        else:
            one = select(func.min(CropRow.template_id)).scalar_subquery()
            connection.execute(update(CropRow).where(CropRow.template_id == one).values(image=b"another"))
    before = sealed_store.gallery("people")
    assert read_back(tmp_path / "a.zip", sealed_store, networks, keep_crops=False) == Stored(known=5)
    assert export(sealed_store, tmp_path / "b.zip").crops < 5
    for _ in range(2):
        assert read_back(tmp_path / "a.zip", sealed_store, networks) == Stored(known=5)
        assert export(sealed_store, tmp_path / "b.zip").members == manifest.members
    assert sealed_store.gallery("people") == before


# -- another extractor


def test_embeddings_of_another_extractor_are_made_anew_from_crops(
    store: GalleryStore, other: GalleryStore, templates: Templates, networks: Networks, tmp_path: Path
) -> None:
    made = templates(2)
    store.enroll("people", "anna", made, metadata=None, extractor="old@1", dimension=128)
    export(store, tmp_path / "a.zip")
    assert read_back(tmp_path / "a.zip", other, networks) == Stored(added=2)
    gallery = other.gallery("people")
    assert gallery.extractor == networks.extractor.card.identity
    crops = np.stack([decode_crop(one.crop or b"", sha256=one.crop_sha256) for one in made])
    stored = other.subject_embeddings(other.subject("people", "anna").id).embeddings
    np.testing.assert_allclose(stored, networks.extractor.embed(crops), atol=1e-5)


def test_without_crops_another_extractor_is_refused(
    store: GalleryStore, other: GalleryStore, templates: Templates, networks: Networks, tmp_path: Path
) -> None:
    some = [replace(one, crop=None) if number else one for number, one in enumerate(templates(3))]
    store.enroll("people", "anna", some, metadata=None, extractor="old@1", dimension=128)
    export(store, tmp_path / "a.zip")
    with pytest.raises(
        ExtractorMismatch, match=r"come from extractor old@1, .* 2 of 3 templates .* FACEGALLERY_EXTRACTOR=old"
    ):
        read_back(tmp_path / "a.zip", other, networks)
    assert other.galleries() == ()


def test_a_gallery_of_another_extractor_takes_nothing_in(
    filled: GalleryStore, other: GalleryStore, networks: Networks, tmp_path: Path
) -> None:
    export(filled, tmp_path / "a.zip")
    other.create_gallery("people", extractor="old@1", dimension=128, policy=None)
    with pytest.raises(ExtractorMismatch, match="'people' belongs to extractor old@1"):
        read_back(tmp_path / "a.zip", other, networks)


# -- crops


def test_crops_go_with_their_templates(filled: GalleryStore, engine: Engine) -> None:
    def crops() -> int:
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM crop").scalar_one())

    assert crops() == 5
    filled.delete_template("people", filled.templates("people", subject="anna", after=0, limit=1).items[0].id)
    assert crops() == 4
    filled.delete_subject("people", "bob/é")
    assert crops() == 1
    filled.delete_gallery("people")
    assert crops() == 0


def test_a_known_template_gets_its_crop_later(
    store: GalleryStore, templates: Templates, extractor: str, tmp_path: Path
) -> None:
    made = templates(2)
    bare = [replace(one, crop=None) for one in made]
    for given in (bare, made, made):
        store.enroll("people", "anna", given, metadata=None, extractor=extractor, dimension=128)
    assert export(store, tmp_path / "a.zip").crops == 2
    assert store.gallery("people").revision == 1
