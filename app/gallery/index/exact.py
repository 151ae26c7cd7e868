"""The reference: every distance computed by numpy, nothing clever."""

import threading

import numpy as np
from numpy.typing import NDArray

from app.gallery.index.protocol import RankedTemplates, checked


class ExactIndex:
    """A dictionary of embeddings; other kinds are tested against it."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._embeddings: dict[int, NDArray[np.float32]] = {}
        self._lock = threading.Lock()

    @property
    def dimension(self) -> int:
        """D."""
        return self._dimension

    def __len__(self) -> int:
        """Number of templates."""
        return len(self._embeddings)

    def add(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """As `TemplateIndex.add`."""
        vectors = checked(embeddings, self._dimension, count=len(ids))
        with self._lock:
            self._embeddings.update(zip(ids.tolist(), vectors.copy(), strict=True))

    def remove(self, ids: NDArray[np.int64]) -> int:
        """As `TemplateIndex.remove`."""
        with self._lock:
            return sum(self._embeddings.pop(template_id, None) is not None for template_id in ids.tolist())

    def search(
        self,
        probes: NDArray[np.float32],
        count: int,
        *,
        thorough: bool = False,  # noqa: ARG002 - it always is
    ) -> list[RankedTemplates]:
        """As `TemplateIndex.search`."""
        vectors = checked(probes, self._dimension)
        with self._lock:
            ids = np.fromiter(self._embeddings, np.int64, len(self._embeddings))
            stored = np.array(list(self._embeddings.values()), np.float32).reshape(-1, self._dimension)
        found = []
        for probe in vectors:
            distances = np.linalg.norm(stored - probe, axis=1)
            order = np.lexsort((ids, distances))[:count]
            found.append(RankedTemplates(ids[order], distances[order]))
        return found

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `TemplateIndex.vectors`."""
        found = np.full((len(ids), self._dimension), np.nan, np.float32)
        with self._lock:
            for row, template_id in enumerate(ids.tolist()):
                found[row] = self._embeddings.get(template_id, np.nan)
        return found
