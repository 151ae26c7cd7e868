"""Whom an archive brings: consent and retention of both sides, and subjects that come in pieces."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from app.gallery.consent import Consent, PrivacyRules, Terms
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention, Sweep
from app.gallery.errors import GalleryNotFound
from app.gallery.moving.portable import RefusedSubject, Stored
from app.gallery.records import Enrolment, NewTemplate
from app.gallery.store import GalleryStore
from model.pipeline import Networks
from tests.app.gallery.archives import export, read_back, templates_with_crops
from tests.databases import store_in

PAST, LATER = datetime(2026, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)
ENDED = Consent("ended", PAST, expires_at=PAST + timedelta(days=1))
Add = Callable[..., Enrolment]
ReadBack = Callable[[Path], Stored]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[GalleryStore]:
    """The store of the database that archives come from."""
    with store_in(tmp_path / "source.db") as store:
        yield store


@pytest.fixture
def retention(engine: Engine, forgetting: Forgetting) -> Retention:
    return Retention(engine, forgetting)


@pytest.fixture
def back(sealed_store: GalleryStore, networks: Networks, retention: Retention) -> ReadBack:
    """Imports as the command does."""
    return lambda file: read_back(file, sealed_store, networks, retention=retention)


@pytest.fixture
def add(networks: Networks) -> Add:
    templates = templates_with_crops()

    def add(store: GalleryStore, key: str, made: int | list[NewTemplate] = 1, **terms: object) -> Enrolment:
        given: Terms = terms  # type: ignore[assignment]
        wanted = templates(made) if isinstance(made, int) else made
        identity = networks.extractor.card.identity
        return store.enroll("people", key, wanted, metadata=None, extractor=identity, dimension=128, terms=given)

    return add


def change(engine: Engine, statement: str, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def reasons(stored: Stored) -> list[tuple[str, str]]:
    return [(one.subject, one.slug) for one in stored.refused]


# -- retention


def test_whose_time_is_over_is_erased_first_and_imported_anew(
    source: GalleryStore, sealed_store: GalleryStore, retention: Retention, back: ReadBack, add: Add, tmp_path: Path
) -> None:
    old = add(sealed_store, "anna", 1, expires_at=LATER)
    other = add(sealed_store, "zoe", 1, expires_at=LATER)
    add(source, "anna", 2)
    add(source, "bob", 1)
    export(source, tmp_path / "a.zip")
    change(sealed_store.engine, "UPDATE subject SET expires_at = '2026-01-01 00:00:00'")
    assert back(tmp_path / "a.zip") == Stored(added=3)
    anna = sealed_store.subject("people", "anna")
    assert (anna.id != old.subject.id, anna.templates, anna.expires_at) == (True, 2, None)
    assert sealed_store.subject("people", "zoe").id == other.subject.id  # whom the archive does not name
    assert retention.sweep() == Sweep({"people": 1}, 0)
    assert sealed_store.subject("people", "anna").templates == 2


def test_by_a_clock_that_leapt_nobody_is_erased_and_the_others_are_imported(
    source: GalleryStore, sealed_store: GalleryStore, retention: Retention, back: ReadBack, add: Add, tmp_path: Path
) -> None:
    add(source, "anna", 2)
    add(source, "bob", 1)
    export(source, tmp_path / "a.zip")
    old = add(sealed_store, "anna", 1, expires_at=datetime.now(UTC) + timedelta(days=20))
    retention.clock = lambda: datetime.now(UTC) + timedelta(days=4000)
    retention._database_clock = lambda _session: None
    stored = back(tmp_path / "a.zip")
    assert (stored.added, reasons(stored)) == (1, [("anna", "clock-doubtful")])
    assert sealed_store.subject("people", "anna").id == old.subject.id


def test_an_older_archive_does_not_bring_back_whose_time_was_shortened(
    source: GalleryStore, sealed_store: GalleryStore, back: ReadBack, add: Add, tmp_path: Path
) -> None:
    add(source, "anna", 2)
    add(source, "bob", 1)
    export(source, tmp_path / "a.zip")
    add(sealed_store, "anna", 1, expires_at=LATER)
    change(sealed_store.engine, "UPDATE subject SET expires_at = '2026-01-01 00:00:00'")
    stored = back(tmp_path / "a.zip")
    assert (stored.added, [(one.subject, one.slug) for one in stored.refused]) == (1, [("anna", "expired")])
    assert [one.key for one in sealed_store.subjects("people", after=0, limit=9).items] == ["bob"]


@pytest.mark.parametrize(
    ("change_to", "rules", "slug"),
    [
        ("expires_at = '2026-01-01 00:00:00'", PrivacyRules(), "expired"),
        ("created_at = '2025-01-01 00:00:00'", PrivacyRules(keep_days=30), "expired"),
        ("created_at = '2025-01-01 00:00:00'", PrivacyRules(unseen_days=30), "expired"),
        (
            f"consent = '{json.dumps(ENDED.to_json())}'",
            PrivacyRules(),
            "invalid-input",
        ),
    ],
)
def test_who_would_be_erased_again_at_once_is_refused(
    source: GalleryStore,
    sealed_store: GalleryStore,
    retention: Retention,
    back: ReadBack,
    add: Add,
    tmp_path: Path,
    change_to: str,
    rules: PrivacyRules,
    slug: str,
) -> None:
    """Also where the subject was there, and its time was over: then it is gone."""
    add(source, "anna", 2)
    change(source.engine, "UPDATE subject SET " + change_to.replace(":", "\\:"))
    add(source, "bob", 1)
    export(source, tmp_path / "a.zip")
    for already in (False, True):
        if already:
            add(sealed_store, "anna", 1)
            change(sealed_store.engine, "UPDATE subject SET expires_at = '2026-01-01 00:00:00' WHERE key = 'anna'")
        else:
            sealed_store.create_gallery(
                "people", extractor=source.gallery("people").extractor, dimension=128, policy=None, privacy=rules
            )
        # One that was there was changed since the archive was written, which is told first.
        assert reasons(back(tmp_path / "a.zip")) == [("anna", "expired" if already else slug)]
        assert [one.key for one in sealed_store.subjects("people", after=0, limit=9).items] == ["bob"]
    assert retention.sweep() == Sweep({}, 0)


def test_a_time_that_ends_while_the_import_runs_is_told(
    source: GalleryStore, sealed_store: GalleryStore, networks: Networks, add: Add, tmp_path: Path
) -> None:
    add(source, "anna", 2)
    export(source, tmp_path / "a.zip")
    add(sealed_store, "anna", 1)
    change(sealed_store.engine, "UPDATE subject SET expires_at = '2026-01-01 00:00:00'")
    stored = read_back(tmp_path / "a.zip", sealed_store, networks)  # nobody is erased first
    detail = (
        "the subject's time was over at 2026-01-01T00:00:00+00:00, by its expiry, its consent or the gallery's rules; "
        "the next sweep would erase it again"
    )
    assert stored == Stored(refused=(RefusedSubject("anna", "expired", detail),))
    assert sealed_store.subject("people", "anna").templates == 1


# -- consent


def test_the_consent_that_was_granted_later_is_kept(
    source: GalleryStore, sealed_store: GalleryStore, back: ReadBack, add: Add, tmp_path: Path
) -> None:
    old, new = Consent("old", PAST), Consent("new", PAST + timedelta(days=9), reference="form 9", expires_at=LATER)
    for key, there, sent in (("a", old, new), ("b", new, old), ("c", None, new), ("d", new, None)):
        add(source, key, 1, consent=sent)
        add(sealed_store, key, 1, consent=there)
    export(source, tmp_path / "a.zip")
    sealed_store.change_gallery("people", {"require_consent": True})
    assert back(tmp_path / "a.zip") == Stored(added=4)
    assert {one.key: one.consent for one in sealed_store.subjects("people", after=0, limit=9).items} == dict.fromkeys(
        "abcd", new
    )
    before = sealed_store.subjects("people", after=0, limit=9)
    assert back(tmp_path / "a.zip") == Stored(known=4)
    assert sealed_store.subjects("people", after=0, limit=9) == before


def test_a_consent_that_cannot_be_kept_changes_nothing(
    source: GalleryStore, sealed_store: GalleryStore, back: ReadBack, add: Add, tmp_path: Path
) -> None:
    good = Consent("good", PAST)
    add(source, "ended", 1, consent=replace(ENDED, granted_at=PAST + timedelta(hours=1)))
    add(source, "future", 1, consent=Consent("future", LATER))
    for key in ("ended", "future"):
        add(sealed_store, key, 1, consent=good)
    export(source, tmp_path / "a.zip")
    before = sealed_store.subjects("people", after=0, limit=9)
    stored = back(tmp_path / "a.zip")
    assert (stored.added, reasons(stored)) == (0, [("ended", "invalid-input"), ("future", "invalid-input")])
    assert sealed_store.subjects("people", after=0, limit=9) == before


# -- subjects in pieces


@pytest.fixture
def big(source: GalleryStore, add: Add, tmp_path: Path) -> Path:
    """An archive of a subject with 2,500 templates, and one behind it."""
    (pattern,) = templates_with_crops()(1)
    add(source, "anna", [replace(pattern, crop=None, crop_sha256=f"{number:064x}") for number in range(2500)])
    add(source, "bob", 1)
    export(source, tmp_path / "big.zip")
    return tmp_path / "big.zip"


def test_a_subject_that_comes_in_pieces_is_refused_once(
    big: Path, source: GalleryStore, sealed_store: GalleryStore, back: ReadBack
) -> None:
    sealed_store.create_gallery(
        "people",
        extractor=source.gallery("people").extractor,
        dimension=128,
        policy=None,
        privacy=PrivacyRules(require_consent=True),
    )
    stored = back(big)
    assert (stored.added, reasons(stored)) == (0, [("anna", "consent-required"), ("bob", "consent-required")])
    assert not any("what came before" in one.detail for one in stored.refused)


def test_a_subject_whose_later_piece_is_refused_is_told_with_what_was_stored(
    big: Path, sealed_store: GalleryStore, networks: Networks
) -> None:
    told: list[int] = []

    def withdraw(count: int, _passed_over: int) -> None:
        """After the first piece the gallery begins to require consents."""
        if not count:
            return
        told.append(count)
        sealed_store.change_gallery("people", {"require_consent": True})

    stored = read_back(big, sealed_store, networks, progress=withdraw)
    assert (stored.added, told) == (1000, [1000, 1000, 500, 1])
    assert [(one.subject, one.detail.partition("; ")[2]) for one in stored.refused] == [
        ("anna", "send `consent`; what came before of this subject was stored"),
        ("bob", "send `consent`"),
    ]
    assert sealed_store.subject("people", "anna").templates == 1000
    sealed_store.change_gallery("people", {"require_consent": False})
    assert read_back(big, sealed_store, networks) == Stored(added=1501, known=1000)


# -- a gallery that is erased meanwhile


@pytest.mark.parametrize("after", [0, 1000])
@pytest.mark.parametrize("made_anew", [False, True])
def test_a_gallery_that_is_erased_meanwhile_is_not_made_again_and_no_other_of_its_name_filled(
    big: Path, source: GalleryStore, sealed_store: GalleryStore, networks: Networks, after: int, made_anew: bool
) -> None:
    def make(rules: PrivacyRules) -> None:
        extractor = source.gallery("people").extractor
        sealed_store.create_gallery("people", extractor=extractor, dimension=128, policy=None, privacy=rules)

    def erase(count: int, _passed_over: int) -> None:
        """Once the archive is checked, or once the first piece is stored."""
        if count == after:
            sealed_store.delete_gallery("people")
            if made_anew:
                make(PrivacyRules(keep_days=30))

    make(PrivacyRules())
    with pytest.raises(GalleryNotFound, match=r"^gallery 'people' was erased meanwhile$"):
        read_back(big, sealed_store, networks, progress=erase)
    there = [(one.privacy.keep_days, sealed_store.size(one).subjects) for one in sealed_store.galleries()]
    assert there == [(30, 0)] * made_anew
