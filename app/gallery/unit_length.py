"""Which vectors count as L2-normalised."""

import numpy as np
from numpy.typing import NDArray

_TOLERANCE = 1e-3


def of_unit_length(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of some vectors have length 1 within 1e-3; one with a NaN has not.

    Everything that takes embeddings in asks this: squares that are added up in another order are rounded otherwise, and
    at the limit one place would take what the next refuses.

    Args:
        vectors: shape (N, D), float32, contiguous.

    Returns:
        Shape (N,).
    """
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    return np.asarray(np.abs(lengths - 1) < _TOLERANCE)  # false for NaN as well
