"""FAISS brute force over one array of embeddings: exact, no training, quick up to some tens of thousands."""

import faiss
import numpy as np
from numpy.typing import NDArray

from app.gallery.index.locking import ReadWriteLock
from app.gallery.index.protocol import RankedTemplates, checked

_FIRST_CAPACITY = 1024


class FlatIndex:
    """Rows without gaps: a removed row is filled with the last one, a full array grows by half.

    FAISS searches the array in place (`faiss.knn`). Its own flat index would shift all rows behind a removed one.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._rows = np.empty((_FIRST_CAPACITY, dimension), np.float32)
        self._ids = np.empty(_FIRST_CAPACITY, np.int64)
        self._row_of: dict[int, int] = {}
        self._lock = ReadWriteLock()

    @property
    def dimension(self) -> int:
        """D."""
        return self._dimension

    def __len__(self) -> int:
        """Number of templates."""
        return len(self._row_of)

    def add(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """As `TemplateIndex.add`."""
        vectors = checked(embeddings, self._dimension, count=len(ids))
        with self._lock.writing():
            for template_id, vector in zip(ids.tolist(), vectors, strict=True):
                row = self._row_of.setdefault(template_id, len(self._row_of))
                if row == len(self._rows):
                    self._grow()
                self._rows[row] = vector
                self._ids[row] = template_id

    def remove(self, ids: NDArray[np.int64]) -> int:
        """As `TemplateIndex.remove`."""
        removed = 0
        with self._lock.writing():
            for template_id in ids.tolist():
                row = self._row_of.pop(template_id, None)
                if row is None:
                    continue
                removed += 1
                last = len(self._row_of)
                if row != last:
                    self._rows[row] = self._rows[last]
                    self._ids[row] = self._ids[last]
                    self._row_of[int(self._ids[row])] = row
                self._rows[last] = 0  # an erased embedding does not stay in memory
        return removed

    def search(self, probes: NDArray[np.float32], count: int) -> list[RankedTemplates]:
        """As `TemplateIndex.search`."""
        vectors = checked(probes, self._dimension)
        with self._lock.reading():
            size = len(self._row_of)
            wanted = min(count, size)
            if not wanted or not len(vectors):
                return [RankedTemplates(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in vectors]
            _, rows = faiss.knn(vectors, self._rows[:size], wanted)
            ids = self._ids[rows]
            # FAISS expands the square of large batches, which loses the small distances.
            distances = np.linalg.norm(self._rows[rows] - vectors[:, None], axis=2)
        order = np.lexsort((ids, distances))
        ids, distances = np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)
        return [RankedTemplates(*pair) for pair in zip(ids, distances, strict=True)]

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `TemplateIndex.vectors`."""
        with self._lock.reading():
            rows = np.array([self._row_of.get(template_id, -1) for template_id in ids.tolist()], np.intp)
            found = self._rows[rows]
        found[rows < 0] = np.nan
        return found

    def _grow(self) -> None:
        capacity = len(self._rows) + len(self._rows) // 2
        rows = np.empty((capacity, self._dimension), np.float32)
        rows[: len(self._rows)] = self._rows
        ids = np.empty(capacity, np.int64)
        ids[: len(self._ids)] = self._ids
        self._rows, self._ids = rows, ids
