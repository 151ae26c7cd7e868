"""Retention with a clock that the test turns."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, text, update
from sqlalchemy.orm import Session

from app.gallery.consent import NO_RULES, Consent, PrivacyRules, Terms, check_consent, check_terms, ends_earlier, expiry
from app.gallery.deadline import WaitLimit, waiting_at_most
from app.gallery.erasure.forgetting import Forgetting
from app.gallery.erasure.retention import Retention, Sweep
from app.gallery.erasure.sweep_clock import database_clock
from app.gallery.errors import ClockDoubtful, ConsentRequired, DatabaseUnavailable, InvalidInput
from app.gallery.records import Enrolment, Gallery, GalleryChanges, NewTemplate
from app.gallery.sealing.vault import Vault
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.rows import Due, Sessions, nobody_is_due
from app.gallery.store import GalleryStore
from app.gallery.tables import SubjectRow
from app.gallery.views.index_source import IndexSource
from app.gallery.views.upkeep import Upkeep
from tests.databases import others_wait, steps_of

Templates = Callable[[int], list[NewTemplate]]


class Clock:
    def __init__(self) -> None:
        self.moment = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.moment

    def turn(self, **time: float) -> None:
        self.moment += timedelta(**time)


def no_other(_session: Session) -> None:
    """For a database whose clock is that of the machine, which the test turns."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retention(engine: Engine, forgetting: Forgetting, clock: Clock) -> Retention:
    return Retention(engine, forgetting, clock=clock, database_clock=no_other)


def enroll(
    store: GalleryStore,
    key: str,
    templates: list[NewTemplate],
    *,
    gallery: str = "people",
    terms: Terms | None = None,
    due: Due = nobody_is_due,
) -> Enrolment:
    return store.enroll(gallery, key, templates, metadata=None, extractor="net@1", dimension=8, terms=terms, due=due)


def keys(store: GalleryStore, gallery: str = "people") -> list[str]:
    return [one.key for one in store.subjects(gallery, after=0, limit=1000).items]


def test_subjects_are_erased_from_their_own_expiry_on(
    sealed_store: GalleryStore, retention: Retention, vault: Vault, clock: Clock, new_templates: Templates
) -> None:
    end = clock() + timedelta(days=2)
    enroll(sealed_store, "anna", new_templates(2), terms={"expires_at": end})
    enroll(sealed_store, "bob", new_templates(1))
    assert sealed_store.subject("people", "anna").expires_at == end
    clock.turn(days=1)
    assert retention.sweep() == Sweep({}, 0)
    clock.turn(days=1)
    assert retention.due() == {"people": 1}
    before = sealed_store.gallery("people").revision
    assert retention.sweep() == Sweep({"people": 1}, 0)
    assert keys(sealed_store) == ["bob"]
    assert sealed_store.gallery("people").revision == before + 1
    assert sum(vault.wrapped_by().values()) == 1
    assert retention.sweep() == Sweep({}, 0)


def test_the_end_of_a_consent_is_an_expiry(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    consent = Consent("the lab", clock() - timedelta(days=1), "form 7", clock() + timedelta(days=30))
    enroll(sealed_store, "anna", new_templates(1), terms={"consent": consent})
    assert sealed_store.subject("people", "anna").consent == consent
    clock.turn(days=29)
    renewed = Consent("the lab", clock(), "form 8", clock() + timedelta(days=30))
    sealed_store.update_subject("people", "anna", terms={"consent": renewed})
    assert retention.sweep().expired == {}
    clock.turn(days=29)
    assert retention.sweep().expired == {}
    clock.turn(days=1)
    assert retention.sweep().expired == {"people": 1}


def test_a_sweep_looks_at_nobody_who_can_have_no_end(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    for number in range(8):
        enroll(sealed_store, f"subject {number}", new_templates(1))
    for days, key in enumerate(("anna", "bob"), start=1):
        enroll(sealed_store, key, new_templates(1), terms={"expires_at": clock() + timedelta(days=days)})
    consent = Consent("door", clock(), expires_at=clock() + timedelta(days=3))
    enroll(sealed_store, "carl", new_templates(1), terms={"consent": consent})
    clock.turn(days=1)
    looked_at = list[str]()

    @event.listens_for(SubjectRow, "load")
    def look(row: SubjectRow, _context: object) -> None:
        looked_at.append(row.key)

    assert retention.due() == {"people": 1}
    event.remove(SubjectRow, "load", look)
    assert looked_at == ["anna"]


@pytest.mark.parametrize("rules", [{"keep_days": 30}, {"unseen_days": 30}, {"keep_days": 90, "unseen_days": 30}])
def test_a_sweep_by_rules_looks_at_nobody_whose_time_is_not_over(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates, rules: dict[str, int]
) -> None:
    agreed = Consent("door", clock())  # without an end
    for key in ("anna", "bob", "carl"):
        enroll(sealed_store, key, new_templates(1), terms={"consent": agreed})
    gallery = sealed_store.change_gallery("people", {"require_consent": True, **rules})  # type: ignore[typeddict-item]
    with retention._sessions.writing() as session:
        long_ago = clock() - timedelta(days=31)
        session.execute(update(SubjectRow).where(SubjectRow.key != "carl").values(created_at=long_ago))
    if "unseen_days" in rules:
        retention.saw(gallery, [sealed_store.subject("people", "bob")])
    looked_at = list[str]()

    @event.listens_for(SubjectRow, "load")
    def look(row: SubjectRow, _context: object) -> None:
        looked_at.append(row.key)

    due = retention.due()
    event.remove(SubjectRow, "load", look)
    assert looked_at == (["anna"] if "unseen_days" in rules else ["anna", "bob"])
    assert due == {"people": len(looked_at)}


@pytest.mark.parametrize("rules", [{}, {"keep_days": 9}, {"unseen_days": 5}, {"keep_days": 9, "unseen_days": 5}])
def test_sql_finds_everybody_whose_time_is_over_and_of_the_others_who_agreed_until_today(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, rules: GalleryChanges
) -> None:
    gallery, moment = sealed_store.create_gallery("people", extractor="net@1", dimension=8, policy=None), clock()
    gallery = sealed_store.change_gallery("people", rules) if rules else gallery
    nearby = [timedelta(days=days, microseconds=off) for days in (-9, -5, 0, 2) for off in (-1, 0, 1)]
    ends = [None, *(moment + near for near in nearby)]
    consents = [None if end is None else Consent("door", moment, expires_at=end).to_json() for end in ends]
    others = (
        *((end, None, None) for end in ends),
        *((None, consent, None) for consent in consents),
        *((None, None, seen) for seen in ends),
    )
    kinds = [(made, *other) for made in ends[1:10] for other in others]
    with Sessions(sealed_store.engine).writing() as session:
        session.add_all(
            SubjectRow(
                gallery_id=gallery.id, key=str(number), created_at=made, expires_at=end, consent=consent, seen_at=seen
            )
            for number, (made, end, consent, seen) in enumerate(kinds)
        )
    subjects = sealed_store.subjects("people", after=0, limit=1000).items
    over = {one.id for one in subjects if retention.is_due(gallery, one)}
    today = {one.id for one in subjects if one.consent and one.consent.expires_at == moment + nearby[8]}
    loaded = list[SubjectRow]()
    event.listen(SubjectRow, "load", listen := lambda row, _context: loaded.append(row))
    assert retention.due() == {"people": len(over)}
    event.remove(SubjectRow, "load", listen)
    assert {row.id for row in loaded} == over | today


def test_a_sweep_looks_through_a_gallery_of_any_size_in_pieces(
    engine: Engine, sealed_store: GalleryStore, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL does not say what a query costs it")
    monkeypatch.setattr("app.gallery.erasure.retention._LOOKED_THROUGH", 100)
    few, *ids = (
        sealed_store.create_gallery(name, extractor="net@1", dimension=8, policy=None).id
        for name in ("few", "many", "ruled")
    )
    sealed_store.change_gallery("ruled", {"keep_days": 30, "unseen_days": 10})
    longest, begins = list[int](), list[int]()
    for many in (1000, 10_000):
        rows = [{"gallery_id": one, "key": f"{many}, {place}"} for place, one in enumerate([few, *ids * many, few])]
        with engine.begin() as connection:
            connection.execute(insert(SubjectRow), rows)
        begins.clear()
        with steps_of(engine) as steps:
            event.listen(engine, "checkout", listen := lambda *_, steps=steps: begins.append(len(steps)))
            assert retention.due() == {}
            event.remove(engine, "checkout", listen)
        longest.append(max(after - before for before, after in pairwise([*begins, len(steps)])))
    assert longest[1] < longest[0] + 5


def test_a_gallery_keeps_nobody_longer_than_its_days(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    enroll(sealed_store, "anna", new_templates(1), gallery="others")
    sealed_store.change_gallery("people", {"keep_days": 30})
    clock.turn(days=29.9)
    enroll(sealed_store, "anna", new_templates(1))  # a further photo is no new enrolment
    assert retention.sweep().expired == {}
    clock.turn(days=0.2)
    assert retention.sweep().expired == {"people": 1}
    assert keys(sealed_store, "others") == ["anna"]


def test_subjects_not_seen_are_erased_and_those_seen_stay(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    for key in ("anna", "bob"):
        enroll(sealed_store, key, new_templates(1))
    gallery = sealed_store.change_gallery("people", {"unseen_days": 10})
    clock.turn(days=6)
    retention.saw(gallery, [sealed_store.subject("people", "anna")])
    retention.write_seen()
    assert sealed_store.subject("people", "anna").seen_at == clock()
    clock.turn(days=6)
    assert retention.sweep().expired == {"people": 1}
    assert keys(sealed_store) == ["anna"]


def test_who_was_seen_a_moment_ago_is_not_counted_as_due(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    gallery = sealed_store.change_gallery("people", {"unseen_days": 10})
    clock.turn(days=9)
    retention.saw(gallery, [sealed_store.subject("people", "anna")])
    clock.turn(days=9)
    assert retention.due() == {}
    clock.turn(days=1)
    assert retention.due() == {"people": 1}


@pytest.mark.parametrize("days", [1, 7])
def test_who_is_seen_all_the_time_is_erased_at_most_an_hour_before_the_days_are_over_and_never_later(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates, days: int
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    gallery = sealed_store.change_gallery("people", {"unseen_days": days})
    for _ in range(40):
        clock.turn(minutes=50)
        assert retention.sweep().expired == {}
        retention.saw(gallery, [sealed_store.subject("people", "anna")])
    clock.turn(days=days, hours=-1)
    assert retention.sweep().expired == {}
    clock.turn(hours=1)
    assert retention.sweep().expired == {"people": 1}


def test_who_was_seen_is_written_once_an_hour_and_only_where_a_rule_asks(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    retention.saw(sealed_store.gallery("people"), [sealed_store.subject("people", "anna")])
    retention.write_seen()
    assert sealed_store.subject("people", "anna").seen_at is None  # when somebody was where is nobody's business
    gallery = sealed_store.change_gallery("people", {"unseen_days": 10})
    first = clock()
    for minutes in (0, 30, 29):
        clock.turn(minutes=minutes)
        retention.saw(gallery, [sealed_store.subject("people", "anna")])
        retention.write_seen()
        assert sealed_store.subject("people", "anna").seen_at == first
    clock.turn(minutes=2)
    retention.saw(gallery, [sealed_store.subject("people", "anna")])
    retention.write_seen()
    assert sealed_store.subject("people", "anna").seen_at == clock()


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("rules", "one", "other", "left"),
    [
        (PrivacyRules(keep_days=30), {"created_at": -29}, {"created_at": 0}, 1),
        (PrivacyRules(unseen_days=90), {"created_at": -400, "seen_at": -89}, {"created_at": -80, "seen_at": -1}, 89),
        (PrivacyRules(unseen_days=90), {"created_at": -400, "seen_at": -89}, {"created_at": -1}, 89),
        (PrivacyRules(unseen_days=90), {"created_at": -89}, {"created_at": -20}, 70),
        (PrivacyRules(keep_days=99, unseen_days=90), {"created_at": -89}, {"created_at": -20}, 10),
        (NO_RULES, {"expires_at": 1}, {}, 1),
        (NO_RULES, {"expires_at": 1}, {"expires_at": 5}, 1),
        (NO_RULES, {}, {}, None),
    ],
)
def test_two_subjects_that_are_merged_are_kept_as_long_as_one_person(
    sealed_store: GalleryStore,
    clock: Clock,
    new_templates: Templates,
    rules: PrivacyRules,
    one: dict[str, int],
    other: dict[str, int],
    left: int | None,
    swapped: bool,
) -> None:
    sealed_store.create_gallery("people", extractor="net@1", dimension=8, policy=None, privacy=rules)
    for key, days in (("anna", one), ("hanna", other)):
        made = enroll(sealed_store, key, new_templates(1)).subject
        moments = {name: clock() + timedelta(days=many) for name, many in days.items()}
        with Sessions(sealed_store.engine).writing() as session:
            session.execute(update(SubjectRow).where(SubjectRow.id == made.id).values(key=key, **moments))
    merged = sealed_store.merge_subjects("people", *(("anna", "hanna") if swapped else ("hanna", "anna")))
    end = expiry(
        rules,
        created_at=merged.created_at,
        seen_at=merged.seen_at,
        expires_at=merged.expires_at,
        consent=merged.consent,
    )
    assert end == (None if left is None else clock() + timedelta(days=left))
    assert rules.unseen_days is not None or merged.seen_at is None


def test_of_two_subjects_that_are_merged_the_consent_that_was_granted_later_counts(
    sealed_store: GalleryStore, clock: Clock, new_templates: Templates
) -> None:
    old = Consent("old", clock() - timedelta(days=9), expires_at=clock() + timedelta(days=20))
    new = Consent("new", clock() - timedelta(days=1), "form 7", clock() + timedelta(days=10))
    for theirs, own, left in ((old, new, new), (new, old, new), (old, None, old), (None, old, old)):
        for key, consent in (("anna", own), ("hanna", theirs)):
            enroll(sealed_store, key, new_templates(1), terms={"consent": consent})
        assert sealed_store.merge_subjects("people", "hanna", "anna").consent == left
        sealed_store.delete_subject("people", "anna")


def test_a_consent_that_is_renewed_while_the_sweep_runs_saves_the_subject(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, clock: Clock, new_templates: Templates
) -> None:
    made = enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(days=1)})
    gallery = sealed_store.gallery("people")
    sealed_store.update_subject("people", "anna", terms={"expires_at": clock() + timedelta(days=3)})
    late = clock() + timedelta(days=2)
    due = forgetting.erase_those(
        gallery, [made.subject.id], lambda _gallery, row: row.expires_at is not None and row.expires_at <= late
    )
    assert due == 0
    assert keys(sealed_store) == ["anna"]


def test_many_are_erased_and_two_sweeps_at_once_do_no_harm(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, clock: Clock, new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("app.gallery.erasure.retention._MANY", 7)
    monkeypatch.setattr("app.gallery.erasure.retention.ERASED_AT_ONCE", 3)
    for number in range(30):
        end: Terms = {"expires_at": clock() + timedelta(days=1)} if number % 3 else {}
        enroll(sealed_store, f"person {number}", new_templates(1), terms=end)
    clock.turn(days=2)
    with ThreadPoolExecutor(2) as pool:
        sweeps = list(
            pool.map(lambda _: Retention(engine, forgetting, clock=clock, database_clock=no_other).sweep(), range(2))
        )
    assert sum(sweep.expired.get("people", 0) for sweep in sweeps) == 20
    assert keys(sealed_store) == [f"person {number}" for number in range(0, 30, 3)]


def test_others_get_their_turn_in_a_sweep(
    engine: Engine, sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has them wait in a row")
    monkeypatch.setattr("app.gallery.erasure.retention.ERASED_AT_ONCE", 25)
    for number in range(150):
        enroll(sealed_store, f"person {number}", new_templates(1), terms={"expires_at": clock() + timedelta(days=1)})
    clock.turn(days=2)
    with others_wait(engine, "DELETE FROM template") as turns:
        assert retention.sweep().expired == {"people": 150}
    assert turns[-1] == 8


def test_a_sweep_stops_between_two_transactions_where_the_process_ends(
    engine: Engine, sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("app.gallery.erasure.retention.ERASED_AT_ONCE", 3)
    for number in range(20):
        enroll(sealed_store, f"person {number}", new_templates(1), terms={"expires_at": clock() + timedelta(days=1)})
    clock.turn(days=2)
    limit = WaitLimit()

    def end(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("DELETE FROM subject"):
            limit.cut(60)

    event.listen(engine, "before_cursor_execute", end)
    with waiting_at_most(limit):
        assert retention.sweep().expired == {"people": 3}
    event.remove(engine, "before_cursor_execute", end)
    assert len(keys(sealed_store)) == 17
    assert retention.sweep().expired == {"people": 17}


def test_the_upkeep_sweeps_at_once_and_writes_who_was_seen(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(days=1)})
    bob = enroll(sealed_store, "bob", new_templates(1)).subject
    gallery = sealed_store.change_gallery("people", {"unseen_days": 10})
    clock.turn(days=2)
    retention = Retention(engine, forgetting, interval=3600, clock=clock, database_clock=no_other)
    upkeep = Upkeep(lambda: [], GalleryHistory(engine), IndexSource(), chores=[retention.look])
    retention.saw(gallery, [bob])
    upkeep.tick()
    assert keys(sealed_store) == ["bob"]
    assert sealed_store.subject("people", "bob").seen_at == clock()
    enroll(sealed_store, "carl", new_templates(1), terms={"expires_at": clock() + timedelta(days=1)})
    clock.turn(days=2)
    upkeep.tick()  # an hour has not passed
    assert keys(sealed_store) == ["bob", "carl"]


def test_a_sweep_that_fails_is_not_the_last(engine: Engine, forgetting: Forgetting) -> None:
    sweeps = list[str]()

    class Fails(Retention):
        def sweep(self, *, clock_is_right: bool = False) -> Sweep:  # noqa: ARG002
            sweeps.append("one")
            raise RuntimeError("once")

    retention = Fails(engine, forgetting, interval=1e-9)
    upkeep = Upkeep(lambda: [], GalleryHistory(engine), IndexSource(), chores=[retention.look])
    upkeep.tick()
    upkeep.tick()
    assert sweeps == ["one", "one"]


def test_what_keeps_one_step_of_a_sweep_keeps_no_other_and_it_is_tried_again_within_a_minute(
    engine: Engine,
    sealed_store: GalleryStore,
    forgetting: Forgetting,
    clock: Clock,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = [1000.0]
    monkeypatch.setattr("app.gallery.erasure.retention.time.monotonic", lambda: moment[0])
    retention = Retention(engine, forgetting, interval=3600, clock=clock, database_clock=no_other)
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(days=1)})
    clock.turn(days=2)

    def away(*_: object) -> None:
        raise DatabaseUnavailable("the vault does not answer")

    sweeps = list[float]()
    with monkeypatch.context() as patched:
        for name in ("destroy", "destroyed_keys"):
            patched.setattr(Vault, name, away)
        with pytest.raises(DatabaseUnavailable, match="the vault does not answer"):
            retention.look()
    assert keys(sealed_store) == []  # the vault is needed for the key alone
    monkeypatch.setattr(retention, "sweep", lambda: sweeps.append(moment[0]))
    for later in (1.0, 59.0, 61.0, 3000.0, 3661.0):
        moment[0] = 1000.0 + later
        retention.look()
    assert sweeps == [1061.0, 4661.0]


def test_a_gallery_that_is_erased_while_what_came_back_is_looked_for_stops_no_sweep(
    engine: Engine,
    sealed_store: GalleryStore,
    forgetting: Forgetting,
    vault: Vault,
    new_templates: Templates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for gallery in ("first", "second"):
        enroll(sealed_store, "anna", new_templates(1), gallery=gallery)
    with engine.connect() as connection:
        vault.destroy([str(key_id) for (key_id,) in connection.execute(text("SELECT key_id FROM subject"))])
    real = forgetting.erase_those

    def erase_those(gallery: Gallery, *arguments: Any, **named: Any) -> int:
        if gallery.name == "first":
            sealed_store.delete_gallery("first")
        return real(gallery, *arguments, **named)

    monkeypatch.setattr(forgetting, "erase_those", erase_those)
    assert forgetting.erase_what_came_back() == 1
    assert keys(sealed_store, "second") == []


# -- clocks


@pytest.mark.parametrize("days", [4000, -4000])
def test_a_machine_whose_clock_is_wrong_erases_nobody(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, new_templates: Templates, days: int
) -> None:
    right = datetime.now(UTC)
    wrong = right + timedelta(days=days)
    retention = Retention(engine, forgetting, clock=lambda: wrong, database_clock=lambda _session: right)
    made = enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": right + timedelta(days=30)})
    with pytest.raises(ClockDoubtful, match="more than an hour apart"):
        retention.sweep()
    assert not retention.erase_if_due(sealed_store.gallery("people"), made.subject.id)
    assert enroll(sealed_store, "anna", new_templates(1), due=retention.is_due_still).erased_in is None
    assert retention.due() == {}
    assert sealed_store.subject("people", "anna").templates == 2


def test_of_two_clocks_the_one_that_is_behind_counts(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, new_templates: Templates
) -> None:
    start = datetime.now(UTC)
    moments = [start, start]
    retention = Retention(engine, forgetting, clock=lambda: moments[0], database_clock=lambda _session: moments[1])
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": start + timedelta(minutes=10)})
    for moments[0], moments[1] in ((start + timedelta(minutes=20), start), (start, start + timedelta(minutes=20))):
        assert retention.sweep().expired == {}
    moments[0] = start + timedelta(minutes=10)
    assert retention.sweep().expired == {"people": 1}


def test_the_databases_clock_is_one_that_all_machines_share(engine: Engine) -> None:
    with Session(engine) as session:
        moment = database_clock(session)
    if engine.dialect.name == "sqlite":
        assert moment is None
    else:
        assert moment is not None
        assert abs(moment - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_leap_of_the_clock_is_believed_when_it_lasts(
    engine: Engine, sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    for key in ("anna", "bob"):
        enroll(sealed_store, key, new_templates(1), terms={"expires_at": clock() + timedelta(days=4000)})
    enroll(sealed_store, "carl", new_templates(1), terms={"expires_at": clock() + timedelta(days=20)})
    clock.turn(days=4000)  # before any sweep
    for hours in (0, 12, 11):
        clock.turn(hours=hours)
        with pytest.raises(ClockDoubtful, match="more than 35 days after the last sweep or change"):
            retention.sweep()
    assert keys(sealed_store) == ["anna", "bob", "carl"]
    clock.turn(days=-3980)  # it was set right
    assert retention.sweep().expired == {"people": 1}
    clock.turn(days=3980)  # and is wrong again; what was doubted before does not count
    with pytest.raises(ClockDoubtful):
        retention.sweep()
    assert keys(sealed_store) == ["anna", "bob"]
    clock.turn(days=2)
    clock.turn(days=40)  # and leaps once more, which is no day that has passed
    with pytest.raises(ClockDoubtful):
        retention.sweep()
    clock.turn(hours=24)
    assert retention.sweep().expired == {"people": 2}


def test_who_is_enrolled_by_a_clock_that_is_doubted_does_not_vouch_for_it(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(days=20)})
    clock.turn(days=4000)
    with pytest.raises(ClockDoubtful):
        retention.sweep()
    enroll(sealed_store, "bob", new_templates(1))
    with Sessions(sealed_store.engine).writing() as session:
        session.execute(update(SubjectRow).where(SubjectRow.key == "bob").values(updated_at=clock()))
    with pytest.raises(ClockDoubtful):
        retention.sweep()
    clock.turn(hours=24)
    assert retention.sweep().expired == {"people": 1}


def test_all_subjects_are_read_for_the_clock_once(
    engine: Engine, sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(days=20)})
    clock.turn(days=4000)
    asked = list[str]()
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    for _ in range(3):
        with pytest.raises(ClockDoubtful):
            retention.sweep()
    assert sum("max(subject.updated_at)" in statement for statement in asked) == 1


def test_a_leap_that_somebody_has_looked_at_is_believed_at_once(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(days=20)})
    clock.turn(days=90)
    with pytest.raises(ClockDoubtful, match="clock-is-right"):
        retention.sweep()
    assert retention.sweep(clock_is_right=True).expired == {"people": 1}
    clock.turn(days=30)
    assert retention.sweep() == Sweep({}, 0)


def test_an_enrolment_by_a_clock_that_leapt_erases_nobody(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    made = enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(days=20)})
    retention.look()  # at the clock, too; not again for an hour
    clock.turn(days=4000)
    with pytest.raises(ClockDoubtful):
        enroll(sealed_store, "anna", new_templates(1), due=retention.is_due_still)
    with pytest.raises(ClockDoubtful):
        retention.erase_if_due(sealed_store.gallery("people"), made.subject.id)
    assert sealed_store.subject("people", "anna").templates == 1
    assert retention.due() == {"people": 1}
    retention.look()  # no sweep is due: it never is; but the doubt is noted, so that it ends
    clock.turn(hours=24)
    assert enroll(sealed_store, "anna", new_templates(1), due=retention.is_due_still).erased_in is not None


def test_clocks_that_are_apart_are_believed_by_nobody(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, new_templates: Templates
) -> None:
    right = datetime.now(UTC)
    moments = [right + timedelta(days=4000), right + timedelta(days=3900)]
    retention = Retention(engine, forgetting, clock=lambda: moments[0], database_clock=lambda _session: moments[1])
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": right + timedelta(days=30)})
    with pytest.raises(ClockDoubtful, match="apart"):
        retention.sweep(clock_is_right=True)
    assert keys(sealed_store) == ["anna"]


def test_a_machine_that_wakes_in_the_past_sweeps_when_its_clock_is_set(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(hours=1)})
    for _ in range(2):  # before the first sweep, and after it
        clock.turn(days=-20_000)
        assert retention.sweep() == Sweep({}, 0)
        clock.turn(days=20_000, minutes=40)
        retention.sweep()
    assert keys(sealed_store) == []


def test_a_clock_that_stays_behind_is_believed_after_a_day(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    clock.turn(days=300)
    retention.sweep(clock_is_right=True)  # it was not
    clock.turn(days=-300)
    retention.sweep()
    clock.turn(hours=25)
    retention.sweep()
    clock.turn(days=200)
    with pytest.raises(ClockDoubtful):
        retention.sweep()


def test_an_old_archive_in_a_gallery_that_was_made_for_it_is_no_leap(
    sealed_store: GalleryStore, retention: Retention, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(hours=1)})
    with Sessions(sealed_store.engine).writing() as session:
        session.execute(update(SubjectRow).values(updated_at=clock() - timedelta(days=90)))
    clock.turn(hours=2)
    assert retention.sweep().expired == {"people": 1}


def test_without_sweeps_the_clock_is_looked_at_all_the_same(
    engine: Engine, sealed_store: GalleryStore, forgetting: Forgetting, clock: Clock, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1), terms={"expires_at": clock() + timedelta(days=90)})
    for _ in range(10):  # a service that is started again now and then
        retention = Retention(engine, forgetting, clock=clock, database_clock=no_other)
        retention.look()
        clock.turn(days=10)
    assert keys(sealed_store) == ["anna"]
    assert enroll(sealed_store, "anna", new_templates(1), due=retention.is_due_still).erased_in is not None


def test_a_leap_keeps_nobody_whom_a_backup_brought_back(
    engine: Engine,
    sealed_store: GalleryStore,
    retention: Retention,
    clock: Clock,
    vault: Vault,
    new_templates: Templates,
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    with engine.connect() as connection:
        vault.destroy([str(key_id) for (key_id,) in connection.execute(text("SELECT key_id FROM subject"))])
    enroll(sealed_store, "bob", new_templates(1))
    clock.turn(days=40)
    with pytest.raises(ClockDoubtful):
        retention.sweep()
    assert keys(sealed_store) == ["bob"]


# -- the rules themselves

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_earliest_end_counts() -> None:
    def end(rules: PrivacyRules, **given: datetime) -> datetime | None:
        consent = Consent("x", NOW, None, given.get("consent"))
        return expiry(rules, created_at=NOW, seen_at=given.get("seen"), expires_at=given.get("own"), consent=consent)

    day = timedelta(days=1)
    assert end(NO_RULES) is None
    assert end(PrivacyRules(keep_days=9, unseen_days=5), own=NOW + 7 * day) == NOW + 5 * day
    assert end(PrivacyRules(keep_days=9, unseen_days=5), own=NOW + 7 * day, seen=NOW + 3 * day) == NOW + 7 * day
    assert end(PrivacyRules(keep_days=9), consent=NOW + 2 * day, own=NOW + 7 * day) == NOW + 2 * day
    assert end(PrivacyRules(unseen_days=5), seen=NOW - day) == NOW + 5 * day


def test_consent_is_asked_for_where_the_rules_say_so() -> None:
    good, old = Consent("x", NOW), Consent("x", NOW - timedelta(days=9), None, NOW)
    check_consent(NO_RULES, {}, None, NOW)
    rules = PrivacyRules(require_consent=True)
    check_consent(rules, {"consent": good}, None, NOW)
    check_consent(rules, {}, good, NOW)
    for terms, stored in (({}, None), ({"consent": None}, good)):
        with pytest.raises(ConsentRequired, match="takes nobody without a consent"):
            check_consent(rules, terms, stored, NOW)  # type: ignore[arg-type]
    with pytest.raises(ConsentRequired, match="has expired"):
        check_consent(rules, {}, old, NOW)


def test_terms_that_make_no_sense_are_refused() -> None:
    day = timedelta(days=1)
    assert check_terms({"expires_at": None, "consent": None}, NOW) == {"expires_at": None, "consent": None}
    lasting = Terms(expires_at=NOW + day, consent=Consent("x", NOW + day / 2, None, NOW + day))
    assert check_terms(lasting, NOW) == lasting
    for terms, part in (
        (Terms(expires_at=NOW), "expires_at"),
        (Terms(consent=Consent("x", NOW - 2 * day, None, NOW)), "consent.expires_at"),
        (Terms(consent=Consent("x", NOW + day / 2, None, NOW + day / 4)), "consent.expires_at"),
        (Terms(consent=Consent("x", NOW + 2 * day)), "consent.granted_at"),
    ):
        with pytest.raises(InvalidInput) as caught:
            check_terms(terms, NOW)
        assert caught.value.part == part


def test_a_gallery_that_requires_consent_is_asked_within_the_transaction(
    sealed_store: GalleryStore, new_templates: Templates
) -> None:
    enroll(sealed_store, "anna", new_templates(1))
    sealed_store.change_gallery("people", {"require_consent": True})
    with pytest.raises(ConsentRequired):
        enroll(sealed_store, "bob", new_templates(1))
    with pytest.raises(ConsentRequired):
        enroll(sealed_store, "anna", new_templates(1))
    assert keys(sealed_store) == ["anna"]
    enroll(sealed_store, "anna", new_templates(1), terms={"consent": Consent("x", NOW)})
    enroll(sealed_store, "anna", new_templates(1))
    with pytest.raises(ConsentRequired):
        sealed_store.update_subject("people", "anna", terms={"consent": None})


def test_a_rule_that_is_loosened_while_the_sweep_runs_saves_the_subject(
    sealed_store: GalleryStore, retention: Retention, forgetting: Forgetting, clock: Clock, new_templates: Templates
) -> None:
    made = enroll(sealed_store, "anna", new_templates(1))
    strict = sealed_store.change_gallery("people", {"keep_days": 1})
    clock.turn(days=2)
    assert retention.is_due(strict, made.subject)
    sealed_store.change_gallery("people", {"keep_days": 30})
    assert not retention.erase_if_due(strict, made.subject.id)
    assert keys(sealed_store) == ["anna"]
    clock.turn(days=30)
    assert retention.erase_if_due(strict, made.subject.id)
    assert keys(sealed_store) == []


def test_an_earlier_end_is_one_before_the_earliest_so_far() -> None:
    day = timedelta(days=1)

    def consent(until: datetime | None) -> Consent:
        return Consent("x", NOW - day, None, until)

    for stored, terms, earlier in (
        ((None, None), Terms(), False),
        ((None, None), Terms(expires_at=NOW), True),
        ((None, None), Terms(consent=consent(None)), False),
        ((None, consent(None)), Terms(consent=consent(NOW)), True),
        ((NOW, None), Terms(expires_at=NOW), False),
        ((NOW, None), Terms(consent=consent(NOW + day)), False),
        ((NOW, None), Terms(consent=consent(NOW - day)), True),
        ((NOW, consent(NOW + day)), Terms(expires_at=NOW + 2 * day, consent=consent(NOW + 2 * day)), False),
        ((NOW + day, consent(NOW)), Terms(expires_at=None), False),
    ):
        assert ends_earlier(terms, expires_at=stored[0], consent=stored[1]) is earlier
