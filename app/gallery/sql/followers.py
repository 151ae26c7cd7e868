"""Who follows galleries, how far, and which changes are behind all of them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, Interval, delete, exists, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.gallery.tables import ChangeRow, FollowerRow, GalleryRow, UtcDateTime, now

Report = tuple[int, str, int]
"""A gallery, the name of a process or a snapshot, and the revision up to which that has followed the gallery."""
_UNSYNCHRONISED: dict[str, Any] = {"synchronize_session": False}


def write_reports(session: Session, reports: Sequence[Report], *, wait: bool) -> list[int]:
    """Write reports down; answers the galleries that were passed over, as others write to them at the moment.

    Args:
        session: of a transaction that writes.
        reports: some hundred at most; of a gallery that is gone nothing is written.
        wait: for who writes to the galleries; then none is passed over.
    """
    ids = {gallery_id for gallery_id, _, _ in reports}
    there = select(GalleryRow.id).where(GalleryRow.id.in_(ids)).order_by(GalleryRow.id)
    found = set(session.scalars(there.with_for_update(read=True, key_share=True, skip_locked=not wait)))
    seen_at = _clock(session)
    rows = [
        {"gallery_id": gallery_id, "name": name, "revision": revision, "seen_at": seen_at}
        for gallery_id, name, revision in reports
        if gallery_id in found
    ]
    on_sqlite = _on_sqlite(session)
    if rows:
        row = (sqlite.insert if on_sqlite else postgresql.insert)(FollowerRow).values(rows)
        # Processes of one machine report the same snapshot at the same moment.
        told = {"revision": row.excluded.revision, "seen_at": row.excluded.seen_at}
        session.execute(row.on_conflict_do_update(index_elements=["gallery_id", "name"], set_=told))
    return [] if wait or on_sqlite else sorted(ids - found)


def galleries_to_prune(session: Session, gallery_ids: Sequence[int], *, silent_for: timedelta) -> list[int]:
    """Those of some galleries in which `prune_gallery` would drop anything."""
    own = FollowerRow.gallery_id.in_(gallery_ids)
    floor = select(FollowerRow.gallery_id, func.min(FollowerRow.revision).label("floor")).where(own)
    floors = floor.group_by(FollowerRow.gallery_id).subquery()
    old = exists().where(ChangeRow.gallery_id == floors.c.gallery_id, ChangeRow.revision <= floors.c.floor)
    due = {*session.scalars(select(floors.c.gallery_id).where(old))}
    due |= {*session.scalars(select(FollowerRow.gallery_id).where(own, silent(session, silent_for)))}
    return sorted(due)


def prune_gallery(session: Session, gallery_id: int, *, silent_for: timedelta, piece: int) -> int:
    """One piece of what `GalleryHistory.prune` does; answers how many rows went, fewer than a piece at the end.

    A piece is so many rows, with the rest of the revision that the last of them is of.
    """
    followers = FollowerRow.gallery_id == gallery_id
    leaving = delete(FollowerRow).where(followers, silent(session, silent_for))
    session.execute(leaving, execution_options=_UNSYNCHRONISED)
    floor = session.scalar(select(func.min(FollowerRow.revision)).where(followers))
    if floor is None:
        return 0
    behind = (ChangeRow.gallery_id == gallery_id) & (ChangeRow.revision <= floor)
    # Whole revisions, the oldest first: a part of one would be taken for all of it.
    last = select(ChangeRow.revision).where(behind).order_by(ChangeRow.revision).offset(piece - 1).limit(1)
    reached = session.scalar(last)
    old = delete(ChangeRow).where(behind, ChangeRow.revision <= (floor if reached is None else reached))
    return cast(Any, session.execute(old, execution_options=_UNSYNCHRONISED)).rowcount or 0


def silent(session: Session, silent_for: timedelta) -> ColumnElement[bool]:
    """Whether a follower reported too long ago, or from too far in the future."""
    past, future = _clock(session, ago=silent_for), _clock(session, ago=-silent_for)
    return (FollowerRow.seen_at < past) | (FollowerRow.seen_at > future)


def _clock(session: Session, *, ago: timedelta = timedelta(0)) -> ColumnElement[datetime]:
    """The present moment by the one clock that all processes see: PostgreSQL's, or that of SQLite's machine."""
    if _on_sqlite(session):
        return literal(now() - ago, UtcDateTime)
    return func.now() - literal(ago, Interval)


def _on_sqlite(session: Session) -> bool:
    return session.get_bind().dialect.name == "sqlite"
