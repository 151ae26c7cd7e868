"""Which timeline a PostgreSQL server is on: a standby that takes over begins a new one."""

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

_KEPT = "facegallery.timeline"


def timeline_of(session: Session, *, anew: bool = False) -> str | None:
    """The server's timeline; None: SQLite, or a server that does not tell, as one that keeps no log of its own.

    It is asked once for each connection, which ends with the server that it leads to.

    Args:
        session: in a transaction, which goes on.
        anew: ask again: a proxy may have put another server behind the connection.
    """
    connection = session.connection()
    if connection.dialect.name != "postgresql":
        return None
    if anew or _KEPT not in connection.info:
        found = None
        try:
            with connection.begin_nested():
                # Every role may ask this, and the first eight digits are the timeline.
                found = connection.scalar(text("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"))
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
        connection.info[_KEPT] = found
    known: str | None = connection.info[_KEPT]
    return known
