"""One gallery's vectors in a Milvus collection."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.gallery.engines.milvus_client import MilvusClient
from app.gallery.engines.milvus_position import STRONG, PositionRow
from app.gallery.engines.protocol import THOROUGHLY, Filling, last_of_each, nothing_found, ranked
from app.gallery.errors import DatabaseUnavailable
from app.gallery.index import RankedTemplates
from app.gallery.index.protocol import SetBack, checked, leads_on
from app.gallery.points import BEFORE, Point

_OWN = "Session"
"""Reads see what this process has added; they need not wait where it has added nothing."""

_BATCH = 5_000  # rows of one call: 2.6 MB at 128 dimensions
_MOST_FOUND = 16_384  # what Milvus answers at most for a probe
_MOST_ROWS = 100_000  # of one answer, for all its probes together
_ALL = "id >= 0"
_LEAST_EF, _MOST_EF = 200, 32_768  # templates that a search of a graph keeps; Milvus takes no more
_LOOK_SECONDS = 1.0  # between two looks of searches whether the collection was made anew


class MilvusIndex:
    """A collection of ids and vectors; its row in the collection of positions says how far it is true.

    Milvus has no transactions. Adding and removing may be repeated, so a process that dies in between leaves rows that
    the next one writes again; and a position that two processes set at once may end as the lower one, which only makes
    the next that looks replay changes again.
    """

    def __init__(
        self,
        client: MilvusClient,
        name: str,
        dimension: int,
        *,
        errors: Callable[[], AbstractContextManager[None]],
        position_lock: threading.Lock,
        timeout: float,
    ) -> None:
        self.name = name
        self.client = client
        self._dimension = dimension
        self._client_errors = errors
        self._position_lock = position_lock
        self._timeout = timeout
        self._row = PositionRow(client, name, timeout=timeout)
        self._generation = ""
        self._told = BEFORE  # where it was when it was last told something through this object
        self._filling = Filling()
        self._to_be_seen, self._seen = 1, 0  # what was there before this was opened, and each removal since
        self._next_look = 0.0
        self._doubts, self._dispelled = 0, 0  # each reason for a look that cannot wait, and those before the last look
        self._there = 0  # templates that a search has found, and that were not removed since

    @property
    def dimension(self) -> int:
        """D."""
        return self._dimension

    def __len__(self) -> int:
        """Number of templates."""
        with self._errors():
            (row,) = self._query(filter="", output_fields=["count(*)"])
        return int(row["count(*)"])

    def add(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """As `TemplateIndex.add`."""
        ids, vectors = last_of_each(ids, checked(embeddings, self._dimension, count=len(ids)))
        for first in range(0, len(ids), _BATCH):
            batch = slice(first, first + _BATCH)
            rows = [
                {"id": template_id, "embedding": vector}
                for template_id, vector in zip(ids[batch].tolist(), vectors[batch], strict=True)
            ]
            with self._errors():
                self.client.upsert(self.name, rows, timeout=self._timeout)

    def remove(self, ids: NDArray[np.int64]) -> int:
        """As `TemplateIndex.remove`; Milvus does not say which were there, so they are looked for before.

        All are deleted, there or not: one that is being added by a call which its caller has given up may be late.
        """
        removed, unique = 0, np.unique(ids)
        self._there = max(0, self._there - len(unique))
        try:
            for batch in _batches(unique):
                with self._errors():
                    removed += len(self._query(ids=batch, output_fields=["id"]))
                    self.client.delete(self.name, ids=batch, timeout=self._timeout)
        finally:
            self._to_be_seen += 1
        return removed

    def search(self, probes: NDArray[np.float32], count: int, *, thorough: bool = False) -> list[RankedTemplates]:
        """As `TemplateIndex.search`; where Milvus would not answer with so many, all vectors are read instead.

        Every process writes here each change that it follows, so it need not wait for what others write: that takes a
        server some tenths of a second for each search. Milvus does not count removals as own writes.
        """
        vectors = checked(probes, self._dimension)
        if count < 1 or not len(vectors):
            return nothing_found(vectors)
        kept = min(max((THOROUGHLY if thorough else 1) * 4 * count, _LEAST_EF), _MOST_EF)
        self._check_filled()
        found = self._nearest(vectors, count, kept=kept)
        if _fewest(found) < min(count, self._there):  # as where the collection was made anew since the last look
            self._doubts += 1
            self._check_filled()
            found = self._nearest(vectors, count, kept=kept)
        fewest = _fewest(found)
        self._there = fewest if fewest < count else max(self._there, fewest)
        return found

    def _nearest(self, vectors: NDArray[np.float32], count: int, *, kept: int) -> list[RankedTemplates]:
        if count > _MOST_FOUND:
            count = min(count, len(self))
            if count > _MOST_FOUND:
                return self._search_all(vectors, count)
        if not count:
            return nothing_found(vectors)
        to_be_seen = self._to_be_seen
        consistency = self._consistency
        found: list[RankedTemplates] = []
        at_once = max(1, _MOST_ROWS // count)
        for first in range(0, len(vectors), at_once):
            some = vectors[first : first + at_once]
            with self._errors():
                answers = self.client.search(
                    self.name,
                    some,
                    limit=count,
                    anns_field="embedding",
                    search_params={"metric_type": "L2", "params": {"ef": kept}},
                    output_fields=["embedding"],
                    consistency_level=consistency,
                    timeout=self._timeout,
                )
                for probe, hits in zip(some, answers, strict=True):
                    ids = np.array([hit["id"] for hit in hits], np.int64)
                    stored = np.array([hit["entity"]["embedding"] for hit in hits], np.float32)
                    found.append(ranked(ids, stored.reshape(len(ids), self._dimension), probe))
        self._seen = max(self._seen, to_be_seen)
        return found

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `TemplateIndex.vectors`; a search asks for some that it has found, and waits no more than there."""
        wanted, places = np.unique(ids, return_inverse=True)
        found = np.full((len(wanted), self._dimension), np.nan, np.float32)
        for batch in _batches(wanted):
            with self._errors():
                for row in self._query(self._consistency, ids=batch, output_fields=["id", "embedding"]):
                    found[np.searchsorted(wanted, row["id"])] = row["embedding"]
        return found[places]

    def ids(self) -> NDArray[np.int64]:
        """As `EngineIndex.ids`."""
        blocks = [np.array([row["id"] for row in rows], np.int64) for rows in self._everything(["id"])]
        return np.sort(np.concatenate([np.empty(0, np.int64), *blocks]))

    def position(self) -> int:
        """As `SharedIndex.position`."""
        with self._errors():
            point, _ = self._row.read(_OWN)
        return point.revision

    def point(self) -> Point:
        """As `SharedIndex.point`."""
        with self._errors():
            point, self._generation = self._row.read()
        return point

    def set_position(self, revision: int, mark: int = 0, *, trail: Mapping[int, int] | None = None) -> Point:
        """As `SharedIndex.set_position`.

        Of a collection that was made anew only who has seen the new beginning can have filled it, so the position that
        another reports is passed over until then.
        """
        with self._position_lock, self._errors():
            present, generation = self._row.read()
            known = present.revision >= 0 or generation == self._generation
            if not known or not leads_on(present, trail):
                return present
            if revision > present.revision:
                present = Point(revision, mark)
                self._row.write(present, generation)
            self._told = present
            if generation == self._generation:
                self._next_look = time.monotonic() + _LOOK_SECONDS
        return present

    def put_position(self, revision: int, mark: int = 0) -> None:
        """As `SharedIndex.put_position`; passed over where the collection was made anew."""
        with self._position_lock, self._errors():
            present, generation = self._row.read()
            if present.revision >= 0 or generation == self._generation:
                self._row.write(Point(revision, mark), generation)
                self._told = Point(revision, mark)

    def begin(self) -> None:
        """Remember that the collection, which is about to be made, holds nothing yet.

        Whoever knew one of that name before does not declare this one true, see `set_position`.
        """
        with self._position_lock, self._errors():
            self._row.begin()

    # -- inside

    @property
    def _consistency(self) -> str:
        """What a read waits for: all that others have written, until a search has seen it, and then for its own."""
        return STRONG if self._seen < self._to_be_seen else _OWN

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """As the client's; what failed, as the collection was gone, may find it made anew the next time."""
        try:
            with self._client_errors():
                yield
        except DatabaseUnavailable:
            self._doubts += 1
            raise

    def _check_filled(self) -> None:
        """Have nobody be unknown because another process fills the collection anew, which somebody had removed.

        As long as there is a doubt every search looks: none is answered while another one's look is under way.

        Raises:
            DatabaseUnavailable: one does.
            SetBack: it has died, the server has lost what was written last, another process has overtaken that with
                less, or the collection is where this process has not met it: another has brought it on, or it is of a
                time that the database has undone.
        """
        told, doubts = self._told, self._doubts
        doubtful = doubts > self._dispelled
        if not doubtful and time.monotonic() < self._next_look:
            return
        with self._errors():
            present, generation = self._row.read(STRONG if doubtful else _OWN)
            if generation != self._generation or present.revision < told.revision:  # or that is old
                present, generation = self._row.read()
            if generation != self._generation:
                if present.revision < 0:
                    self._filling.meet(generation, self._so_far())
                self._generation = generation
                self._to_be_seen += 1  # what another has filled it with
        self._dispelled = max(self._dispelled, doubts)
        if present not in {told, self._told}:  # it may have been told more meanwhile
            if present.revision < told.revision:
                self._to_be_seen += 1  # what another may tell it again
            self._next_look = 0.0  # of searches that have not heard of it
            raise SetBack
        self._next_look = time.monotonic() + _LOOK_SECONDS

    def _so_far(self) -> int:
        """How many templates there are; -1 where the collection is not there yet."""
        with suppress(DatabaseUnavailable):
            return len(self)
        return -1

    def _query(self, consistency: str = STRONG, **what: Any) -> list[dict[str, Any]]:
        rows = self.client.query(self.name, consistency_level=consistency, timeout=self._timeout, **what)
        return list(rows)

    def _search_all(self, probes: NDArray[np.float32], count: int) -> list[RankedTemplates]:
        """Exact, by reading every vector; the nearest so far are kept."""
        found = nothing_found(probes)
        for rows in self._everything(["id", "embedding"]):
            ids = np.array([row["id"] for row in rows], np.int64)
            stored = np.array([row["embedding"] for row in rows], np.float32)
            for number, (probe, nearest) in enumerate(zip(probes, found, strict=True)):
                both = np.concatenate([nearest.ids, ids])
                distances = np.concatenate([nearest.distances, np.linalg.norm(stored - probe, axis=1)])
                order = np.lexsort((both, distances))[:count]
                found[number] = RankedTemplates(both[order], distances[order])
        return found

    def _everything(self, fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        """All rows in blocks."""
        with self._errors():
            rows = self.client.query_iterator(
                self.name,
                batch_size=_BATCH,
                filter=_ALL,
                output_fields=fields,
                consistency_level=STRONG,
                timeout=self._timeout,
            )
            try:
                while block := rows.next():
                    yield block
            finally:
                rows.close()


def _fewest(found: list[RankedTemplates]) -> int:
    """How many templates were found for each probe at least."""
    return min(len(one.ids) for one in found)


def _batches(ids: NDArray[np.int64]) -> Iterator[list[int]]:
    for first in range(0, len(ids), _BATCH):
        yield ids[first : first + _BATCH].tolist()
