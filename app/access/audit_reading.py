"""Reading the audit log: its entries, and whether they are those that were written."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import select

from app.access.audit import NO_HASH, AuditReport, ChainCheck, Head
from app.access.audit_ends import AuditEnds
from app.access.errors import AuditBroken
from app.access.tables import AuditRow
from app.gallery.sql.rows import Sessions

BLOCK = 1000
"""Rows of one read."""


def line_of(digest: bytes, entry: str) -> str:
    """An entry with its hash as a line of JSON, in which the entry stands as it was hashed."""
    return f'{{"hash":"{digest.hex()}","entry":{entry}}}'


def moment_of(number: int, entry: str) -> datetime:
    """When an entry was written.

    Raises:
        AuditBroken: what stands there says no moment.
    """
    try:
        return datetime.fromisoformat(json.loads(entry)["at"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AuditBroken(f"entry {number} of the audit log is none; see `facegallery audit verify`") from error


def blocks(sessions: Sessions, after: int) -> Iterator[Sequence[AuditRow]]:
    """The entries behind a number, a transaction for each block."""
    while True:
        query = select(AuditRow).where(AuditRow.number > after).order_by(AuditRow.number).limit(BLOCK)
        with sessions.reading() as session:
            block = session.scalars(query).all()
        if not block:
            return
        yield block
        after = block[-1].number


def verified(sessions: Sessions, ends: AuditEnds, expected: Head | None) -> AuditReport:
    """Follow the whole chain and compare its end with the sealed head; may run while entries are added or pruned.

    Args:
        sessions: of the database.
        ends: where the log begins and ends.
        expected: a head that was written down earlier; the log must still contain it, or begin with it.
    """
    while True:
        with sessions.reading() as session:
            start = ends.stored_start(session)
        report = _verified_from(start, sessions, ends, expected)
        with sessions.reading() as session:
            if start == ends.stored_start(session):  # else it was pruned meanwhile
                return report


def _verified_from(
    start: tuple[Head, bool] | None, sessions: Sessions, ends: AuditEnds, expected: Head | None
) -> AuditReport:
    with sessions.reading() as session:
        sealed = ends.stored_head(session)
    first = Head(0, NO_HASH) if start is None else start[0]
    check, at_head = ChainCheck(first), NO_HASH
    if start is not None and not start[1]:
        check.flaws.append("the start was changed, or another pepper sealed it")
    for block in blocks(sessions, 0):
        for entry in block:
            wanted = expected is not None and entry.number == expected.count
            check.follow(entry.number, entry.action, entry.entry, entry.hash, remember=wanted)
            if sealed is not None and entry.number == sealed[0].count:
                at_head = entry.hash
    flaws = list(check.flaws)
    if sealed is None:
        if check.head.count:
            flaws.append("the head is missing")
    elif not sealed[1]:
        flaws.append("the head was changed, or another pepper sealed it")
    elif check.head.count < sealed[0].count:
        flaws.append(f"the last {sealed[0].count - check.head.count} entries are missing")
    elif at_head != sealed[0].hash:
        flaws.append("the last entry is not the one that was sealed")
    if sealed is not None and check.head.count > sealed[0].count and _count(sessions, ends) < check.head.count:
        flaws.append("there are entries behind the head")
    if expected is not None and expected.count < first.count:
        flaws.append(f"entry {expected.count} was pruned; what was written down of it cannot be checked any more")
    elif expected is not None and check.hash_at.get(expected.count) != expected.hash:
        flaws.append(f"entry {expected.count} is not the one that was written down")
    return AuditReport(check.head, tuple(flaws))


def _count(sessions: Sessions, ends: AuditEnds) -> int:
    with sessions.reading() as session:
        found = ends.stored_head(session)
    return 0 if found is None else found[0].count
