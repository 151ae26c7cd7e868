"""AuditLog: adds entries to the chain in SQL, reads them, and checks them.

Deeds that change something are written in their own transaction (`write`), the head's row locked last and briefly.
Deeds that only look are handed to one thread that adds them in batches (`note`), so that an identification does not
wait for a disk; what a process had in hand for less than `DELAY` is lost where it is killed, and nothing else.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from sqlalchemy import Engine, select
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.access.audit import NO_HASH, AuditReport, ChainCheck, Head, chained, draft, is_sealed, numbered, seal
from app.access.caller import present_caller
from app.access.errors import AuditBroken
from app.access.pepper import Pepper
from app.access.tables import AuditHeadRow, AuditRow
from app.gallery.errors import Busy
from app.gallery.journal import Event
from app.gallery.rows import Sessions
from model.errors import FacegalleryError

DELAY = 0.2  # seconds that a noted entry waits for others
_QUEUED = 10_000  # entries in hand before deeds that only look are refused
_BATCH = 500
_RETRY = 1.0  # seconds
_BLOCK = 1000  # rows of one read
_log = structlog.get_logger()


class AuditLog:
    """The audit log of a database, as a `Journal`; safe to call from many threads and many processes."""

    def __init__(self, engine: Engine, pepper: Pepper, *, patience: float = 5.0) -> None:
        self._sessions = Sessions(engine)
        self._insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
        self._secret = pepper.derive("audit-head")
        self._patience = patience
        self._seen = 0
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
        if lost := self._noted.unfinished_tasks:
            _log.error("audit.lost", entries=lost)
        if self._thread is not None:
            if not lost:
                self._noted.put(None)
            self._thread.join(timeout=1 + self._patience)

    # -- reading

    def head(self) -> Head:
        """How long the log is and how it ends, seal checked.

        Raises:
            AuditBroken: the seal is not that head's.
        """
        with self._sessions.reading() as session:
            return self._checked(session.get(AuditHeadRow, 1), session)

    def entries(self, *, after: int = 0) -> Iterator[str]:
        """All entries behind a number as lines of JSON, each with its hash."""
        for block in self._blocks(after):
            for row in block:
                yield f'{{"hash":"{row.hash.hex()}","entry":{row.entry}}}'

    def last(self, action: str) -> str | None:
        """The last entry of an action, as canonical JSON."""
        query = select(AuditRow.entry).filter_by(action=action).order_by(AuditRow.number.desc()).limit(1)
        with self._sessions.reading() as session:
            return session.scalar(query)

    def verify(self, expected: Head | None = None) -> AuditReport:
        """Follow the whole chain and compare its end with the sealed head; may run while entries are added.

        Args:
            expected: a head that was written down earlier; the log must still contain it.
        """
        with self._sessions.reading() as session:
            row = session.get(AuditHeadRow, 1)
            sealed = None if row is None else (Head(row.count, row.hash), row.seal)
        check, at_head = ChainCheck(), NO_HASH
        for block in self._blocks(0):
            for entry in block:
                wanted = expected is not None and entry.number == expected.count
                check.follow(entry.number, entry.action, entry.entry, entry.hash, remember=wanted)
                if sealed is not None and entry.number == sealed[0].count:
                    at_head = entry.hash
        flaws = list(check.flaws)
        if sealed is None:
            if check.head.count:
                flaws.append("the head is missing")
        elif not is_sealed(self._secret, *sealed):
            flaws.append("the head was changed, or another pepper sealed it")
        elif check.head.count < sealed[0].count:
            flaws.append(f"the last {sealed[0].count - check.head.count} entries are missing")
        elif at_head != sealed[0].hash:
            flaws.append("the last entry is not the one that was sealed")
        if sealed is not None and check.head.count > sealed[0].count and self._count() < check.head.count:
            flaws.append("there are entries behind the head")
        if expected is not None and check.hash_at.get(expected.count) != expected.hash:
            flaws.append(f"entry {expected.count} is not the one that was written down")
        return AuditReport(check.head, tuple(flaws))

    # -- inside

    def _append(self, session: Session, entries: Sequence[dict[str, Any]]) -> None:
        first = Head(0, NO_HASH)
        values = {"id": 1, "count": 0, "hash": NO_HASH, "seal": seal(self._secret, first)}
        row = session.scalar(select(AuditHeadRow).filter_by(id=1).with_for_update())
        if row is None:
            session.execute(self._insert(AuditHeadRow).values(values).on_conflict_do_nothing(index_elements=["id"]))
            row = session.scalars(select(AuditHeadRow).filter_by(id=1).with_for_update()).one()
            if row.count == 0 and session.scalar(select(AuditRow.number).limit(1)) is not None:
                raise AuditBroken("the audit log has entries, but its head is missing; see `facegallery audit verify`")
        head = self._checked(row, session)
        if head.count < self._seen:
            raise AuditBroken(
                f"the audit log has {head.count} entries and had {self._seen}; if an earlier database was put back on "
                "purpose, start the service again"
            )
        for entry in entries:
            text = numbered(entry, head.count + 1)
            head = Head(head.count + 1, chained(head.hash, text))
            session.add(AuditRow(number=head.count, action=entry["action"], entry=text, hash=head.hash))
        row.count, row.hash, row.seal = head.count, head.hash, seal(self._secret, head)
        session.flush()
        sqlalchemy_event.listen(session, "after_commit", lambda _session: self._has_seen(head.count), once=True)

    def _has_seen(self, count: int) -> None:
        self._seen = max(self._seen, count)

    def _checked(self, row: AuditHeadRow | None, session: Session) -> Head:
        if row is None:
            return Head(0, NO_HASH)
        session.refresh(row)
        head = Head(row.count, row.hash)
        if not is_sealed(self._secret, head, row.seal):
            raise AuditBroken(
                "the audit log's head was changed, or sealed with another pepper; put the file `key-pepper` or "
                "FACEGALLERY_KEY_PEPPER back, or see `facegallery audit verify`"
            )
        return head

    def _count(self) -> int:
        with self._sessions.reading() as session:
            return session.scalar(select(AuditHeadRow.count).filter_by(id=1)) or 0

    def _blocks(self, after: int) -> Iterator[Sequence[AuditRow]]:
        while True:
            query = select(AuditRow).where(AuditRow.number > after).order_by(AuditRow.number).limit(_BLOCK)
            with self._sessions.reading() as session:
                block = session.scalars(query).all()
            if not block:
                return
            yield block
            after = block[-1].number

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
                with self._sessions.writing() as session:
                    self._append(session, batch)
            except Exception as error:
                if not told:
                    cause = {"reason": str(error)} if isinstance(error, FacegalleryError) else {"exc_info": error}
                    _log.error("audit.not-written", entries=len(batch), **cause)
                told = True
                if self._stopped.wait(_RETRY):
                    return False
            else:
                if told:
                    _log.info("audit.written", entries=len(batch))
                return True
