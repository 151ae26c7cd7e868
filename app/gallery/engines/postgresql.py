"""Connections that read and write pgvector's type, and a driver's failures as the service's errors."""

import selectors
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import Connection, Cursor
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format, TransactionStatus
from sqlalchemy import make_url

from app.gallery.errors import DatabaseUnavailable
from app.gallery.sql.bounded_connection import BoundedConnection, connection_options
from app.gallery.sql.failures import meaning

_MOST_IDLE = 10


@dataclass(frozen=True, slots=True)
class VectorType:
    """pgvector's type in one database: the extension's version, the schema it lives in and its object ids."""

    version: str
    schema: str
    vector: int
    array: int

    def search_path(self, schema: str) -> str:
        """Where a connection finds the tables of a schema, and the type."""
        return f'{schema}, "{self.schema}"'


@dataclass(frozen=True, slots=True)
class Vector:
    """A parameter of type `vector`: shape (D,), float32."""

    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Vectors:
    """A parameter of type `vector[]`: shape (N, D), float32."""

    rows: NDArray[np.float32]


def options_for(address: str, timeout: float) -> dict[str, Any]:
    """As `connection_options`, without what the address sets."""
    return connection_options(timeout, conninfo_to_dict(address))


def libpq_address(address: str) -> str:
    """What libpq calls the database of an SQLAlchemy address: spaces and several hosts are written otherwise there."""
    url = make_url(address).set(drivername="postgresql+psycopg")
    _, options = url.get_dialect()().create_connect_args(url)
    return make_conninfo(**options)


def vector_type(connection: Connection) -> VectorType:
    """pgvector's type as it is in the database now.

    Raises:
        UndefinedTable: there is none; whoever has dropped it has dropped the index, too.
    """
    found = connection.execute(
        "SELECT extversion, nspname::text, t.oid, t.typarray FROM pg_extension e "
        "JOIN pg_namespace n ON n.oid = e.extnamespace "
        "JOIN pg_type t ON t.typnamespace = n.oid AND t.typname = 'vector' WHERE extname = 'vector'"
    ).fetchone()
    if found is None:
        raise psycopg.errors.UndefinedTable("there is no extension `vector`")
    return VectorType(*found)


class VectorConnections:
    """Connections in autocommit that know the type `vector`, kept for the next who needs one.

    There are as many as are used at once, which the service's workers limit. Where the server is away, a request hears
    it at once, and the first one after its return gets a connection: nothing waits for a turn of its own.

    Args:
        address: as libpq takes it.
        schema: where the tables are.
        timeout: seconds to wait for a connection, and for an answer (see `BoundedConnection`).
    """

    def __init__(self, address: str, *, schema: str, timeout: float) -> None:
        self._address = address
        self._schema = schema
        self._settings = {
            # A plan that was made for any number of rows would be kept for all: plan for the number at hand.
            "plan_cache_mode": "force_custom_plan",
            # Compiling a scan costs more than a scan.
            "jit": "off",
            # The next rows come until there are enough, although some may be gone. Their order does not count, as
            # they are ranked anew by exact distances, and the relaxed one finds more.
            "hnsw.iterative_scan": "relaxed_order",
        }
        self._timeout = timeout
        self._idle: deque[Connection] = deque()
        self._closed = False

    @contextmanager
    def one(self) -> Iterator[Connection]:
        """A connection for one use.

        Raises:
            Busy, DatabaseUnavailable, StorageUnwritable: as `postgresql_errors`.
        """
        with postgresql_errors():
            connection = self._take()
            try:
                yield connection
            except (psycopg.ProgrammingError, psycopg.InternalError):
                # What was made anew in the database has other ids than its connections know.
                connection.close()
                self._close_idle()
                raise
            finally:
                if self._closed or len(self._idle) >= _MOST_IDLE or not _is_at_rest(connection):
                    connection.close()
                else:
                    self._idle.append(connection)

    def close(self) -> None:
        """Close all connections that nobody uses, and the others after their use."""
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _take(self) -> Connection:
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if not _has_something_to_say(connection):
                    return connection
                connection.close()
        return self._connect()

    def _connect(self) -> Connection:
        connection = BoundedConnection.connect(
            self._address, autocommit=True, patience=self._timeout, **options_for(self._address, self._timeout)
        )
        try:
            kind = vector_type(connection)
            for name, value in {"search_path": kind.search_path(self._schema), **self._settings}.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        except BaseException:
            connection.close()
            raise
        _register(connection, kind)
        return connection


def _is_at_rest(connection: Connection) -> bool:
    return not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE


def _has_something_to_say(connection: Connection) -> bool:
    """Whether there is something to read where nothing was asked: then the server has taken its leave."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


def read_rows(cursor: Cursor[Any], dimension: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids (N,) and embeddings (N, D) of a binary cursor's rows of both."""
    rows: Sequence[tuple[int, bytes]] = cursor.fetchall()
    ids = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    wire = np.dtype([("dimension", ">i2"), ("unused", ">i2"), ("values", ">f4", (dimension,))])
    values = np.frombuffer(b"".join(row[1] for row in rows), wire)["values"]
    return ids, values.astype(np.float32).reshape(len(rows), dimension)


@contextmanager
def postgresql_errors() -> Iterator[None]:
    """Turn a driver's failures into the service's errors; what is a bug stays what it is.

    Raises:
        Busy: another has a lock on the index's table.
        StorageUnwritable: the disk is full or read-only.
        DatabaseUnavailable: PostgreSQL does not answer, or the index's table is gone.
    """
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseUnavailable("the gallery's index is gone from the database; run `facegallery reindex`") from error
    except psycopg.Error as error:
        if "cache lookup failed for type" in str(error):
            raise DatabaseUnavailable("pgvector was made anew in the database; try again") from error
        translated = meaning(error, away=isinstance(error, psycopg.OperationalError))
        if translated is None:
            raise
        raise translated from error


def _register(connection: Connection, kind: VectorType) -> None:
    """Have a connection take `Vector` and `Vectors` as parameters and give a `vector` as its bytes."""

    class DumpVector(Dumper):
        format = Format.BINARY
        oid = kind.vector

        def dump(self, obj: Vector) -> Buffer:
            return _wire(obj.values[None])[4:]

    class DumpVectors(Dumper):
        format = Format.BINARY
        oid = kind.array

        def dump(self, obj: Vectors) -> Buffer:
            # One dimension, no nulls, the elements' type, their number, counted from one.
            return struct.pack(">iiIii", 1, 0, kind.vector, len(obj.rows), 1) + _wire(obj.rows)

    class LoadVector(Loader):
        format = Format.BINARY

        def load(self, data: Buffer) -> bytes:
            return bytes(data)

    connection.adapters.register_dumper(Vector, DumpVector)
    connection.adapters.register_dumper(Vectors, DumpVectors)
    connection.adapters.register_loader(kind.vector, LoadVector)


def _wire(rows: NDArray[np.float32]) -> bytes:
    """Vectors as PostgreSQL sends them, each behind its length in bytes."""
    dimension = rows.shape[1]
    wire = np.zeros(
        len(rows),
        [("size", ">i4"), ("dimension", ">i2"), ("unused", ">i2"), ("values", ">f4", (dimension,))],
    )
    wire["size"], wire["dimension"], wire["values"] = 4 + 4 * dimension, dimension, rows
    return wire.tobytes()
