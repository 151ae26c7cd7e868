"""pgvector: the vectors in the PostgreSQL that is there anyway, in a schema of their own."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from psycopg import Connection, sql
from psycopg.errors import InsufficientPrivilege, UndefinedTable

from app.gallery.engines.hnsw import SCHEMA, GraphBuilder
from app.gallery.engines.pgvector_index import PgvectorIndex
from app.gallery.engines.postgresql import (
    VectorConnections,
    libpq_address,
    options_for,
    postgresql_errors,
    vector_type,
)
from app.gallery.engines.protocol import STORAGE, prefix_in, prefix_of, storage_name
from app.gallery.errors import IndexEngineUnusable
from app.gallery.records import Gallery
from app.gallery.sql.bounded_connection import BoundedConnection
from app.gallery.try_each import try_each

HNSW_ABOVE = 20_000
"""Templates above which a gallery gets a graph; up to here every distance is computed."""

_LEAST_VERSION = (0, 8)  # the first that goes on searching until there are enough rows
_DROP_TIMEOUT = "3s"  # writers of the gallery may be waiting meanwhile
_SETUP_LOCK = 7_310_219_004  # two processes that start together must not make the same things


class PgvectorEngine:
    """A table for each gallery in the schema `facegallery_index`, which Alembic does not see.

    Args:
        database: SQLAlchemy address of the database.
        timeout: seconds to wait for a connection.
        hnsw_above: templates above which a gallery gets a graph.

    Raises:
        IndexEngineUnusable: the extension is missing or too old, or the role may not make what is needed.
        DatabaseUnavailable: the database does not answer.
        Busy: it did not in time, as another process was making the same things.
    """

    def __init__(self, database: str, *, timeout: float, hnsw_above: int = HNSW_ABOVE) -> None:
        address = libpq_address(database)
        options = options_for(address, timeout)
        with postgresql_errors(), BoundedConnection.connect(address, patience=timeout, **options) as connection:
            _prepare(connection)
        self._connections = VectorConnections(address, schema=SCHEMA, timeout=timeout)
        self.builder = GraphBuilder(address, above=hnsw_above, timeout=timeout)

    def index(self, gallery: Gallery) -> PgvectorIndex:
        """As `IndexEngine.index`."""
        name = storage_name(gallery)
        with self._connections.one() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SETUP_LOCK,))
            (there,) = _row(
                connection,
                "SELECT to_regclass(%s) IS NOT NULL AND EXISTS (SELECT FROM storage WHERE name = %s)",
                (f"{SCHEMA}.{name}", name),
            )
            if not there:
                with _right_to("make tables"):
                    _make_table(connection, name, gallery.dimension)
        if not there:
            self.builder.look_again(name)
        index = PgvectorIndex(self._connections, self.builder, name, gallery.dimension)
        index.point()
        return index

    def names(self, prefix: str) -> list[str]:
        """As `IndexEngine.names`."""
        with self._connections.one() as connection:
            rows = connection.execute(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = %s AND starts_with(tablename::text, %s) "
                "UNION SELECT name FROM storage WHERE starts_with(name, %s)",
                (SCHEMA, prefix, prefix),
            ).fetchall()
        return sorted(name for (name,) in rows)

    def drop(self, prefix: str, *, but: str = "") -> None:
        """As `IndexEngine.drop`; a table whose graph another process is building stays until that is done."""
        try_each(partial(self._drop, name) for name in self.names(prefix) if name != but)

    def nobodys(self) -> list[str]:
        """As `IndexEngine.nobodys`: all galleries whose vectors are here are in this database, in some schema.

        Nothing is told where there are none, or where the role may not read those of a schema.
        """
        names = self.names(STORAGE)  # first: a gallery is there before its table is made
        with self._connections.one() as connection:
            needed = _prefixes_of_galleries(connection)
        return [] if needed is None else [name for name in names if prefix_in(name) not in needed]

    def close(self) -> None:
        """As `IndexEngine.close`; a graph that is being built is given up, and the next process builds it."""
        try:
            self.builder.close()
        finally:
            self._connections.close()

    def _drop(self, name: str) -> None:
        self.builder.forget(name)
        with self._connections.one() as connection, connection.transaction():
            table = sql.Identifier(SCHEMA, name)
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (_DROP_TIMEOUT,))
            with _right_to("drop tables"):
                # Waited for before the lock of all tables is held, for which the other galleries would wait.
                with suppress(UndefinedTable), connection.transaction():
                    connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SETUP_LOCK,))
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
            connection.execute("DELETE FROM storage WHERE name = %s", (name,))


def _prepare(connection: Connection) -> None:
    """Make the extension, the schema and the table of positions where they are missing; nothing is asked for else."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SETUP_LOCK,))
    (has_schema,) = _row(connection, "SELECT to_regnamespace(%s) IS NOT NULL", (SCHEMA,))
    if not has_schema:
        with _right_to(f"make the schema {SCHEMA}"):
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
    (installed,) = _row(connection, "SELECT count(*) FROM pg_extension WHERE extname = 'vector'")
    if not installed:
        (available,) = _row(connection, "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'")
        if not available:
            raise IndexEngineUnusable(
                "this PostgreSQL has no pgvector; install it on the server, or choose another FACEGALLERY_INDEX"
            )
        with _right_to("make the extension; have a superuser run CREATE EXTENSION vector in this database"):
            connection.execute(sql.SQL("CREATE EXTENSION vector SCHEMA {}").format(sql.Identifier(SCHEMA)))
    version = vector_type(connection).version
    if tuple(int(part) for part in version.split(".")[:2]) < _LEAST_VERSION:
        raise IndexEngineUnusable(
            f"pgvector {version} is too old, 0.8 is needed; have a superuser run ALTER EXTENSION vector UPDATE"
        )
    (has_positions,) = _row(connection, "SELECT to_regclass(%s) IS NOT NULL", (f"{SCHEMA}.storage",))
    if not has_positions:
        with _right_to("make tables"):
            connection.execute(
                sql.SQL(
                    "CREATE TABLE {} (name text PRIMARY KEY, generation bigint NOT NULL DEFAULT 0, "
                    "position bigint NOT NULL DEFAULT -1, mark bigint NOT NULL DEFAULT 0, "
                    "templates bigint NOT NULL DEFAULT 0)"
                ).format(sql.Identifier(SCHEMA, "storage"))
            )
    (has_marks,) = _row(
        connection,
        "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'mark'",
        (f"{SCHEMA}.storage",),
    )
    if not has_marks:  # made by a version that kept none
        with _right_to("change tables"):
            connection.execute(
                sql.SQL("ALTER TABLE {} ADD mark bigint NOT NULL DEFAULT 0").format(sql.Identifier(SCHEMA, "storage"))
            )


def _prefixes_of_galleries(connection: Connection) -> set[str] | None:
    """What the names of the tables of all galleries begin with; None where not all can be read."""
    schemas = connection.execute(_SCHEMAS_WITH_GALLERIES).fetchall()
    if not schemas or not all(readable for _, readable in schemas):
        return None
    prefixes = set[str]()
    for schema, _ in schemas:
        galleries = connection.execute(
            sql.SQL("SELECT id, created_at FROM {}").format(sql.Identifier(schema, "gallery"))
        )
        prefixes.update(prefix_of(*gallery) for gallery in galleries)
    return prefixes


_SCHEMAS_WITH_GALLERIES = """
SELECT nspname::text, has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE relname = 'gallery' AND relkind IN ('r', 'p') AND 4 = (
    SELECT count(*) FROM pg_attribute
    WHERE attrelid = c.oid AND NOT attisdropped AND attname IN ('id', 'created_at', 'extractor', 'dimension')
)
"""


def _make_table(connection: Connection, name: str, dimension: int) -> None:
    table = sql.Identifier(SCHEMA, name)
    # One without a position: how far it is true nobody knows.
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
    connection.execute(
        sql.SQL("CREATE TABLE {} (id bigint PRIMARY KEY, embedding vector({}) NOT NULL)").format(
            table, sql.Literal(dimension)
        )
    )
    # Long vectors would else be moved into a side table, and be fetched one by one in a scan.
    connection.execute(sql.SQL("ALTER TABLE {} ALTER embedding SET STORAGE PLAIN").format(table))
    # Drawn by chance, so that whoever knew a table of that name before does not take this one for it. A row that is
    # there belongs to a table that somebody removed.
    connection.execute(
        "INSERT INTO storage (name, generation) VALUES (%s, %s) ON CONFLICT (name) "
        "DO UPDATE SET generation = excluded.generation, position = -1, templates = 0",
        (name, secrets.randbits(63)),
    )


@contextmanager
def _right_to(what: str) -> Iterator[None]:
    """Say what the role may not do."""
    try:
        yield
    except InsufficientPrivilege as error:
        raise IndexEngineUnusable(f"the database's role may not {what}") from error


def _row(connection: Connection, query: str, parameters: tuple[object, ...] = ()) -> tuple[Any, ...]:
    row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return tuple(row)
