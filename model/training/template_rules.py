"""How several templates of a subject make one distance to a probe."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.training.pair_distances import distances_between

_NO_DIRECTION = 1e-4  # length of a sum of unit vectors that cancel each other


class TemplateRule(Protocol):
    """How the templates of a subject make one distance."""

    def __call__(
        self, probes: NDArray[np.float32], templates: NDArray[np.float32], starts: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the distances, shape (P, S), of P probes to S subjects; s owns the templates from ``starts[s]`` on."""


def best_template(
    probes: NDArray[np.float32], templates: NDArray[np.float32], starts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Let the nearest template speak for its subject."""
    return np.minimum.reduceat(distances_between(probes, templates), starts, axis=1)


def mean_of_templates(
    probes: NDArray[np.float32], templates: NDArray[np.float32], starts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Let the L2-normalised mean of the templates speak; where they cancel each other, the nearest one."""
    sums = np.add.reduceat(templates, starts, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    distances = distances_between(probes, sums / np.maximum(lengths, _NO_DIRECTION))
    cancelled = lengths[:, 0] <= _NO_DIRECTION
    if cancelled.any():
        distances[:, cancelled] = best_template(probes, templates, starts)[:, cancelled]
    return distances


def mean_of_scores(
    probes: NDArray[np.float32], templates: NDArray[np.float32], starts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Take the mean s of the cosines to the nearest template and to the mean template, as the distance √(2 − 2·s)."""
    best = best_template(probes, templates, starts)
    mean = mean_of_templates(probes, templates, starts)
    both: NDArray[np.float32] = np.sqrt((best * best + mean * mean) / 2)  # 2 − 2·cosine is the square of a distance
    return both


RULES: dict[str, TemplateRule] = {"best": best_template, "mean": mean_of_templates, "both": mean_of_scores}
"""The rules by their names in the service's settings."""

DEFAULT_RULE = "both"
"""The one that the service decides by if nothing else is set."""
