"""How long subjects are kept: expiry, days since enrolment, days not seen; a sweep erases those that are due."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import structlog
from sqlalchemy import ColumnElement, Engine, func, or_, select, update
from sqlalchemy.orm import Session, object_session

from app.gallery.consent import consent_from_json, expiry
from app.gallery.deadline import is_ending
from app.gallery.erasure.forgetting import ERASED_AT_ONCE, Forgetting
from app.gallery.erasure.sweep_clock import database_clock, doubts, earlier_of, note_doubt, refuse_sweep
from app.gallery.errors import ClockDoubtful, GalleryNotFound, StorageUnwritable
from app.gallery.records import Gallery, Subject
from app.gallery.sql.database import let_others_write
from app.gallery.sql.failures import in_full
from app.gallery.sql.galleries import all_galleries
from app.gallery.sql.rows import Sessions
from app.gallery.tables import SubjectRow, now
from app.gallery.try_each import try_each
from model.errors import FacegalleryError

_MANY = 1000  # subjects read at once
_LOOKED_THROUGH = 10_000  # subjects among which one query looks for those
_SEEN_EVERY = timedelta(hours=1)  # as much earlier than the rule says who is not seen any more may be erased
_TRIED_AGAIN = 60.0  # seconds until the next sweep after one that failed, or sooner
_CLOCK_EVERY = 3600.0  # seconds between two looks at the clock, and at what is pending, where there are no sweeps
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep erased: subjects past their time, by gallery, and subjects that a backup had brought back."""

    expired: dict[str, int]
    came_back: int


class Retention:
    """Erases subjects whose time is over; safe to call from many threads, and from many processes at a time.

    Args:
        engine: of the gallery's database.
        forgetting: erases.
        interval: seconds between two sweeps of `look`, the first at once; 0: never, and `look` keeps an eye on the
            clock alone, by which subjects are erased that are enrolled again, and ends erasures that broke off.
        clock: tells the present moment, by which people are named or not.
        database_clock: tells it by a clock that all machines share; None: there is none. Nobody is erased by one of
            the two alone.
    """

    def __init__(
        self,
        engine: Engine,
        forgetting: Forgetting,
        *,
        interval: float = 0,
        clock: Callable[[], datetime] = now,
        database_clock: Callable[[Session], datetime | None] = database_clock,
    ) -> None:
        self.clock = clock
        self._database_clock = database_clock
        self._interval = interval
        self._next_sweep = time.monotonic() if interval else float("inf")
        self._next_clock = float("inf") if interval else time.monotonic()
        self._forgetting = forgetting
        self._sessions = Sessions(engine)
        self._doubted = False
        self._seen: dict[int, datetime] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # a sweep waits for what is being written

    def is_due(self, gallery: Gallery, subject: Subject) -> bool:
        """Whether the subject's time is over: it is not named any more, even before a sweep erases it."""
        end = expiry(
            gallery.privacy,
            created_at=subject.created_at,
            seen_at=subject.seen_at,
            expires_at=subject.expires_at,
            consent=subject.consent,
        )
        return end is not None and end <= self.clock()

    def is_due_still(self, gallery: Gallery, row: SubjectRow) -> bool:
        """As `is_due`, by the subject's row, for who holds the gallery's lock and is about to erase or to keep it.

        Raises:
            ClockDoubtful: it is, by clocks that are not to be believed.
        """
        own = self.clock()
        if not _is_past(own, gallery, row):  # as a rule, and the database is not asked
            return False
        session = _session_of(row)
        shared = self._database_clock(session)
        if not _is_past(earlier_of(own, shared), gallery, row):
            return False
        if (doubt := doubts(session, own, shared)) is not None:
            self._doubted = True  # noted by the next look, as this transaction is undone
            raise ClockDoubtful(f"the time of this subject may be over, and is not known: {doubt}")
        return True

    # -- who was seen

    def saw(self, gallery: Gallery, subjects: Iterable[Subject]) -> None:
        """Note that subjects were identified, where the gallery's rules ask for it, once an hour at most.

        It is written in the background: an identification waits for no writer.
        """
        if gallery.privacy.unseen_days is None:
            return
        moment = self.clock()
        with self._lock:
            for subject in subjects:
                if subject.seen_at is None or moment - subject.seen_at >= _SEEN_EVERY:
                    self._seen[subject.id] = moment

    def write_seen(self) -> None:
        """Write down who was seen; returns when that is done, whichever thread does it."""
        with self._writing:
            with self._lock:
                seen, self._seen = self._seen, {}
            if not seen:
                return
            try:
                with self._sessions.writing() as session:
                    for subject_id, moment in seen.items():
                        session.execute(update(SubjectRow).where(SubjectRow.id == subject_id).values(seen_at=moment))
            except FacegalleryError as error:
                _log.warning("seen.not_written", reason=in_full(error))
                with self._lock:
                    self._seen = seen | self._seen

    # -- the sweep

    def sweep(self, *, clock_is_right: bool = False) -> Sweep:
        """Erase every subject whose time is over, and what a restored backup brought back.

        In a process that is ending it stops after what it is at; the next start goes on.

        Args:
            clock_is_right: somebody has looked at the clocks; a long pause is none to doubt.

        Raises:
            ClockDoubtful: the clocks are not to be believed, and nobody was erased whose time is over.
            FacegalleryError: something could not be done, such as where the vault is away; the rest was.
        """
        expired, came_back = dict[str, int](), list[int]()
        try_each(
            [
                self.write_seen,
                self._forgetting.try_again,
                lambda: came_back.append(self._forgetting.erase_what_came_back()),
                lambda: self._erase_expired(expired, clock_is_right),
            ]
        )
        return Sweep(expired, sum(came_back))

    def _erase_expired(self, expired: dict[str, int], clock_is_right: bool) -> None:
        """Erase who is due, and count them by gallery.

        Raises:
            ClockDoubtful: the clocks are not to be believed; nobody was erased.
        """
        with self._sessions.writing() as session:
            own, shared = self.clock(), self._database_clock(session)
            refused = refuse_sweep(session, own, shared, leap_is_right=clock_is_right)
        if refused is not None:
            _log.error("retention.refused", reason=refused)
            raise ClockDoubtful(f"nobody was erased whose time is over: {refused}")
        with self._sessions.reading() as session:
            galleries = all_galleries(session)
        moment = earlier_of(own, shared)
        try_each(partial(self._erase_expired_in, gallery, moment, expired) for gallery in galleries)

    def _erase_expired_in(self, gallery: Gallery, moment: datetime, expired: dict[str, int]) -> None:
        erased = 0
        try:
            with suppress(GalleryNotFound):  # it was erased meanwhile
                for ids in self._due_ids(gallery, moment):
                    if is_ending():
                        break
                    erased += self._forgetting.erase_those(gallery, ids, partial(_is_past, moment))
                    let_others_write(self._sessions.engine)
        finally:
            if erased:
                expired[gallery.name] = erased
                _log.info("retention.erased", gallery=gallery.name, subjects=erased)
                self._forgetting.finish(gallery)

    def erase_if_due(self, gallery: Gallery, subject_id: int) -> bool:
        """Erase a subject whose time is over still, now that nobody else can prolong it; answers whether it was.

        Raises:
            GalleryNotFound: it was erased meanwhile.
        """
        return bool(self.erase_those_due(gallery, [subject_id]))

    def erase_those_due(self, gallery: Gallery, subject_ids: Sequence[int]) -> int:
        """As `erase_if_due`, for several; answers how many were."""
        erased = self._forgetting.erase_those(gallery, subject_ids, self.is_due_still)
        if erased:
            self._forgetting.finish(gallery)
        return erased

    def finish(self, gallery: Gallery) -> None:
        """Do what follows an erasure of subjects that were due, where the caller has erased them itself."""
        self._forgetting.finish(gallery)

    def due(self) -> dict[str, int]:
        """How many subjects are past their time by the earlier of the clocks, by gallery."""
        self.write_seen()
        with self._sessions.reading() as session:
            moment = earlier_of(self.clock(), self._database_clock(session))
            galleries = all_galleries(session)
        counts = {gallery.name: sum(len(ids) for ids in self._due_ids(gallery, moment)) for gallery in galleries}
        return {name: count for name, count in counts.items() if count}

    def look(self) -> None:
        """Write down who was seen, and sweep if it is time; called every second or so.

        Raises:
            FacegalleryError: as `sweep`, which is tried again within a minute.
        """
        self.write_seen()
        if self._doubted:
            with self._sessions.writing() as session:
                note_doubt(session, self.clock(), self._database_clock(session))
            self._doubted = False
        if time.monotonic() >= self._next_clock:
            self._next_clock = time.monotonic() + _TRIED_AGAIN
            with suppress(StorageUnwritable), self._sessions.writing() as session:  # who can only read erases nobody
                refuse_sweep(session, self.clock(), self._database_clock(session))
            self._forgetting.try_again()
            self._next_clock = time.monotonic() + _CLOCK_EVERY
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + min(self._interval, _TRIED_AGAIN)
            self.sweep()
            self._next_sweep = time.monotonic() + self._interval

    def _due_ids(self, gallery: Gallery, moment: datetime) -> Iterable[list[int]]:
        """Subjects that are due, in lists that one transaction erases.

        SQL looks for them among some thousand at a time, as to look through a gallery of millions takes long.
        """
        own, may_be_past = SubjectRow.gallery_id == gallery.id, _may_be_past(moment, gallery)
        ids, after, more = list[int](), 0, True
        while more and not is_ending():
            rest = select(SubjectRow).where(own, SubjectRow.id > after).order_by(SubjectRow.id)
            with self._sessions.reading() as session:
                last = session.scalar(rest.with_only_columns(SubjectRow.id).offset(_LOOKED_THROUGH - 1).limit(1))
                some = rest.where(may_be_past) if last is None else rest.where(may_be_past, SubjectRow.id <= last)
                rows = session.scalars(some.limit(_MANY)).all()
                ids += [row.id for row in rows if _is_past(moment, gallery, row)]
            more = last is not None or len(rows) == _MANY
            after = rows[-1].id if len(rows) == _MANY else last or after
            while len(ids) >= ERASED_AT_ONCE or (ids and not more):
                yield ids[:ERASED_AT_ONCE]
                ids = ids[ERASED_AT_ONCE:]


def _may_be_past(moment: datetime, gallery: Gallery) -> ColumnElement[bool]:
    """As `_is_past`, of all for whom it holds and of those whose consent ends within a day: SQL loads no others.

    Of the end of a consent, which lies in JSON, the day alone is compared, and a day later, whatever its zone.
    """
    tomorrow = (moment + timedelta(days=1)).date().isoformat()
    end_of_consent = cast(Any, SubjectRow.consent)["expires_at"].as_string()
    ends = [SubjectRow.expires_at <= moment, func.substr(end_of_consent, 1, len(tomorrow)) <= tomorrow]
    if (days := gallery.privacy.keep_days) is not None:
        ends.append(SubjectRow.created_at <= moment - timedelta(days=days))
    if (days := gallery.privacy.unseen_days) is not None:
        since = moment - timedelta(days=days)
        unseen = SubjectRow.seen_at.is_(None) | (SubjectRow.seen_at <= since)
        ends.append((SubjectRow.created_at <= since) & unseen)
    return or_(*ends)


def _is_past(moment: datetime, gallery: Gallery, row: SubjectRow) -> bool:
    end = expiry(
        gallery.privacy,
        created_at=row.created_at,
        seen_at=row.seen_at,
        expires_at=row.expires_at,
        consent=consent_from_json(row.consent),
    )
    return end is not None and end <= moment


def _session_of(row: SubjectRow) -> Session:
    session = object_session(row)
    if session is None:
        raise RuntimeError("the row is of no transaction")
    return session
