"""Connections to PostgreSQL that end: with a server that is gone, and in a request with one that does not answer."""

import time
from typing import Any, Self, TypeVar

from psycopg import Connection, OperationalError
from psycopg.abc import ConnParam, PQGen

from app.gallery.deadline import seconds_left

_PROBES = 3
Answer = TypeVar("Answer")


def connection_options(timeout: float) -> dict[str, Any]:
    """What libpq does about a server that is gone without a word, as a machine that lost its power.

    Args:
        timeout: seconds to wait for a connection, and for what was sent to arrive; as long without a word, and the
            server is asked whether it is there.
    """
    seconds = max(1, round(timeout))
    return {
        "connect_timeout": seconds,
        "keepalives_idle": seconds,
        "keepalives_interval": max(1, seconds // _PROBES),
        "keepalives_count": _PROBES,
        "tcp_user_timeout": 1000 * seconds,
    }


class BoundedConnection(Connection[Any]):
    """A connection on which a request waits no longer than it may take, or `patience` if that is more.

    A server may be there and not answer, as one whose disk hangs or whose container is paused. Outside of requests
    nothing is bounded: an export, a migration and the upkeep wait until the server goes on.
    """

    patience: float = 0.0
    """Seconds that every statement gets, however late it is."""

    @classmethod
    def connect(cls, *arguments: Any, patience: float = 0.0, **options: ConnParam) -> Self:  # type: ignore[override]
        """As `psycopg.connect`, with the patience of the connection."""
        connection = super().connect(*arguments, **options)  # type: ignore[arg-type]
        connection.patience = patience
        return connection

    def wait(self, gen: PQGen[Answer], *arguments: Any, **options: Any) -> Answer:
        """As of psycopg's connection, which calls this whenever it waits for the server.

        Raises:
            OperationalError: the time is over; the connection is closed, as what the server did is not known.
        """
        return super().wait(self._bounded(gen), *arguments, **options)

    def _bounded(self, gen: PQGen[Answer]) -> PQGen[Answer]:
        begin = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and seconds_left() <= 0 and time.monotonic() - begin >= self.patience:
                    self.pgconn.finish()
                    raise OperationalError("the server did not answer in time")
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
