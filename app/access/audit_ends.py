"""Where the audit log begins and ends: two sealed rows beside the entries."""

from typing import Any

from sqlalchemy import Engine, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.access.audit import NO_HASH, Head, is_sealed, seal
from app.access.errors import AuditBroken
from app.access.pepper import Pepper
from app.access.tables import AuditHeadRow, AuditRow

_HEAD, _START = 1, 2  # rows of the table of heads


class AuditEnds:
    """The last entry of a log, and the last one that was pruned; both sealed with the pepper.

    Args:
        engine: of the database.
        pepper: seals them.
    """

    def __init__(self, engine: Engine, pepper: Pepper) -> None:
        self._insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
        self._secret = pepper.derive("audit-head")
        self._start_secret = pepper.derive("audit-start")

    def locked_head(self, session: Session) -> AuditHeadRow:
        """The head's row, made on first use, locked until the transaction ends.

        Raises:
            AuditBroken: there are entries, but no head.
        """
        wanted = select(AuditHeadRow).filter_by(id=_HEAD).with_for_update()
        row = session.scalar(wanted)
        if row is None:
            first = Head(0, NO_HASH)
            values: dict[str, Any] = {"id": _HEAD, "count": 0, "hash": NO_HASH, "seal": seal(self._secret, first)}
            session.execute(self._insert(AuditHeadRow).values(values).on_conflict_do_nothing(index_elements=["id"]))
            row = session.scalars(wanted).one()
            if row.count == 0 and session.scalar(select(AuditRow.number).limit(1)) is not None:
                raise AuditBroken("the audit log has entries, but its head is missing; see `facegallery audit verify`")
        return row

    def move_head(self, row: AuditHeadRow, head: Head) -> None:
        """Write down another end."""
        row.count, row.hash, row.seal = head.count, head.hash, seal(self._secret, head)

    def checked(self, row: AuditHeadRow, session: Session) -> Head:
        """The head of its row, as it is stored.

        Raises:
            AuditBroken: the seal is not that head's.
        """
        session.refresh(row)
        head = Head(row.count, row.hash)
        if not is_sealed(self._secret, head, row.seal):
            raise AuditBroken(
                "the audit log's head was changed, or sealed with another pepper; put the file `key-pepper` or "
                "FACEGALLERY_KEY_PEPPER back, or see `facegallery audit verify` and `audit begin-anew --help`"
            )
        return head

    def head(self, session: Session) -> Head:
        """The last entry.

        Raises:
            AuditBroken: the seal is not that head's.
        """
        row = session.get(AuditHeadRow, _HEAD)
        return Head(0, NO_HASH) if row is None else self.checked(row, session)

    def start(self, session: Session) -> Head:
        """The last entry that was pruned.

        Raises:
            AuditBroken: the seal is not that start's.
        """
        start, sealed = self.stored_start(session) or (Head(0, NO_HASH), True)
        if not sealed:
            raise AuditBroken("the audit log's start was changed; see `facegallery audit verify`")
        return start

    def move_start(self, session: Session, start: Head) -> None:
        """Write down another last entry that was pruned."""
        session.execute(delete(AuditHeadRow).where(AuditHeadRow.id == _START))
        sealed = seal(self._start_secret, start)
        session.add(AuditHeadRow(id=_START, count=start.count, hash=start.hash, seal=sealed))

    def stored_head(self, session: Session) -> tuple[Head, bool] | None:
        """The head as it stands there, and whether its seal is its own; None: there is none."""
        return self._stored(session, _HEAD, self._secret)

    def stored_start(self, session: Session) -> tuple[Head, bool] | None:
        """The start as it stands there, and whether its seal is its own; None: nothing was pruned."""
        return self._stored(session, _START, self._start_secret)

    def _stored(self, session: Session, row_id: int, secret: bytes) -> tuple[Head, bool] | None:
        row = session.get(AuditHeadRow, row_id)
        if row is None:
            return None
        head = Head(row.count, row.hash)
        return head, is_sealed(secret, head, row.seal)
