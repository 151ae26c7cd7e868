"""AuditLog: adds entries to the chain in SQL, reads them, and checks them.

Deeds that change something are written in their own transaction (`write`), the head's row locked last and briefly.
Deeds that only look are handed to one thread that adds them in batches (`note`), so that an identification does not
wait for a disk; what a process had in hand for less than `DELAY` is lost where it is killed, and nothing else.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Engine, delete, select
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.orm import Session

from app.access.audit import NO_HASH, AuditReport, Head, chained, draft, numbered
from app.access.audit_ends import AuditEnds
from app.access.audit_reading import blocks, line_of, moment_of, verified
from app.access.caller import Caller, present_caller
from app.access.errors import AuditBroken
from app.access.pepper import Pepper
from app.access.tables import AuditRow
from app.access.timeline import timeline_of
from app.gallery.deadline import WaitLimit, waiting_at_most
from app.gallery.erasure.sweep_clock import database_clock, doubts, earlier_of
from app.gallery.errors import Busy
from app.gallery.journal import Event
from app.gallery.sql.database import let_others_write
from app.gallery.sql.failures import in_full
from app.gallery.sql.rows import Sessions
from app.gallery.tables import now
from model.errors import FacegalleryError

DELAY = 0.2  # seconds that a noted entry waits for others
_QUEUED = 10_000  # entries in hand before deeds that only look are refused
_BATCH = 500
_RETRY = 1.0  # seconds
_PRUNE_EVERY = 3600.0  # seconds
_PRUNED_AT_ONCE = 10_000  # entries of one transaction
_PIECES = 10  # at most in one `tidy`
_log = structlog.get_logger()


class AuditLog:
    """The audit log of a database, as a `Journal`; safe to call from many threads and many processes.

    Args:
        engine: of the database.
        pepper: seals the head.
        patience: seconds that `flush` and `close` wait.
        keep_days: days after which `tidy` removes entries; None: never.
        clock: tells the present moment, for `keep_days`.
        database_clock: tells it by a clock that all machines share; None: there is none.
    """

    def __init__(
        self,
        engine: Engine,
        pepper: Pepper,
        *,
        patience: float = 5.0,
        keep_days: float | None = None,
        clock: Callable[[], datetime] = now,
        database_clock: Callable[[Session], datetime | None] = database_clock,
    ) -> None:
        self._sessions = Sessions(engine)
        self._ends = AuditEnds(engine, pepper)
        self._patience = patience
        self._keep_days, self._clock, self._database_clock = keep_days, clock, database_clock
        self._next_pruning = time.monotonic()
        self._limit = WaitLimit()
        self._seen = Head(0, NO_HASH)  # the last that this process has added
        self._seen_on: str | None = None  # the server's timeline then
        self._noted: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUED)
        self._stopping = threading.Event()  # what is noted is added at once
        self._stopped = threading.Event()  # nothing is added any more
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()

    # -- adding

    def write(self, session: Session, event: Event) -> None:
        """Add an entry in the transaction that does the deed.

        Raises:
            AuditBroken: the log's head is not the one that was sealed; the transaction must not be committed.
        """
        self._append(session, [draft(event, present_caller())])

    def note(self, event: Event) -> None:
        """Add an entry within `DELAY` seconds, by the thread that does so.

        Raises:
            Busy: thousands of entries wait already, as the database cannot be written.
        """
        try:
            self._noted.put_nowait(draft(event, present_caller()))
        except queue.Full:
            raise Busy("the audit log cannot be written, and nothing is done unseen; try again") from None
        if self._thread is None:
            with self._thread_lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._write_noted, name="audit log", daemon=True)
                    self._thread.start()

    def flush(self) -> None:
        """Wait until everything that was noted is added; at most the patience that `close` has."""
        until = time.monotonic() + self._patience
        with self._noted.all_tasks_done:
            while self._noted.unfinished_tasks and time.monotonic() < until:
                self._noted.all_tasks_done.wait(timeout=max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """Add what was noted; what cannot be added within the patience is counted in the log and lost."""
        self._stopping.set()
        self.flush()
        self._stopped.set()
        self._limit.cut(0)
        if lost := self._noted.unfinished_tasks:
            _log.error("audit.lost", entries=lost)
        if self._thread is not None:
            if not lost:
                self._noted.put(None)
            self._thread.join(timeout=1 + self._patience)

    # -- removing

    def prune(self, before: datetime, *, up_to: int | None = None, pieces: int | None = None) -> int:
        """Remove the entries from before a moment, oldest first up to the first later one; answers how many.

        The log begins behind a sealed start then, so that it can still be checked, and an entry says so. The last entry
        stays in any case. Many entries go in several transactions, so that others can add theirs; each has a start and
        an entry of its own, so that the log is whole in between, too.

        Args:
            before: the moment.
            up_to: the last number that may go; None: any. An entry may be added late, with an earlier moment than those
                before it: one that waited for the database, or of a machine whose clock is behind.
            pieces: transactions at most; None: as many as it takes.

        Raises:
            AuditBroken: the log's head or start is not the one that was sealed, or an entry is none; what was before
                it may be gone.
        """
        last = self.head().count - 1  # of what there is now: what follows are entries of this pruning
        last = last if up_to is None else min(last, up_to)
        removed, piece = 0, _PRUNED_AT_ONCE
        while piece >= _PRUNED_AT_ONCE and (pieces is None or removed < pieces * _PRUNED_AT_ONCE):
            if removed:
                let_others_write(self._sessions.engine)
            piece = self._prune_piece(before, last)
            removed += piece
        return removed

    def _prune_piece(self, before: datetime, last: int) -> int:
        with self._sessions.writing() as session:
            self._ends.checked(self._ends.locked_head(session), session)
            cut = start = self._ends.start(session)
            columns = select(AuditRow.number, AuditRow.entry, AuditRow.hash)
            some = columns.where(AuditRow.number > start.count, AuditRow.number <= last)
            for number, entry, digest in session.execute(some.order_by(AuditRow.number).limit(_PRUNED_AT_ONCE)):
                if moment_of(number, entry) >= before:
                    break
                cut = Head(number, digest)
            if cut == start:
                return 0
            session.execute(delete(AuditRow).where(AuditRow.number <= cut.count))
            self._ends.move_start(session, cut)
            details = {"before": before.isoformat(), "entries": cut.count - start.count, "start": str(cut)}
            self._append(session, [draft(Event("prune-audit", details=details), present_caller())])
            return cut.count - start.count

    def tidy(self) -> None:
        """Remove entries past `keep_days`, once an hour; of processes that do so at once the second finds nothing.

        Of many a hundred thousand at most, and the next call goes on: an upkeep has other work.
        Nothing goes by a clock that is not to be believed (see `sweep_clock`), as it would be gone for good.
        """
        if self._keep_days is None or time.monotonic() < self._next_pruning:
            return
        self._next_pruning = time.monotonic() + _PRUNE_EVERY
        with self._sessions.reading() as session:
            own, shared = self._clock(), self._database_clock(session)
            doubt = doubts(session, own, shared)
        if doubt is not None:
            _log.error("audit.not_pruned", reason=doubt)
            return
        if pruned := self.prune(earlier_of(own, shared) - timedelta(days=self._keep_days), pieces=_PIECES):
            _log.info("audit.pruned", entries=pruned)
        if pruned >= _PIECES * _PRUNED_AT_ONCE:
            self._next_pruning = time.monotonic()

    # -- reading

    def head(self) -> Head:
        """How long the log is and how it ends, seal checked.

        Raises:
            AuditBroken: the seal is not that head's.
        """
        with self._sessions.reading() as session:
            return self._ends.head(session)

    def entries(self, *, after: int = 0, before: datetime | None = None) -> Iterator[str]:
        """Entries behind a number, up to the first that is not before a moment, as lines of JSON with their hashes.

        Raises:
            AuditBroken: what stands there says no moment.
        """
        for block in blocks(self._sessions, after):
            for row in block:
                if before is not None and moment_of(row.number, row.entry) >= before:
                    return
                yield line_of(row.hash, row.entry)

    def last(self, action: str) -> str | None:
        """The last entry of an action, as canonical JSON."""
        query = select(AuditRow.entry).filter_by(action=action).order_by(AuditRow.number.desc()).limit(1)
        with self._sessions.reading() as session:
            return session.scalar(query)

    def verify(self, expected: Head | None = None) -> AuditReport:
        """Follow the whole chain and compare its end with the sealed head; may run while entries are added.

        Args:
            expected: a head that was written down earlier; the log must still contain it, or begin with it.
        """
        return verified(self._sessions, self._ends, expected)

    # -- inside

    def _append(self, session: Session, entries: Sequence[dict[str, Any]]) -> None:
        row = self._ends.locked_head(session)
        head = self._ends.checked(row, session)
        timeline = timeline_of(session, anew=head.count < self._seen.count)
        for entry in [*self._undone(session, head, timeline), *entries]:
            text = numbered(entry, head.count + 1)
            head = Head(head.count + 1, chained(head.hash, text))
            session.add(AuditRow(number=head.count, action=entry["action"], entry=text, hash=head.hash))
        self._ends.move_head(row, head)
        session.flush()
        sqlalchemy_event.listen(session, "after_commit", lambda _session: self._has_seen(head, timeline), once=True)

    def _has_seen(self, head: Head, timeline: str | None) -> None:
        if head.count > self._seen.count or timeline != self._seen_on:
            self._seen, self._seen_on = head, timeline

    def _undone(self, session: Session, head: Head, timeline: str | None) -> list[dict[str, Any]]:
        """What is to be written down where entries are gone that this process has added: that they are.

        A standby that took over without them has begun a timeline of its own, which nobody does who can only write to
        the database. Then the log goes on, and says of itself where it broke off.

        Raises:
            AuditBroken: they are gone for another reason.
        """
        seen, before = self._seen, self._seen_on
        if head.count < seen.count:
            if timeline is None or before is None or timeline == before:
                raise AuditBroken(
                    f"the audit log has {head.count} entries and had {seen.count}; if an earlier database was put back "
                    "on purpose, start the service again"
                )
        elif timeline == before or self._has(session, seen, head):
            return []
        _log.error("audit.undone", entries=head.count, had=seen.count, reason="another database server took over")
        details = {"had": str(seen), "has": str(head), "timelines": [before, timeline]}
        return [draft(Event("entries-undone", details=details), Caller("service"))]

    def _has(self, session: Session, seen: Head, head: Head) -> bool:
        """Whether the log still goes through what this process has added, or nobody knows, as it was pruned."""
        if not seen.count or seen.count == head.count:
            return seen.count == 0 or seen.hash == head.hash
        stored = session.scalar(select(AuditRow.hash).filter_by(number=seen.count))
        return stored == seen.hash if stored is not None else seen.count <= self._ends.start(session).count

    def _write_noted(self) -> None:
        while (first := self._noted.get()) is not None:
            batch: list[dict[str, Any] | None] = [first]
            until = time.monotonic() + DELAY
            while len(batch) < _BATCH:
                try:
                    wait = 0.0 if self._stopping.is_set() else max(0.0, until - time.monotonic())
                    batch.append(self._noted.get(timeout=wait) if wait else self._noted.get_nowait())
                except queue.Empty:
                    break
            if not self._write_batch([entry for entry in batch if entry is not None]):
                return
            for _ in batch:
                self._noted.task_done()

    def _write_batch(self, batch: Sequence[dict[str, Any]]) -> bool:
        """Add a batch, and try until it is there, while the queue fills up. False: given up at the end."""
        told = False
        while True:
            try:
                with waiting_at_most(self._limit), self._sessions.writing() as session:
                    self._append(session, batch)
            except Exception as error:
                if not told:
                    cause = {"reason": in_full(error)} if isinstance(error, FacegalleryError) else {"exc_info": error}
                    _log.error("audit.not_written", entries=len(batch), **cause)
                told = True
                if self._stopped.wait(_RETRY):
                    return False
            else:
                if told:
                    _log.info("audit.written", entries=len(batch))
                return True
