"""Connections to PostgreSQL that end: with a server that is gone, and in a request with one that does not answer."""

import math
import time
from collections.abc import Collection
from typing import Any, Self, TypeVar

from psycopg import Connection, Error, OperationalError
from psycopg.abc import ConnParam, PQGen

from app.gallery.deadline import WaitLimit, seconds_left, wait_limit
from app.gallery.errors import DatabaseUnavailable
from app.gallery.sql.failures import CANCELLED

_PROBES = 3
_CANCEL_SECONDS = 1.0
_FAR_LONGER_THAN_A_CONNECTION = 60.0  # seconds; what is set for connections stays then
# What is read must not hang on how the server, the database, the role or the address is set: a moment of the year 9999
# is one of the year 10000 east of UTC, which Python does not have. Said by SET, as a pooler between takes no options at
# the beginning of a connection, and knows these three of each of its callers.
_ALIKE = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET client_encoding = 'UTF8'"
_UNICODE = "UTF8"
Answer = TypeVar("Answer")


class TookTooLong(OperationalError):
    """The server is there, and did not answer while the request had time; the statement was cancelled."""

    sqlstate = CANCELLED


def connection_options(timeout: float, given: Collection[str] = ()) -> dict[str, Any]:
    """What libpq does about a server that is gone without a word, as a machine that lost its power.

    Args:
        timeout: seconds to wait for a connection, and for what was sent to be taken; as long without a word, and the
            server is asked whether it is there.
        given: names of options that the operator's address sets, which are left to it.
    """
    seconds = max(1, round(timeout))
    options = {
        "connect_timeout": seconds,
        "keepalives_idle": seconds,
        "keepalives_interval": max(1, seconds // _PROBES),
        "keepalives_count": _PROBES,
        "tcp_user_timeout": 1000 * seconds,
    }
    return {name: value for name, value in options.items() if name not in given}


class BoundedConnection(Connection[Any]):
    """A connection on which a request waits no longer than it may take, or `patience` if that is more.

    A server may be there and not answer, as one whose disk hangs or whose container is paused. What a service does
    outside of requests, its start, its upkeep and its end, has a `WaitLimit`. A command has none: an export and a
    migration wait until the server goes on.
    """

    patience: float = 0.0
    """Seconds that every statement gets, however late it is."""

    @classmethod
    def connect(cls, *arguments: Any, patience: float = 0.0, **options: ConnParam) -> Self:  # type: ignore[override]
        """As `psycopg.connect`, with the patience of the connection, and with moments and texts in one form.

        Raises:
            OperationalError: there is no server, or no time left for it.
            DatabaseUnavailable: the database's encoding does not hold every name.
        """
        limit, begin = wait_limit(), time.monotonic()
        if limit is not None and limit.left < _FAR_LONGER_THAN_A_CONNECTION:
            if not limit.left:
                raise OperationalError("the server is not waited for any more")
            options["connect_timeout"] = math.ceil(limit.left)
        try:
            connection = super().connect(*arguments, **options)  # type: ignore[arg-type]
        finally:
            if limit is not None:
                limit.spend(time.monotonic() - begin)
        connection.patience = patience
        try:
            connection._set_up()
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_up(self) -> None:
        encoding = self.info.parameter_status("server_encoding")
        if encoding != _UNICODE:  # SQL_ASCII takes names, and counts their bytes
            raise DatabaseUnavailable(
                f"the database has the encoding {encoding}, which does not hold every name; make one that has "
                f"{_UNICODE} (`createdb --encoding=UTF8 --template=template0`)"
            )
        autocommit = self.autocommit
        self.autocommit = True  # what is set in a transaction goes with it, should it be rolled back
        self.execute(_ALIKE)
        self.autocommit = autocommit

    def wait(self, gen: PQGen[Answer], *arguments: Any, **options: Any) -> Answer:
        """As of psycopg's connection, which calls this whenever it waits for the server.

        Raises:
            TookTooLong: the time is over. The connection is closed, as what the server did is not known.
            OperationalError: the same, of a server that does not take the cancelling either.
        """
        return super().wait(self._bounded(gen), *arguments, **options)

    def _bounded(self, gen: PQGen[Answer]) -> PQGen[Answer]:
        limit, begin = wait_limit(), time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and self._is_over(time.monotonic() - begin, limit):
                    raise self._given_up()
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        finally:
            if limit is not None:
                limit.spend(time.monotonic() - begin)

    def _is_over(self, waited: float, limit: WaitLimit | None) -> bool:
        return (seconds_left() <= 0 and waited >= self.patience) or (limit is not None and waited >= limit.left)

    def _given_up(self) -> OperationalError:
        """Cancel the statement, which would wait on in the server for whatever it waits for, and close."""
        try:
            self.cancel_safe(timeout=_CANCEL_SECONDS)
            return TookTooLong("the server did not answer in time")
        except Error:
            return OperationalError("the server does not answer")
        finally:
            self.pgconn.finish()
