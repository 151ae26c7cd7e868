"""Whoever changes, removes, adds or exchanges an entry in the database is found; a deed and its entry are one."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import Engine, delete, event, select, text, update
from sqlalchemy.orm import Session

from app.access import audit_log
from app.access.audit import NO_HASH, Head, chained, draft, numbered, seal
from app.access.audit_log import AuditLog
from app.access.caller import Caller, current_caller
from app.access.errors import AuditBroken
from app.access.pepper import Pepper
from app.access.tables import AuditHeadRow, AuditRow
from app.gallery.erasure.sweep_clock import refuse_sweep
from app.gallery.errors import Busy, SubjectNotFound
from app.gallery.journal import Event
from app.gallery.records import NewTemplate
from app.gallery.sql.rows import Sessions
from app.gallery.store import GalleryStore
from tests.databases import others_wait

PEPPER = Pepper("x" * 32)


@pytest.fixture
def audit(engine: Engine) -> Iterator[AuditLog]:
    audit = AuditLog(engine, PEPPER, patience=20)
    yield audit
    audit.close()


@pytest.fixture
def sessions(engine: Engine) -> Sessions:
    return Sessions(engine)


@pytest.fixture
def ten(audit: AuditLog, sessions: Sessions) -> Head:
    """Ten entries."""
    for number in range(10):
        with sessions.writing() as session:
            audit.write(session, Event("enroll", "staff", (f"person {number}",), {"added": 1}))
    assert audit.verify().flaws == ()
    return audit.head()


def actions(audit: AuditLog) -> list[str]:
    return [json.loads(line)["entry"]["action"] for line in audit.entries()]


def test_an_entry_says_who_did_what_to_whom_from_where(audit: AuditLog, sessions: Sessions) -> None:
    token = current_caller.set(Caller("0123456789ab", address="203.0.113.5", request_id="r-1"))
    with sessions.writing() as session:
        audit.write(session, Event("enroll", "café", ("ada",), {"added": 2}))
    current_caller.reset(token)
    (line,) = audit.entries()
    entry = json.loads(line)["entry"]
    moment = entry.pop("at")
    assert moment.endswith("+00:00")
    assert entry == {
        "number": 1, "action": "enroll", "by": "0123456789ab", "address": "203.0.113.5", "request": "r-1",
        "gallery": "café", "subjects": ["ada"], "details": {"added": 2},
    }  # fmt: skip


def test_a_deed_that_fails_leaves_no_entry_and_the_chain_goes_on(audit: AuditLog, sessions: Sessions) -> None:
    def fail() -> None:
        with sessions.writing() as session:
            audit.write(session, Event("enroll"))
            raise SubjectNotFound("no")

    with pytest.raises(SubjectNotFound):
        fail()
    with sessions.writing() as session:
        audit.write(session, Event("delete-subject"))
    assert actions(audit) == ["delete-subject"]
    assert audit.verify().flaws == ()


def test_a_deed_that_cannot_be_written_down_is_not_done(
    engine: Engine, audit: AuditLog, new_templates: Callable[[int], list[NewTemplate]]
) -> None:
    store = GalleryStore(engine, journal=audit)
    store.enroll("g", "ada", new_templates(1), metadata=None, extractor="e", dimension=8)
    with engine.begin() as connection:
        connection.execute(update(AuditHeadRow).values(count=0, hash=NO_HASH))
    with pytest.raises(AuditBroken, match="audit verify"):
        store.enroll("g", "bob", new_templates(1), metadata=None, extractor="e", dimension=8)
    with pytest.raises(AuditBroken):
        store.delete_subject("g", "ada")
    assert [one.key for one in store.subjects("g", after=0, limit=9).items] == ["ada"]


def test_every_change_of_a_gallery_is_written_down(
    engine: Engine, audit: AuditLog, new_templates: Callable[[int], list[NewTemplate]]
) -> None:
    store = GalleryStore(engine, journal=audit)
    store.create_gallery("g", extractor="e", dimension=8, policy=None)
    done = store.enroll("g", "ada", new_templates(2), metadata={"a": 1}, extractor="e", dimension=8)
    store.change_gallery("g", {"policy": None})
    store.update_subject("g", "ada", new_key="eve")
    store.delete_template("g", done.added[0].id)
    store.delete_subject("g", "eve")
    store.delete_gallery("g")
    assert actions(audit) == [
        "create-gallery", "enroll", "change-gallery", "change-subject", "delete-template", "delete-subject",
        "delete-gallery",
    ]  # fmt: skip
    assert audit.verify().flaws == ()
    assert "metadata" in json.loads(list(audit.entries())[3])["entry"]["details"]


def test_noted_entries_are_added_in_their_order(audit: AuditLog) -> None:
    for number in range(700):
        audit.note(Event("identify", details={"n": number}))
    audit.flush()
    entries = [json.loads(line)["entry"]["details"]["n"] for line in audit.entries()]
    assert entries == list(range(700))
    assert audit.verify().flaws == ()


def test_what_was_noted_is_added_before_the_end(engine: Engine) -> None:
    audit = AuditLog(engine, PEPPER, patience=20)
    audit.note(Event("identify"))
    audit.close()
    assert actions(audit) == ["identify"]


def test_nothing_is_done_unseen_where_the_database_cannot_be_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.access.audit_log._QUEUED", 3)
    audit = AuditLog(engine, PEPPER, patience=0.01)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE audit"))

    def note_many() -> None:
        for _ in range(600):
            audit.note(Event("identify"))

    with pytest.raises(Busy, match="nothing is done unseen"):
        note_many()
    audit.close()


def test_processes_make_one_chain(engine: Engine) -> None:
    logs = [AuditLog(engine, PEPPER) for _ in range(3)]

    def add(number: int) -> None:
        with Sessions(engine).writing() as session:
            logs[number % 3].write(session, Event("enroll", details={"n": number}))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(60)))
    report = logs[0].verify()
    assert (report.head.count, report.flaws) == (60, ())


# -- somebody at the database


def change(session: Session) -> None:
    row = session.get_one(AuditRow, 4)
    row.entry = row.entry.replace("person 3", "person X")


def change_and_hash_again(session: Session) -> None:
    change(session)
    rows = session.scalars(select(AuditRow).order_by(AuditRow.number)).all()
    before = NO_HASH
    for row in rows:
        row.hash = before = chained(before, row.entry)
    session.execute(update(AuditHeadRow).values(hash=before))


def change_action(session: Session) -> None:
    session.execute(update(AuditRow).filter_by(number=4).values(action="identify"))


def remove(session: Session) -> None:
    session.execute(delete(AuditRow).filter_by(number=4))


def remove_and_number_again(session: Session) -> None:
    remove(session)
    for number in range(5, 11):
        session.execute(update(AuditRow).filter_by(number=number).values(number=number - 1))
    session.execute(update(AuditHeadRow).values(count=9))


def exchange(session: Session) -> None:
    for old, new in ((4, 99), (5, 4), (99, 5)):
        session.execute(update(AuditRow).filter_by(number=old).values(number=new))


def cut_the_end(session: Session) -> None:
    session.execute(delete(AuditRow).where(AuditRow.number > 8))


def cut_the_end_and_change_the_head(session: Session) -> None:
    cut_the_end(session)
    session.execute(update(AuditHeadRow).values(count=8, hash=session.get_one(AuditRow, 8).hash))


def cut_the_end_and_seal_it_with_another_secret(session: Session) -> None:
    cut_the_end_and_change_the_head(session)
    head = Head(8, session.get_one(AuditRow, 8).hash)
    session.execute(update(AuditHeadRow).values(seal=seal(b"guess", head)))


def cut_the_end_and_the_head(session: Session) -> None:
    cut_the_end(session)
    session.execute(delete(AuditHeadRow))


def add_behind_the_head(session: Session) -> None:
    entry = numbered({"action": "enroll"}, 11)
    before = session.get_one(AuditRow, 10).hash
    session.add(AuditRow(number=11, action="enroll", entry=entry, hash=chained(before, entry)))


@pytest.mark.usefixtures("ten")
@pytest.mark.parametrize(
    ("tamper", "flaw"),
    [
        (change, "entry 4 was changed"),
        (change_and_hash_again, "the head was changed"),
        (change_action, "action of entry 4"),
        (remove, "entry 4 is missing"),
        (remove_and_number_again, "entry 4 is another one"),
        (exchange, "entry 4 is another one"),
        (cut_the_end, "the last 2 entries are missing"),
        (cut_the_end_and_change_the_head, "the head was changed"),
        (cut_the_end_and_seal_it_with_another_secret, "the head was changed"),
        (cut_the_end_and_the_head, "the head is missing"),
        (add_behind_the_head, "behind the head"),
    ],
)
def test_who_tampers_is_found(
    audit: AuditLog, sessions: Sessions, tamper: Callable[[Session], None], flaw: str
) -> None:
    with sessions.writing() as session:
        tamper(session)
    assert any(flaw in found for found in audit.verify().flaws), audit.verify().flaws


def test_a_head_that_was_written_down_finds_an_earlier_state_that_was_put_back(
    audit: AuditLog, sessions: Sessions, engine: Engine, ten: Head
) -> None:
    with sessions.reading() as session:
        old = session.get_one(AuditHeadRow, 1)
    with sessions.writing() as session:
        audit.write(session, Event("delete-subject", "staff", ("person 1",)))
    later = audit.head()
    assert audit.verify(ten).flaws == ()
    with sessions.writing() as session:  # the database as it was, seal and all
        session.execute(delete(AuditRow).filter_by(number=11))
        session.execute(update(AuditHeadRow).values(count=old.count, hash=old.hash, seal=old.seal))
    assert audit.verify().flaws == ()
    assert audit.verify(later).flaws == ("entry 11 is not the one that was written down",)
    # The process that was there remembers, too.
    with pytest.raises(AuditBroken, match="has 10 entries and had 11"), sessions.writing() as session:
        audit.write(session, Event("enroll"))
    with sessions.writing() as session:
        AuditLog(engine, PEPPER).write(session, Event("enroll"))


def test_a_shortened_log_is_not_sealed_anew(audit: AuditLog, sessions: Sessions, engine: Engine, ten: Head) -> None:
    with sessions.writing() as session:
        cut_the_end_and_the_head(session)
    with pytest.raises(AuditBroken, match="head is missing"), sessions.writing() as session:
        AuditLog(engine, PEPPER).write(session, Event("enroll"))


def test_the_log_can_be_checked_while_it_grows(audit: AuditLog, sessions: Sessions, engine: Engine, ten: Head) -> None:
    looks: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def grow(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM audit_head" in statement:
            looks.append(statement)
            if len(looks) == 2:  # the start was read, and now the head
                audit.note(Event("identify"))
                audit.flush()

    report = audit.verify()
    event.remove(engine, "after_cursor_execute", grow)
    assert (report.head.count, report.flaws) == (11, ())


# -- entries that go


@pytest.fixture
def a_year_old(audit: AuditLog, sessions: Sessions, ten: Head) -> datetime:
    """Ten entries, and the moment before the last four."""
    with sessions.reading() as session:
        entry = json.loads(session.get_one(AuditRow, 7).entry)
    return datetime.fromisoformat(entry["at"])


def prune(audit: AuditLog, moment: datetime) -> int:
    token = current_caller.set(Caller("service"))
    try:
        return audit.prune(moment)
    finally:
        current_caller.reset(token)


def test_a_pruned_log_can_be_checked_and_says_what_went(
    audit: AuditLog, sessions: Sessions, engine: Engine, ten: Head, a_year_old: datetime
) -> None:
    sixth = json.loads(list(audit.entries())[5])["hash"]
    archived = [json.loads(line)["entry"]["number"] for line in audit.entries(before=a_year_old)]
    assert prune(audit, a_year_old) == 6 == len(archived)
    assert prune(audit, a_year_old) == 0
    report = audit.verify(ten)
    assert (report.head.count, report.flaws) == (11, ())
    entries = [json.loads(line)["entry"] for line in audit.entries()]
    assert [entry["number"] for entry in entries] == [7, 8, 9, 10, 11]
    assert (entries[-1]["action"], entries[-1]["by"]) == ("prune-audit", "service")
    assert entries[-1]["details"] == {"before": a_year_old.isoformat(), "entries": 6, "start": f"6:{sixth}"}
    assert audit.verify(Head(6, bytes.fromhex(sixth))).flaws == ()
    assert audit.verify(Head(6, bytes(32))).flaws == ("entry 6 is not the one that was written down",)
    assert audit.verify(Head(3, bytes(32))).flaws[0].startswith("entry 3 was pruned")
    with sessions.writing() as session:
        AuditLog(engine, PEPPER).write(session, Event("enroll"))
    assert audit.verify().flaws == ()
    assert prune(audit, datetime.now(UTC) + timedelta(days=1)) == 5  # the last one stays
    assert audit.verify().flaws == ()


def test_what_came_late_is_not_pruned_with_what_was_archived(
    audit: AuditLog, sessions: Sessions, ten: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = datetime.now(UTC)
    archived = [json.loads(line)["entry"]["number"] for line in audit.entries(before=moment)]
    assert archived[-1] == ten.count
    late = partial(draft, at=moment - timedelta(minutes=5))  # of a machine whose clock is behind
    with monkeypatch.context() as patch:
        patch.setattr(audit_log, "draft", late)
        with sessions.writing() as session:
            audit.write(session, Event("late"))
    with sessions.writing() as session:
        audit.write(session, Event("new"))
    assert audit.prune(moment, up_to=archived[-1]) == ten.count
    assert actions(audit) == ["late", "new", "prune-audit"]
    assert audit.verify().flaws == ()


def test_many_entries_go_in_several_transactions_and_the_log_is_whole_in_between(
    audit: AuditLog, engine: Engine, ten: Head, a_year_old: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "_PRUNED_AT_ONCE", 4)
    before = list[tuple[int, tuple[str, ...]]]()

    @event.listens_for(engine, "commit")
    def look(_: object) -> None:
        before.append((len(actions(audit)), audit.verify(ten).flaws))

    assert audit.prune(a_year_old) == 6
    event.remove(engine, "commit", look)
    assert before == [(10, ()), (7, ())]
    assert audit.verify(ten).flaws == ()
    entries = [json.loads(line)["entry"] for line in audit.entries()]
    assert [one["details"]["entries"] for one in entries if one["action"] == "prune-audit"] == [4, 2]
    assert audit.prune(datetime.now(UTC) + timedelta(days=1)) == 5  # what this writes itself is none of it
    assert actions(audit) == ["prune-audit"] * 3


def test_others_get_their_turn_while_entries_go(
    audit: AuditLog, engine: Engine, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL has them wait in a row")
    monkeypatch.setattr(audit_log, "_PRUNED_AT_ONCE", 500)
    with sessions.writing() as session:
        audit._append(session, [draft(Event("identify"), Caller("service")) for _ in range(3000)])
    with others_wait(engine, "DELETE FROM audit ") as turns:
        assert audit.prune(datetime.now(UTC) + timedelta(days=1)) == 2999
    assert turns[-1] == 8


def lose_the_start(session: Session) -> None:
    session.execute(delete(AuditHeadRow).filter_by(id=2))


def prune_more(session: Session) -> None:
    row = session.get_one(AuditRow, 8)
    session.execute(update(AuditHeadRow).filter_by(id=2).values(count=8, hash=row.hash))
    session.execute(delete(AuditRow).where(AuditRow.number <= 8))


def prune_with_a_head_of_old(session: Session) -> None:
    head = session.get_one(AuditHeadRow, 1)
    session.execute(update(AuditHeadRow).filter_by(id=2).values(count=head.count, hash=head.hash, seal=head.seal))
    session.execute(delete(AuditRow))


def change_the_first_that_is_left(session: Session) -> None:
    row = session.get_one(AuditRow, 7)
    row.entry = row.entry.replace("person 6", "person X")


@pytest.mark.parametrize(
    ("tamper", "flaw"),
    [
        (lose_the_start, "entries 1 to 6 are missing"),
        (prune_more, "the start was changed"),
        (prune_with_a_head_of_old, "the start was changed"),
        (change_the_first_that_is_left, "entry 7 was changed"),
    ],
)
def test_who_prunes_by_hand_is_found(
    audit: AuditLog, sessions: Sessions, a_year_old: datetime, tamper: Callable[[Session], None], flaw: str
) -> None:
    prune(audit, a_year_old)
    with sessions.writing() as session:
        tamper(session)
    assert any(flaw in found for found in audit.verify().flaws), audit.verify().flaws


@pytest.mark.usefixtures("ten")
def test_a_service_removes_what_is_past_its_days(engine: Engine) -> None:
    turned = [datetime.now(UTC)]
    audit = AuditLog(engine, PEPPER, keep_days=30, clock=lambda: turned[0], database_clock=lambda _session: None)
    audit.tidy()
    assert len(actions(audit)) == 10
    turned[0] += timedelta(days=31)
    audit.tidy()  # not within the hour
    assert len(actions(audit)) == 10
    audit._next_pruning = 0
    audit.tidy()
    assert actions(audit) == ["enroll", "prune-audit"]
    assert audit.verify().flaws == ()


@pytest.mark.usefixtures("ten")
def test_what_a_service_does_not_remove_in_one_go_it_removes_in_the_next(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "_PRUNED_AT_ONCE", 2)
    monkeypatch.setattr(audit_log, "_PIECES", 2)
    late = datetime.now(UTC) + timedelta(days=31)
    audit, left = AuditLog(engine, PEPPER, keep_days=30, clock=lambda: late, database_clock=lambda _session: None), []
    for _ in range(3):
        audit.tidy()
        left.append(len(actions(audit)))
    assert left == [8, 6, 4]  # each transaction writes an entry of its own


@pytest.mark.usefixtures("ten")
def test_nothing_is_removed_by_a_clock_that_leapt(engine: Engine) -> None:
    turned = [datetime.now(UTC)]
    audit = AuditLog(engine, PEPPER, keep_days=30, clock=lambda: turned[0], database_clock=lambda _session: None)
    with Sessions(engine).writing() as session:
        refuse_sweep(session, turned[0], None)
    turned[0] += timedelta(days=4000)
    audit.tidy()
    assert len(actions(audit)) == 10
    with Sessions(engine).writing() as session:
        refuse_sweep(session, turned[0], None)
    turned[0] += timedelta(days=1)  # it was no leap
    audit._next_pruning = 0
    audit.tidy()
    assert actions(audit) == ["enroll", "prune-audit"]


@pytest.mark.usefixtures("ten")
def test_the_log_can_be_checked_while_it_is_pruned(audit: AuditLog, engine: Engine, a_year_old: datetime) -> None:
    pruned: list[int] = []

    @event.listens_for(engine, "before_cursor_execute")
    def interfere(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM audit \n" in statement and "LIMIT" in statement and not pruned:
            pruned.append(0)
            pruned[0] = audit.prune(a_year_old)

    report = audit.verify()
    event.remove(engine, "before_cursor_execute", interfere)
    assert pruned == [6]
    assert (report.head.count, report.flaws) == (11, ())
