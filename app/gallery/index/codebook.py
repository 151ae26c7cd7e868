"""Product-quantised codes of four bits, searched by registers: one codebook for all segments of an index.

Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011; André, Kermarrec and Le Scouarnec,
"Quicker ADC", 2019, as FAISS builds them (`IndexPQFastScan`).
"""

import faiss
import numpy as np
from numpy.typing import NDArray

from app.gallery.index.rows import Codes

LEAST_TRAINING = 1024
"""Fewest embeddings that a codebook is trained with; FAISS wants 39 for each of the 16 centroids."""

MOST_TRAINING = 20_480
"""More make training longer and the codes no better."""

BITS = 4
"""Of a code."""

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
        empty.train(np.ascontiguousarray(embeddings, np.float32))
        return cls(empty)

    def no_codes(self) -> Codes:
        """Codes of no rows yet, to which `add` appends."""
        return faiss.clone_index(self.empty)


def code_length(dimension: int) -> int:
    """Codes for each embedding: one for four components, more for short embeddings, and all of the same length."""
    wanted = max(dimension // _COMPONENTS, min(dimension, 16))
    return next(parts for parts in range(wanted, 0, -1) if dimension % parts == 0)
