"""Graphs over pgvector tables, built in the background while searches go on."""

import threading
import time

import structlog
from psycopg import Connection, Error, sql

from app.gallery.deadline import WaitLimit, check_deadline, wait_limit, waiting_at_most
from app.gallery.engines.postgresql import options_for, postgresql_errors, vector_type
from app.gallery.errors import Busy, DatabaseUnavailable, TimedOut
from app.gallery.sql.bounded_connection import BoundedConnection
from app.gallery.sql.database import NO_LIMITS

SCHEMA = "facegallery_index"
"""Where everything of pgvector's is kept."""

# Links of a template, and others that are looked at for each: a graph is built rarely and searched often, and with
# half the links it misses people at a million templates (see docs/engines.md).
_M, _EF_CONSTRUCTION = 32, 128
_MOST_DIMENSIONS = 2000  # pgvector's limit for a graph
_RETRY_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 600.0  # at a graph that was there: another process may have dropped it with its table
_CANCEL_SECONDS = 0.2
_SECONDS_TO_CANCEL, _LAST_SECONDS = 5.0, 1.0  # that the server may take over it
_SECONDS_TO_CLOSE = 2.0  # for all that is being built
_log = structlog.get_logger()


class GraphBuilder:
    """Builds each table's graph once: one process of all does it, and writes and searches go on meanwhile.

    Until a graph is there PostgreSQL computes every distance, so a search is right at any moment.

    Args:
        address: as libpq takes it.
        above: templates above which a table gets a graph.
        timeout: seconds to wait for a connection; a build may take as long as it does.
    """

    def __init__(self, address: str, *, above: int, timeout: float) -> None:
        self.above = above
        self._options = options_for(address, timeout)
        self._address = address
        self._lock = threading.Lock()
        self._closed = False
        self._not_before: dict[str, float] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._connections: dict[str, Connection] = {}

    def consider(self, table: str, *, templates: int, dimension: int) -> None:
        """Start to build a table's graph if it is large enough and none is there or on the way."""
        if templates <= self.above or dimension > _MOST_DIMENSIONS:
            return
        with self._lock:
            waits = time.monotonic() < self._not_before.get(table, 0)
            if self._closed or waits or table in self._threads:
                return
            thread = threading.Thread(target=self._run, args=(table,), name=f"hnsw {table}", daemon=True)
            thread.start()  # which fails where there are too many
            self._threads[table] = thread

    def wait(self, table: str, seconds: float | None = None) -> bool:
        """Whether nothing is being built for a table by this process, or no more within so many seconds."""
        with self._lock:  # one that is there has been started
            thread = self._threads.get(table)
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    def forget(self, table: str) -> None:
        """Give up what is being built for a table, and build anew when it is next considered.

        Raises:
            DatabaseUnavailable: PostgreSQL does not answer.
            TimedOut: the build goes on, and the request has no more time.
            Busy: the build goes on, and what is done outside of requests may wait no longer.
        """
        limit, begin, pause = wait_limit(), time.monotonic(), _CANCEL_SECONDS
        try:
            while not self.wait(table, 0):
                # Again and again: what is not connected yet, or between two statements, cannot be cancelled.
                connection = self._connections.get(table)
                if connection is not None:
                    with postgresql_errors():
                        connection.cancel_safe(timeout=_LAST_SECONDS if self._closed else _SECONDS_TO_CANCEL)
                if not self.wait(table, pause):
                    check_deadline()
                    if limit is not None and time.monotonic() - begin >= limit.left:
                        raise Busy("a graph of the index is still being built; try again")
                pause = min(2 * pause, _SECONDS_TO_CANCEL)
        finally:
            if limit is not None:
                limit.spend(time.monotonic() - begin)
        with self._lock:
            self._not_before.pop(table, None)

    def look_again(self, table: str) -> None:
        """Look for a table's graph when it is next considered: the table is a new one."""
        with self._lock:
            self._not_before.pop(table, None)

    def close(self) -> None:
        """Give up all that is being built; the next process that considers it begins again.

        What a server that does not answer holds up is left behind after a moment.
        """
        self._closed = True
        with waiting_at_most(WaitLimit(total=_SECONDS_TO_CLOSE)):
            for table in list(self._threads):
                try:
                    self.forget(table)
                except (Busy, DatabaseUnavailable, TimedOut) as error:
                    _log.warning("index.graph_left_behind", table=table, reason=str(error))
                    if isinstance(error, DatabaseUnavailable):  # nor would it cancel another
                        break

    def _run(self, table: str) -> None:
        started = time.monotonic()
        try:
            with BoundedConnection.connect(self._address, autocommit=True, **self._options) as connection:
                self._connections[table] = connection
                built = self._build(connection, table)
            self._not_before[table] = time.monotonic() + (_RETRY_SECONDS if built is None else _LOOK_AGAIN_SECONDS)
            if built:
                _log.info("index.graph_ready", table=table, seconds=round(time.monotonic() - started, 1))
        except (Error, DatabaseUnavailable) as error:
            self._not_before[table] = time.monotonic() + _RETRY_SECONDS
            if not self._closed:
                _log.warning("index.graph_failed", table=table, reason=str(error))
        finally:
            self._connections.pop(table, None)
            with self._lock:
                self._threads.pop(table, None)

    def _build(self, connection: Connection, table: str) -> bool | None:
        """Whether the graph was not there and is now; None where another process is building it."""
        graph = graph_name(table)
        search_path = vector_type(connection).search_path(SCHEMA)
        connection.execute("SELECT set_config('search_path', %s, false)", (search_path,))
        connection.execute(NO_LIMITS, {"of_transaction": False})
        # Never waited for: a statement that waits would be waited for by the build.
        lock = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (graph,)).fetchone()
        if lock is None or not lock[0]:
            return None
        state = connection.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (f"{SCHEMA}.{graph}",)
        ).fetchone()
        if state is not None and state[0]:
            return False
        if state is not None:  # a build that did not come to its end
            connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(SCHEMA, graph)))
        connection.execute(
            sql.SQL(
                "CREATE INDEX CONCURRENTLY {} ON {} USING hnsw (embedding vector_l2_ops) "
                "WITH (m = {}, ef_construction = {})"
            ).format(
                sql.Identifier(graph),
                sql.Identifier(SCHEMA, table),
                sql.Literal(_M),
                sql.Literal(_EF_CONSTRUCTION),
            )
        )
        return True


def graph_name(table: str) -> str:
    """Name of a table's graph."""
    return f"{table}_hnsw"
