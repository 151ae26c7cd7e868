"""Product-quantised codes of four bits, searched by registers: one codebook for all segments of an index.

Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011; André, Kermarrec and Le Scouarnec,
"Quicker ADC", 2019, as FAISS builds them (`IndexPQFastScan`). The codes of a large segment lie in lists by its own
centroids, of which a search scans the nearest (Sivic and Zisserman, "Video Google", 2003; `IndexIVFPQFastScan`).
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Codes = Any
"""A `faiss.IndexPQFastScan` or `faiss.IndexIVFPQFastScan`, whose Python bindings have no types."""

LEAST_TRAINING = 1024
"""Fewest embeddings that a codebook is trained with; FAISS wants 39 for each of the 16 centroids."""

MOST_TRAINING = 20_480
"""More make training longer and the codes no better."""

BITS = 4
"""Of a code."""

_LISTS, _SCANNED = 256, 80  # lists of a segment, and those a search scans: a third of the rows, see docs/searching.md
_SMALL, _SMALL_LISTS, _SMALL_SCANNED = 2**17, 128, 48  # the same of one with fewer rows: choosing among many takes time
_ROUNDS = 10  # of k-means; more make the lists no better
_WHOLE = 16  # a search for more than this part of all rows scans all lists
_COMPONENTS = 4  # of an embedding for each code
_BLOCK = 128  # codes that lie together; a fifth faster than FAISS's 32 for one probe at a time


class Codebook:
    """Trained centroids; 128 components make 32 codes of four bits."""

    def __init__(self, empty: Codes) -> None:
        self.empty = empty

    @classmethod
    def train(cls, embeddings: NDArray[np.float32]) -> "Codebook":
        """Train with embeddings (N, D), float32, at least `LEAST_TRAINING`, in a quarter of a second."""
        dimension = embeddings.shape[1]
        empty = faiss.IndexPQFastScan(dimension, code_length(dimension), BITS, faiss.METRIC_L2, _BLOCK)
        empty.train(embeddings)
        return cls(empty)

    def no_codes(self) -> Codes:
        """Codes of no rows yet, to which `add` appends."""
        return faiss.clone_index(self.empty)

    def no_listed_codes(self, sample: NDArray[np.float32], size: int) -> Codes:
        """The same in lists, for a segment of so many rows and a sample (N, D) of them, at least `LEAST_TRAINING`."""
        centroids = faiss.IndexFlatL2(self.empty.d)
        parts, small = self.empty.pq.M, size < _SMALL
        lists, scanned = (_SMALL_LISTS, _SMALL_SCANNED) if small else (_LISTS, _SCANNED)
        listed: Codes = faiss.IndexIVFPQFastScan(centroids, self.empty.d, lists, parts, BITS, faiss.METRIC_L2)
        listed.by_residual = False  # one table of distances for all lists
        listed.pq = self.empty.pq
        listed.cp.niter = _ROUNDS
        listed.train_q1(len(sample), faiss.swig_ptr(sample), False, faiss.METRIC_L2)
        listed.is_trained = True
        listed.nprobe = scanned
        return listed


def scan(codes: Codes, probes: NDArray[np.float32], depth: int, *, all_lists: bool = False) -> NDArray[np.int64]:
    """Probable nearest rows (Q, depth) of some probes (Q, D), nearest first; -1 where codes leave rows out.

    That is where their distances are at the very end of the codes' scale.
    """
    ranked, rows = np.empty((len(probes), depth), np.float32), np.empty((len(probes), depth), np.int64)
    asked = len(probes), faiss.swig_ptr(probes), depth, faiss.swig_ptr(ranked), faiss.swig_ptr(rows)
    if not (_in_lists(codes) and (all_lists or depth * _WHOLE > codes.ntotal)):
        codes.search_c(*asked)
        if rows[:, -1].min() >= 0:
            return rows
    if _in_lists(codes):
        codes.search_c(*asked, _all_lists(codes))
    return rows


def _in_lists(codes: Codes) -> bool:
    return isinstance(codes, faiss.IndexIVFPQFastScan)


def _all_lists(codes: Codes) -> Any:
    parameters = faiss.IVFSearchParameters()
    parameters.nprobe = codes.nlist
    return parameters


def bytes_of(codes: Codes) -> int:
    """Memory that codes take; in lists each has its row's number, too."""
    if _in_lists(codes):
        return int(codes.ntotal * (codes.code_size + np.dtype(np.int64).itemsize))
    return int(codes.codes.size())


def codes_from(data: NDArray[np.uint8]) -> Codes:
    """Codes that `faiss.serialize_index` wrote.

    Raises:
        ValueError: it wrote something else.
        RuntimeError: FAISS cannot read it.
    """
    codes = faiss.deserialize_index(data)
    if not isinstance(codes, faiss.IndexPQFastScan | faiss.IndexIVFPQFastScan):
        raise ValueError("it is no index of codes")
    return codes


def can_code(dimension: int) -> bool:
    """Whether codes tell embeddings of that length apart: those of a prime number of components share one code."""
    return code_length(dimension) * 2 * _COMPONENTS >= dimension


def code_length(dimension: int) -> int:
    """Codes for each embedding: one for four components, more for short embeddings, and all of the same length."""
    wanted = max(dimension // _COMPONENTS, 16)
    return next(parts for parts in range(wanted, 0, -1) if dimension % parts == 0)
