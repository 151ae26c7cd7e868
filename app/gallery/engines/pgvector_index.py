"""One gallery's vectors in a pgvector table."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection, sql

from app.gallery.engines.hnsw import SCHEMA, GraphBuilder
from app.gallery.engines.postgresql import Vector, VectorConnections, Vectors, read_rows
from app.gallery.engines.protocol import THOROUGHLY, Filling, last_of_each, nothing_found, ranked
from app.gallery.errors import DatabaseUnavailable
from app.gallery.index import RankedTemplates
from app.gallery.index.protocol import SetBack, checked, leads_on
from app.gallery.points import Point

_BATCH = 5_000  # rows of one statement: 2.6 MB at 128 dimensions
_MOST_BY_GRAPH = 500  # rows that are asked of a graph; for more, every distance is computed
_LEAST_EF, _MOST_EF = 100, 1000  # templates that a search of a graph keeps; pgvector takes no more


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
        self._told = -1  # the revision up to which it was, through this object
        self._filling = Filling()
        self._size_seen = 0  # chooses how to search; either way is right at any size
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
        self._next_ids = sql.SQL("SELECT id FROM {} WHERE id > %s ORDER BY id LIMIT %s").format(table)

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

    def search(self, probes: NDArray[np.float32], count: int, *, thorough: bool = False) -> list[RankedTemplates]:
        """As `TemplateIndex.search`."""
        vectors = checked(probes, self._dimension)
        if count < 1 or not len(vectors):
            return nothing_found(vectors)
        by_graph = self._size_seen > self.builder.above and count <= _MOST_BY_GRAPH
        kept = min(max((THOROUGHLY if thorough else 1) * 2 * count, _LEAST_EF), _MOST_EF) if by_graph else None
        with self._connections.one() as connection:
            found, size = self._search_together(connection, vectors, count, kept=kept)
            for number, one in enumerate(found):
                if by_graph and len(one.ids) < min(count, size):  # the graph led nowhere else
                    ((found[number],), _) = self._search_together(
                        connection, vectors[number : number + 1], count, kept=None
                    )
        self._size_seen = size
        return found

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
        """As `EngineIndex.ids`; in pieces, as ten million at once are gigabytes before they are an array."""
        found, last = [np.empty(0, np.int64)], -1
        with self._connections.one() as connection, connection.cursor(binary=True) as cursor:
            while rows := cursor.execute(self._next_ids, (last, _BATCH)).fetchall():
                found.append(np.fromiter((row[0] for row in rows), np.int64, len(rows)))
                last = rows[-1][0]
        return np.concatenate(found)

    def position(self) -> int:
        """As `SharedIndex.position`."""
        with self._connections.one() as connection:
            return int(self._stored(connection, "position")[0])

    def point(self) -> Point:
        """As `SharedIndex.point`."""
        with self._connections.one() as connection:
            position, mark, generation, templates = self._stored(connection, "position, mark, generation, templates")
        self._generation, self._size_seen = int(generation), int(templates)
        self.builder.consider(self.name, templates=int(templates), dimension=self._dimension)
        return Point(int(position), int(mark))

    def set_position(self, revision: int, mark: int = 0, *, trail: Mapping[int, int] | None = None) -> Point:
        """As `SharedIndex.set_position`.

        Of a table that was made anew only who has seen the new beginning can have filled it, so the position that
        another reports is passed over until then.
        """
        with self._writing() as connection:
            present = Point(*self._stored(connection, "position, mark"))
            if not leads_on(present, trail):
                return present
            stored = connection.execute(
                "UPDATE storage SET position = %s, mark = %s WHERE name = %s AND position < %s "
                "AND (position >= 0 OR generation = %s) RETURNING templates",
                (revision, mark, self.name, revision, self._generation),
            ).fetchone()
        if stored is not None:
            present = Point(revision, mark)
            self._size_seen = int(stored[0])
            self.builder.consider(self.name, templates=self._size_seen, dimension=self._dimension)
        self._told = max(self._told, min(revision, present.revision))
        return present

    def put_position(self, revision: int, mark: int = 0) -> None:
        """As `SharedIndex.put_position`; passed over where the table was made anew, as `set_position`."""
        with self._writing() as connection:
            put = connection.execute(
                "UPDATE storage SET position = %s, mark = %s WHERE name = %s AND (position >= 0 OR generation = %s)",
                (revision, mark, self.name, self._generation),
            ).rowcount
        if put:
            self._told = revision

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

    def _search_together(
        self, connection: Connection, probes: NDArray[np.float32], count: int, *, kept: int | None
    ) -> tuple[list[RankedTemplates], int]:
        """The nearest of each probe and the number of templates, asked for in one go, which is one transaction.

        Args:
            connection: to ask.
            probes: as for `search`.
            count: as for `search`.
            kept: templates that a search of the graph keeps; None, or where there is no graph yet: every distance is
                computed.

        Raises:
            DatabaseUnavailable: another process fills a table anew that somebody had removed.
            SetBack: the server has lost what was written last, or that process has died.
        """
        told = self._told
        query = self._nearest_of_all if kept is None else self._nearest_by_graph
        with ExitStack() as cursors:
            with connection.pipeline():
                state = connection.execute(
                    "SELECT templates, position, generation FROM storage WHERE name = %s", (self.name,)
                )
                if kept is not None:
                    connection.execute(_BY_GRAPH, (str(kept),))
                searches = [cursors.enter_context(connection.cursor(binary=True)) for _ in probes]
                for cursor, probe in zip(searches, probes, strict=True):
                    cursor.execute(query, (Vector(probe), count))
            templates, position, generation = _only(state.fetchone())
            if position < 0 and generation != self._generation:
                self._filling.meet(generation, templates)
            if position < told:
                raise SetBack
            pairs = zip(searches, probes, strict=True)
            return [ranked(*read_rows(cursor, self._dimension), probe) for cursor, probe in pairs], int(templates)


def _only(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The row of a statement that has one; the table of positions lost it with somebody's hand on it."""
    if row is None:
        raise DatabaseUnavailable("the gallery's index is gone from the database; run `facegallery reindex`")
    return row


_BY_GRAPH = "SELECT set_config('hnsw.ef_search', %s, true), set_config('enable_seqscan', 'off', true)"

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
