"""A new beginning for who has lost the pepper: what nobody can go on with any more leaves the database.

Nothing else hangs on the pepper: templates open with the vault and the master key, and everybody stays enrolled.
"""

import json
from collections.abc import Callable, Iterator, Sequence

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from app.access.audit_ends import AuditEnds
from app.access.audit_log import AuditLog
from app.access.audit_reading import line_of
from app.access.keys import KeyHasher
from app.access.pepper import Pepper
from app.access.tables import ApiKeyRow, AuditHeadRow, AuditRow
from app.gallery.errors import InvalidInput
from app.gallery.journal import Event
from app.gallery.sql.database import lift_limits
from app.gallery.sql.rows import Sessions

_BLOCK = 1000  # entries of one read


def begin_anew(engine: Engine, pepper: Pepper, keep: Callable[[Iterator[str]], None]) -> int:
    """Remove an audit log that cannot go on with this pepper, and the keys that it did not hash.

    The new log's first entry says so, in the same transaction.

    Args:
        engine: of the database.
        pepper: the present one.
        keep: gets all that is removed as lines of JSON: the entries as `AuditLog.entries` gives them, the log's sealed
            ends, and what is known of the keys. What it raises leaves everything as it was.

    Returns:
        How many keys are gone.

    Raises:
        InvalidInput: the log can go on.
    """
    audit, ends, own = AuditLog(engine, pepper), AuditEnds(engine, pepper), KeyHasher(pepper).pepper_id
    with Sessions(engine).writing() as session:
        lift_limits(session.connection())
        # Locked, so that a service that still has the old pepper adds nothing behind what is kept.
        rows = session.scalars(select(AuditHeadRow).order_by(AuditHeadRow.id).with_for_update()).all()
        head, start = ends.stored_head(session), ends.stored_start(session)
        entries = session.scalar(select(AuditRow.number).limit(1)) is not None
        if (head[1] if head else not entries) and (start is None or start[1]):
            raise InvalidInput("the audit log goes on with the pepper at hand; there is nothing to begin anew")
        keys = session.scalars(select(ApiKeyRow).where(ApiKeyRow.pepper_id != own).order_by(ApiKeyRow.id)).all()
        keep(_lines(session, rows, keys))
        details = {"had": None if head is None else str(head[0]), "keys": [key.id for key in keys]}
        session.execute(delete(AuditRow))
        for row in (*rows, *keys):
            session.delete(row)
        session.flush()
        audit.write(session, Event("begin-audit-anew", details=details))
        return len(keys)


def _lines(session: Session, ends: Sequence[AuditHeadRow], keys: Sequence[ApiKeyRow]) -> Iterator[str]:
    query = select(AuditRow.hash, AuditRow.entry).order_by(AuditRow.number).execution_options(yield_per=_BLOCK)
    for digest, entry in session.execute(query):
        yield line_of(digest, entry)
    for end in ends:
        yield json.dumps({"end": end.id, "count": end.count, "hash": end.hash.hex(), "seal": end.seal.hex()})
    for key in keys:
        revoked = None if key.revoked_at is None else key.revoked_at.isoformat()
        known = {"name": key.name, "scopes": key.scopes, "galleries": key.galleries, "revoked_at": revoked}
        yield json.dumps({"key": key.id, **known}, ensure_ascii=False)
