"""Whether the clocks are to be believed by which a sweep erases people."""

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.gallery.tables import GalleryRow, SubjectRow, SweepRow, UtcDateTime

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


def doubts(session: Session, own: datetime, shared: datetime | None) -> str | None:
    """Why nobody may be erased by these clocks now; None where they are to be believed.

    They are not where the machine's clock and the database's are more than an hour apart; nor where more than 35 days
    have passed since they were last believed (see `refuse_sweep`), or, before the first time, since anybody had been
    enrolled or changed, or a gallery made, when they were first looked at. Such a leap is believed when the clock still
    has it a day later.

    Args:
        session: of any transaction.
        own: the present moment by this machine's clock.
        shared: the same by the database's; None: it has none.
    """
    return _apart(own, shared) or _leap(session, session.get(SweepRow, 1), earlier_of(own, shared))


def refuse_sweep(
    session: Session, own: datetime, shared: datetime | None, *, leap_is_right: bool = False
) -> str | None:
    """As `doubts`, and note that the clock was believed, or since when it is doubted.

    A clock that is far behind the last moment refuses nothing, as it erases nobody early, but is believed no sooner
    than one that leapt: a machine without a clock of its own wakes in the past, and the leap back is none.

    Args:
        session: of a transaction that writes, to be committed in either case.
        own: the present moment by this machine's clock.
        shared: the same by the database's; None: it has none.
        leap_is_right: somebody has looked at the clocks after a long pause.
    """
    if (apart := _apart(own, shared)) is not None:
        return apart
    row, moment = _row(session), earlier_of(own, shared)
    leap = None if leap_is_right else _leap(session, row, moment)
    if leap is not None or (_is_behind(session, row, moment) and not leap_is_right):
        row.doubted_at = _doubted_since(row, moment)
    else:
        row.done_at, row.doubted_at = moment, None
    return leap


def note_doubt(session: Session, own: datetime, shared: datetime | None) -> None:
    """Note since when a leap is doubted, if there is one; arguments as of `refuse_sweep`."""
    row, moment = _row(session), earlier_of(own, shared)
    if _leap(session, row, moment) is not None:
        row.doubted_at = _doubted_since(row, moment)


def _apart(own: datetime, shared: datetime | None) -> str | None:
    if shared is None or abs(own - shared) <= _APART:
        return None
    return "the clocks of this machine and of the database are more than an hour apart; set the one that is wrong"


def _leap(session: Session, row: SweepRow | None, moment: datetime) -> str | None:
    last = _last(session, row)
    if last is None or moment - last <= _LEAP:
        return None
    believed = _doubted_since(row, moment) + _DOUBTED
    if moment >= believed:
        return None
    return (
        f"by the clock it is {moment:%Y-%m-%d %H:%M} UTC, more than {_LEAP.days} days after the last sweep or change "
        f"({last:%Y-%m-%d %H:%M}); set it if it is wrong, else sweeps go on from {believed:%Y-%m-%d %H:%M}, or at once "
        "with `facegallery retention sweep --clock-is-right`"
    )


def _is_behind(session: Session, row: SweepRow, moment: datetime) -> bool:
    """Whether a clock is behind what was believed last, and has not been so for a day."""
    last = _last(session, row)
    return last is not None and last - moment > _APART and moment < _doubted_since(row, moment) + _DOUBTED


def _last(session: Session, row: SweepRow | None) -> datetime | None:
    """When the clock was last believed, or else the last moment that the database knows of."""
    return _last_known(session) if row is None or row.done_at is None else row.done_at


def _last_known(session: Session) -> datetime | None:
    """The last moment in the database; to find it all subjects are read.

    An archive brings its subjects' moments along, however old; the gallery that was made for it has its own.
    """
    known = (session.scalar(select(func.max(one))) for one in (SubjectRow.updated_at, GalleryRow.created_at))
    return max((moment for moment in known if moment is not None), default=None)


def _doubted_since(row: SweepRow | None, moment: datetime) -> datetime:
    """When the doubt began that stands; the moment itself where there is none, or the clock has leapt again since."""
    since = None if row is None else row.doubted_at
    return since if since is not None and timedelta() <= moment - since <= _LEAP else moment


def _row(session: Session) -> SweepRow:
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    session.execute(insert(SweepRow).values(id=1).on_conflict_do_nothing(index_elements=["id"]))
    row = session.scalars(select(SweepRow).filter_by(id=1).with_for_update()).one()
    if row.done_at is None:  # once: who is enrolled by a clock that is doubted does not vouch for it
        row.done_at = _last_known(session)
    return row
