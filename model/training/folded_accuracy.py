"""Accuracy over folds of pairs, the protocol of LFW's view 2."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FoldedAccuracy:
    """Share of pairs told right, each fold at the threshold that is best on the other folds.

    ``deviation`` is the sample standard deviation over the folds, ``standard_error`` that of their mean (Huang and
    Learned-Miller, UM-CS-2014-003); ``distances`` are the thresholds, fold by fold.
    """

    pairs: int
    accuracy: float
    deviation: float
    standard_error: float
    fold_accuracies: tuple[float, ...]
    distances: tuple[float, ...]


def folded_accuracy(
    distances: NDArray[np.float32], mated: NDArray[np.bool_], folds: NDArray[np.int64]
) -> FoldedAccuracy:
    """Return the accuracy over the folds.

    Args:
        distances: of the pairs, shape (P,); infinite where a photo has no face, which no threshold accepts.
        mated: whether the two photos of a pair show one person, shape (P,).
        folds: the fold of each pair, shape (P,); at least two different ones.
    """
    accuracies, thresholds = [], []
    for fold in np.unique(folds):
        held_out = folds == fold
        threshold = best_threshold(distances[~held_out], mated[~held_out])
        accuracies.append(float(np.mean((distances[held_out] <= threshold) == mated[held_out])))
        thresholds.append(threshold)
    deviation = float(np.std(accuracies, ddof=1))
    return FoldedAccuracy(
        pairs=len(distances),
        accuracy=float(np.mean(accuracies)),
        deviation=deviation,
        standard_error=deviation / len(accuracies) ** 0.5,
        fold_accuracies=tuple(accuracies),
        distances=tuple(thresholds),
    )


def best_threshold(distances: NDArray[np.float32], mated: NDArray[np.bool_]) -> float:
    """Return the threshold that tells most pairs right: between two distances, the middle one of equally good ones."""
    finite = np.isfinite(distances)
    values, places = np.unique(distances[finite], return_inverse=True)
    gain = np.zeros(len(values) + 1)
    np.add.at(gain, places + 1, np.where(mated[finite], 1, -1))
    right = np.cumsum(gain)
    best = np.flatnonzero(right == right.max())
    chosen = int(best[(len(best) - 1) // 2])
    edges = np.concatenate([[-1.0], values, [3.0]])
    return float(edges[chosen] + edges[chosen + 1]) / 2
