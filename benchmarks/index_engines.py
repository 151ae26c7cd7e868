"""What `index.py` compares: each engine behind the same few calls, in one table that more can be added to."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from index_servers import Milvus, MilvusServer, Postgresql
from numpy.typing import NDArray

from app.gallery.index import COMPRESS_FROM, SegmentedIndex

DIMENSION = 128
_CHUNK = 65_536
_HASHTABLE = 2  # FAISS's kinds of direct maps

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Engine(Protocol):
    """A store of embeddings by id.

    `removes` tells whether templates can be removed; `bytes_held` what is held outside of the process, if anything is.
    """

    removes: bool

    def build(self, ids: Ids, vectors: Vectors) -> None:
        """Take all templates and be ready."""

    def search(self, probes: Vectors, count: int) -> Ids:
        """Ids (Q, count) of the nearest templates, nearest first; -1 where there are none."""

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Take more."""

    def remove(self, ids: Ids) -> None:
        """Remove some."""

    def bytes_held(self) -> int | None:
        """Bytes in a server or a file; None: the process's own memory tells."""

    def close(self) -> None:
        """Stop what was started."""


class Ours:
    """The index of this project, kept up until nothing is due."""

    removes = True

    def __init__(self, compress_from: int | None, *, half: bool = False) -> None:
        self._options: dict[str, Any] = {"compress_from": compress_from, "half": half}
        self.index = SegmentedIndex(DIMENSION, **self._options)

    def build(self, ids: Ids, vectors: Vectors) -> None:
        """As `Engine`."""
        for start in range(0, len(ids), _CHUNK):
            self.index.add(ids[start : start + _CHUNK], vectors[start : start + _CHUNK])
        while self.index.maintain():
            pass

    def search(self, probes: Vectors, count: int) -> Ids:
        """As `Engine`."""
        return np.stack([found.ids for found in self.index.search(probes, count)])

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """As `Engine`."""
        self.index.add(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """As `Engine`."""
        self.index.remove(ids)

    def restart(self, folder: Path, probe: Vectors) -> tuple[float, float]:
        """Seconds to write a snapshot, and to answer the first probe from it."""
        start = time.perf_counter()
        self.index.save(folder)
        saved = time.perf_counter()
        loaded = SegmentedIndex.load(folder, DIMENSION, **self._options)
        loaded.search(probe, 1)
        return saved - start, time.perf_counter() - saved

    def bytes_held(self) -> int | None:
        """As `Engine`."""
        return None

    def close(self) -> None:
        """As `Engine`."""


class Numpy:
    """One matrix product."""

    removes = True

    def build(self, ids: Ids, vectors: Vectors) -> None:
        """As `Engine`."""
        self._ids, self._vectors = ids.copy(), np.array(vectors)

    def search(self, probes: Vectors, count: int) -> Ids:
        """As `Engine`."""
        cosines = probes @ self._vectors.T
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(cosines, nearest, 1), axis=1)
        return self._ids[np.take_along_axis(nearest, order, 1)]

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """As `Engine`."""
        self._ids, self._vectors = np.concatenate([self._ids, ids]), np.concatenate([self._vectors, vectors])

    def remove(self, ids: Ids) -> None:
        """As `Engine`."""
        kept = ~np.isin(self._ids, ids)
        self._ids, self._vectors = self._ids[kept], self._vectors[kept]

    def bytes_held(self) -> int | None:
        """As `Engine`."""
        return None

    def close(self) -> None:
        """As `Engine`."""


class Faiss:
    """An index of FAISS with ids."""

    def __init__(self, make: Callable[[int], Any], *, removes: bool = True, with_map: bool = True) -> None:
        self._make, self._with_map, self.removes = make, with_map, removes

    def build(self, ids: Ids, vectors: Vectors) -> None:
        """As `Engine`."""
        index = self._make(len(ids))
        if not index.is_trained:
            step = max(1, len(vectors) // (40 * 4 * int(len(vectors) ** 0.5)))
            index.train(np.ascontiguousarray(vectors[::step]))
        self._index = faiss.IndexIDMap2(index) if self._with_map else index
        for start in range(0, len(ids), _CHUNK):
            self._index.add_with_ids(np.array(vectors[start : start + _CHUNK]), ids[start : start + _CHUNK])

    def search(self, probes: Vectors, count: int) -> Ids:
        """As `Engine`."""
        found: Ids = self._index.search(probes, count)[1]
        return found

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """As `Engine`."""
        self._index.add_with_ids(vectors, ids)

    def remove(self, ids: Ids) -> None:
        """As `Engine`."""
        self._index.remove_ids(faiss.IDSelectorBatch(ids) if self._with_map else faiss.IDSelectorArray(ids))

    def bytes_held(self) -> int | None:
        """As `Engine`."""
        return None

    def close(self) -> None:
        """As `Engine`."""


def _hnsw(_size: int) -> Any:
    index = faiss.IndexHNSWFlat(DIMENSION, 32)
    index.hnsw.efSearch = 128
    return index


def _ivf(size: int) -> Any:
    index: Any = faiss.IndexIVFFlat(faiss.IndexFlatL2(DIMENSION), DIMENSION, 4 * int(size**0.5))
    index.nprobe = 32
    index.set_direct_map_type(_HASHTABLE)
    return index


@dataclass(frozen=True, slots=True)
class Entry:
    """How an engine is made, the most templates it is measured with, and whether more cores than one may build it."""

    make: Callable[[], Engine]
    largest: int = 10**9
    built_on_more: bool = False


OURS: dict[str, Callable[[], Ours]] = {
    "compressed": lambda: Ours(COMPRESS_FROM["compressed"]),
    "compressed, half": lambda: Ours(COMPRESS_FROM["compressed"], half=True),
    "flat": lambda: Ours(None),
}
"""The kinds of this project's index; the first two are what `auto` grows into."""
ENGINES: dict[str, Entry] = {
    **{name: Entry(make) for name, make in OURS.items()},
    "numpy": Entry(Numpy),
    "FAISS flat": Entry(lambda: Faiss(lambda _: faiss.IndexFlatL2(DIMENSION)), built_on_more=True),
    "FAISS flat, half": Entry(
        lambda: Faiss(lambda _: faiss.IndexScalarQuantizer(DIMENSION, faiss.ScalarQuantizer.QT_fp16)),
        built_on_more=True,
    ),
    "FAISS HNSW32": Entry(lambda: Faiss(_hnsw, removes=False), built_on_more=True),
    "FAISS IVF": Entry(lambda: Faiss(_ivf, with_map=False), largest=1_000_000, built_on_more=True),
    "pgvector exact": Entry(lambda: Postgresql(hnsw=False), built_on_more=True),
    "pgvector HNSW": Entry(lambda: Postgresql(hnsw=True), built_on_more=True),
    "Milvus lite": Entry(Milvus),
}
if find_spec("milvus"):
    ENGINES["Milvus server"] = Entry(MilvusServer, built_on_more=True)
"""By the name in the tables."""
