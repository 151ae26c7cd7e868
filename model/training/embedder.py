"""What evaluation asks of an extractor: its own way of cutting a face out of a photo, and embeddings of such crops."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.alignment import align_face
from model.detector import Face
from model.extractor import Extractor


class Embedder(Protocol):
    """An extractor with the alignment that it was trained with; safe to share between threads."""

    @property
    def identity(self) -> str:
        """Name and digest."""

    @property
    def dimension(self) -> int:
        """Length of an embedding."""

    def align(self, pixels: NDArray[np.uint8], face: Face) -> NDArray[np.uint8]:
        """Cut a face out of a photo (height, width, 3): (S, S, 3), uint8, RGB, S the embedder's own."""

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed crops (N, S, S, 3): (N, dimension), float32, each of length 1."""


class NetworkEmbedder:
    """An extractor of this project, which reads the crops of `model.alignment`."""

    def __init__(self, extractor: Extractor) -> None:
        self.identity = extractor.card.identity
        self.dimension = extractor.dimension
        self._extractor = extractor

    def align(self, pixels: NDArray[np.uint8], face: Face) -> NDArray[np.uint8]:
        """See `Embedder`; S is 112."""
        return align_face(pixels, face.landmarks)

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Embedder`."""
        return self._extractor.embed(crops)
