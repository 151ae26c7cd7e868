"""Embeddings that lie as the shipped extractor's do, as many as wanted, without a photo.

A person is a point around the mean of all people, drawn from the covariance between people; a photo of a person is
drawn around that point from the covariance within people, wider for some photos than for others, as some are poor.
Families of look-alikes share a part of their points, without which the closest of non-mated pairs would be too far
apart. `index_fit.py` measures all this on Labeled Faces in the Wild and writes `lfw_embeddings.npz`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEMPLATES = 3  # of each subject
FITTED = Path(__file__).with_name("lfw_embeddings.npz")


@dataclass(frozen=True, slots=True)
class Population:
    """What embeddings are drawn from.

    Args:
        mean: of all people, (D,).
        between: root of the covariance of people, (D, D).
        within: root of the covariance of one person's photos, (D, D).
        spread: standard deviation of the logarithm of a photo's own width.
        width: factor of all photos' widths.
        families: number of families; two people are of one family with one over this as the probability.
        kinship: share of the variance between people that a family has in common.
    """

    mean: NDArray[np.float32]
    between: NDArray[np.float32]
    within: NDArray[np.float32]
    spread: float
    width: float
    families: int
    kinship: float

    @classmethod
    def fitted(cls, path: Path = FITTED) -> "Population":
        """As measured on Labeled Faces in the Wild."""
        with np.load(path) as kept:
            arrays = [kept[name] for name in ("mean", "between", "within")]
            numbers = [kept[name].item() for name in ("spread", "width", "families", "kinship")]
        return cls(*arrays, *numbers)

    def save(self, path: Path) -> None:
        """Write the file that `fitted` reads."""
        np.savez_compressed(
            path,
            mean=self.mean,
            between=self.between,
            within=self.within,
            spread=self.spread,
            width=self.width,
            families=self.families,
            kinship=self.kinship,
        )

    def draw(self, people: int, photos: int, *, seed: int) -> NDArray[np.float32]:
        """Embeddings (people, photos, D), float32, L2-normalised; the families are the same for every seed."""
        random = np.random.default_rng(seed)
        dimension = len(self.mean)
        families = np.random.default_rng(0).standard_normal((self.families, dimension), np.float32)
        points = random.standard_normal((people, dimension), np.float32) * np.float32((1 - self.kinship) ** 0.5)
        points += families[random.integers(self.families, size=people)] * np.float32(self.kinship**0.5)
        deviations = random.standard_normal((people, photos, dimension), np.float32) @ self.within.T
        own_width = self.spread * random.standard_normal((people, photos, 1), np.float32) - self.spread**2
        vectors = (self.mean + points @ self.between.T)[:, None] + deviations * (self.width * np.exp(own_width))
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        return np.asarray(vectors, np.float32)
