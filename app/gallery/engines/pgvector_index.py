"""One gallery's vectors in a pgvector table."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection, sql

from app.gallery.engines.hnsw import SCHEMA, GraphBuilder, graph_name
from app.gallery.engines.postgresql import Vector, VectorConnections, Vectors, read_rows
from app.gallery.engines.protocol import last_of_each, nothing_found, ranked
from app.gallery.errors import DatabaseUnavailable
from app.gallery.index import RankedTemplates
from app.gallery.index.protocol import checked

_BATCH = 5_000  # rows of one statement: 2.6 MB at 128 dimensions
_MOST_BY_GRAPH = 500  # rows that are asked of a graph; for more, every distance is computed
_LEAST_EF, _MOST_EF = 100, 1000  # candidates that a search of a graph keeps; pgvector takes no more


class PgvectorIndex:
    """A table of ids and vectors; the row of it in `storage` has the number of templates and the position.

    Writers of a table go one after another (an advisory lock until the end of the transaction), so the number is
    right, none waits for another in a ring, and what another process has written already is not written again.

    Up to a size every distance is computed; above it a graph finds the nearest, so a near one may be missed. The
    distances of those found are exact either way.
    """

    def __init__(self, connections: VectorConnections, builder: GraphBuilder, name: str, dimension: int) -> None:
        self.name = name
        self._connections = connections
        self.builder = builder
        self._dimension = dimension
        self._generation = -1
        table = sql.Identifier(SCHEMA, name)
        self._lock = sql.SQL("SELECT pg_advisory_xact_lock(hashtextextended({}, 0))").format(sql.Literal(name))
        self._upsert = sql.SQL(_UPSERT).format(table=table, name=sql.Literal(name))
        self._delete = sql.SQL(_DELETE).format(table=table, name=sql.Literal(name))
        self._nearest_of_all = sql.SQL(
            # Added to nothing, the distance is not what a graph is ordered by.
            "SELECT id, embedding FROM {} ORDER BY (embedding <-> %b) + 0 LIMIT %s"
        ).format(table)
        self._nearest_by_graph = sql.SQL("SELECT id, embedding FROM {} ORDER BY embedding <-> %b LIMIT %s").format(
            table
        )
        self._look_up = sql.SQL("SELECT id, embedding FROM {} WHERE id = ANY(%s::bigint[])").format(table)
        self._all_ids = sql.SQL("SELECT id FROM {} ORDER BY id").format(table)
        self._empty = sql.SQL("TRUNCATE {}").format(table)
        self._drop_graph = sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(SCHEMA, graph_name(name)))

    @property
    def dimension(self) -> int:
        """D."""
        return self._dimension

    def __len__(self) -> int:
        """Number of templates; kept, not counted."""
        with self._connections.one() as connection:
            return int(self._stored(connection, "templates")[0])

    def add(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """As `TemplateIndex.add`."""
        ids, vectors = last_of_each(ids, checked(embeddings, self._dimension, count=len(ids)))
        for first in range(0, len(ids), _BATCH):
            batch = slice(first, first + _BATCH)
            with self._writing() as connection:
                connection.execute(self._upsert, (ids[batch].tolist(), Vectors(vectors[batch])))

    def remove(self, ids: NDArray[np.int64]) -> int:
        """As `TemplateIndex.remove`."""
        removed = 0
        unique = np.unique(ids).tolist()
        for first in range(0, len(unique), _BATCH):
            with self._writing() as connection:
                (gone,) = _only(connection.execute(self._delete, (unique[first : first + _BATCH],)).fetchone())
            removed += int(gone)
        return removed

    def search(self, probes: NDArray[np.float32], count: int) -> list[RankedTemplates]:
        """As `TemplateIndex.search`."""
        vectors = checked(probes, self._dimension)
        if count < 1 or not len(vectors):
            return nothing_found(vectors)
        with self._connections.one() as connection:
            (size,) = self._stored(connection, "templates")
            wanted = min(count, int(size))
            by_graph = int(size) > self.builder.above and wanted <= _MOST_BY_GRAPH
            return [self._search_one(connection, probe, wanted, by_graph=by_graph) for probe in vectors]

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `TemplateIndex.vectors`."""
        wanted, places = np.unique(ids, return_inverse=True)
        found = np.full((len(wanted), self._dimension), np.nan, np.float32)
        with self._connections.one() as connection, connection.cursor(binary=True) as cursor:
            for first in range(0, len(wanted), _BATCH):
                cursor.execute(self._look_up, (wanted[first : first + _BATCH].tolist(),))
                there, rows = read_rows(cursor, self._dimension)
                found[np.searchsorted(wanted, there)] = rows
        return found[places]

    def ids(self) -> NDArray[np.int64]:
        """As `EngineIndex.ids`."""
        with self._connections.one() as connection, connection.cursor(binary=True) as cursor:
            return np.array([row[0] for row in cursor.execute(self._all_ids)], np.int64)

    def position(self) -> int:
        """As `SharedIndex.position`."""
        with self._connections.one() as connection:
            position, generation, templates = self._stored(connection, "position, generation, templates")
        self._generation = int(generation)
        self.builder.consider(self.name, templates=int(templates), dimension=self._dimension)
        return int(position)

    def set_position(self, revision: int) -> None:
        """As `SharedIndex.set_position`.

        After a `clear` only who has seen the new beginning can have filled the table since, so the position that
        another reports is passed over until then.
        """
        with self._writing() as connection:
            stored = connection.execute(
                "UPDATE storage SET position = %s WHERE name = %s AND position < %s "
                "AND (position >= 0 OR generation = %s) RETURNING templates",
                (revision, self.name, revision, self._generation),
            ).fetchone()
        if stored is not None:
            self.builder.consider(self.name, templates=int(stored[0]), dimension=self._dimension)

    def clear(self) -> None:
        """As `SharedIndex.clear`; others that serve the gallery find nothing until it is filled again."""
        self.builder.forget(self.name)
        with self._writing() as connection:
            connection.execute(self._drop_graph)  # one that grows with every row would make the filling slow
            connection.execute(self._empty)
            (generation,) = _only(
                connection.execute(
                    "UPDATE storage SET generation = generation + 1, position = -1, templates = 0 "
                    "WHERE name = %s RETURNING generation",
                    (self.name,),
                ).fetchone()
            )
        self._generation = int(generation)

    # -- inside

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction in which nobody else writes to the table."""
        with self._connections.one() as connection, connection.transaction():
            connection.execute(self._lock)
            yield connection

    def _stored(self, connection: Connection, columns: str) -> tuple[Any, ...]:
        query = sql.SQL("SELECT {} FROM storage WHERE name = %s").format(sql.SQL(columns))
        return _only(connection.execute(query, (self.name,)).fetchone())

    def _search_one(
        self, connection: Connection, probe: NDArray[np.float32], count: int, *, by_graph: bool
    ) -> RankedTemplates:
        if by_graph:
            found = self._search_graph(connection, probe, count)
            if len(found.ids) == count:
                return found
        with connection.cursor(binary=True) as cursor:
            cursor.execute(self._nearest_of_all, (Vector(probe), count))
            return ranked(*read_rows(cursor, self._dimension), probe)

    def _search_graph(self, connection: Connection, probe: NDArray[np.float32], count: int) -> RankedTemplates:
        """The nearest as a graph finds them; every distance is computed where there is no graph yet."""
        candidates = min(max(2 * count, _LEAST_EF), _MOST_EF)
        with connection.pipeline(), connection.transaction(), connection.cursor(binary=True) as cursor:
            cursor.execute(
                "SELECT set_config('hnsw.ef_search', %s, true), set_config('enable_seqscan', 'off', true)",
                (str(candidates),),
            )
            cursor.execute(self._nearest_by_graph, (Vector(probe), count))
            return ranked(*read_rows(cursor, self._dimension), probe)


def _only(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The row of a statement that has one; the table of positions lost it with somebody's hand on it."""
    if row is None:
        raise DatabaseUnavailable("the gallery's index is gone from the database; run `facegallery reindex`")
    return row


_UPSERT = """
WITH given AS (
    SELECT id, embedding FROM unnest(%s::bigint[], %b) AS given (id, embedding)
), changed AS (
    SELECT given.id, given.embedding, stored.id IS NULL AS is_new
    FROM given LEFT JOIN {table} AS stored ON stored.id = given.id
    WHERE stored.id IS NULL OR stored.embedding <> given.embedding
), written AS (
    INSERT INTO {table} (id, embedding) SELECT id, embedding FROM changed
    ON CONFLICT (id) DO UPDATE SET embedding = excluded.embedding
)
UPDATE storage SET templates = templates + (SELECT count(*) FROM changed WHERE is_new)
WHERE name = {name} AND EXISTS (SELECT FROM changed WHERE is_new)
"""

_DELETE = """
WITH gone AS (
    DELETE FROM {table} WHERE id = ANY(%s::bigint[]) RETURNING id
), counted AS (
    UPDATE storage SET templates = templates - (SELECT count(*) FROM gone)
    WHERE name = {name} AND EXISTS (SELECT FROM gone)
)
SELECT count(*) FROM gone
"""
