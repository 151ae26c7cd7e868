"""Whether the clocks are to be believed by which a sweep erases people."""

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.gallery.tables import SubjectRow, SweepRow, UtcDateTime

_APART = timedelta(hours=1)  # of the machine's clock and the database's
_LEAP = timedelta(days=35)  # since the last sweep; who sweeps once a month does not leap
_DOUBTED = timedelta(days=1)  # how long the clock must stay with a leap


def database_clock(session: Session) -> datetime | None:
    """The present moment by the database's clock, which all machines share; None on SQLite, which has none."""
    if session.get_bind().dialect.name == "sqlite":
        return None
    return session.scalars(select(func.clock_timestamp(type_=UtcDateTime))).one()


def earlier_of(own: datetime, shared: datetime | None) -> datetime:
    """The moment by which to erase: of two clocks the one that is behind."""
    return own if shared is None else min(own, shared)


def refuse_sweep(session: Session, own: datetime, shared: datetime | None) -> str | None:
    """Why nobody may be erased by these clocks; None where it may be done, and is noted as done.

    A sweep is refused where the machine's clock and the database's are more than an hour apart; and where more than 35
    days have passed since the last sweep, or, before the first, since anybody was enrolled or changed. Such a leap is
    believed when the clock still has it a day later.

    Args:
        session: of a transaction that writes, to be committed in either case.
        own: the present moment by this machine's clock.
        shared: the same by the database's; None: it has none.
    """
    if shared is not None and abs(own - shared) > _APART:
        return "the clocks of this machine and of the database are more than an hour apart; set the one that is wrong"
    moment = earlier_of(own, shared)
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    session.execute(insert(SweepRow).values(id=1).on_conflict_do_nothing(index_elements=["id"]))
    row = session.scalars(select(SweepRow).filter_by(id=1).with_for_update()).one()
    last = row.done_at or session.scalar(select(func.max(SubjectRow.updated_at)))
    if last is not None and moment - last > _LEAP:
        if row.doubted_at is None or moment < row.doubted_at:
            row.doubted_at = moment
        if moment - row.doubted_at < _DOUBTED:
            return (
                f"by the clock it is {moment:%Y-%m-%d %H:%M} UTC, more than {_LEAP.days} days after the last sweep or "
                f"enrolment ({last:%Y-%m-%d %H:%M}); set it if it is wrong, else sweeps go on from "
                f"{row.doubted_at + _DOUBTED:%Y-%m-%d %H:%M}"
            )
    row.done_at, row.doubted_at = moment, None
    return None
