"""From crops to embeddings."""

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.alignment import CROP_SIZE
from model.card import ModelCard, read_card
from model.errors import ModelFileError
from model.runtime import Network, Precision, Runtime, open_network

_BATCH = 32  # bounds the memory of a call; larger batches are not faster
_TOLERANCE = 1e-4  # of an embedding's length; rounding stays a hundred times below


class Extractor:
    """Turns aligned crops into embeddings; safe to share between threads.

    Args:
        network: reads (N, 3, 112, 112), float32, RGB, 0 to 255.
        card: of the network; its ``dimension`` is the embeddings'.
    """

    def __init__(self, network: Network, card: ModelCard) -> None:
        if card.task != "extractor" or card.dimension is None:
            raise ModelFileError(f"the network {card.name!r} is a {card.task}; choose an extractor")
        self.card = card
        self.dimension: int = card.dimension
        self._network = network

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        runtime: Runtime = "openvino",
        threads: int = 0,
        device: str = "cpu",
        precision: Precision = "f32",
    ) -> Self:
        """Load the extractor of a folder with a card; arguments as for `model.runtime.open_network`."""
        card = read_card(folder)
        return cls(
            open_network(folder / card.file, runtime=runtime, threads=threads, device=device, precision=precision), card
        )

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed crops.

        Args:
            crops: shape (N, 112, 112, 3), uint8, RGB, any N.

        Returns:
            Embeddings, shape (N, dimension), float32, each of length 1.

        Raises:
            ValueError: another shape or type.
            ModelFileError: the network's answer to a crop has no direction: zeros, or numbers that are none.
        """
        if crops.ndim != 4 or crops.shape[1:] != (CROP_SIZE, CROP_SIZE, 3) or crops.dtype != np.uint8:
            raise ValueError(f"crops must be uint8 of shape (N, 112, 112, 3), not {crops.dtype} of shape {crops.shape}")
        embeddings = np.empty((len(crops), self.dimension), dtype=np.float32)
        for start in range(0, len(crops), _BATCH):
            batch = crops[start : start + _BATCH].transpose(0, 3, 1, 2).astype(np.float32, order="C")
            (embeddings[start : start + _BATCH],) = self._network(batch)
        with np.errstate(all="ignore"):  # what comes of it is looked at
            embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
            lengths = np.linalg.norm(embeddings, axis=1)
        if not np.all(np.abs(lengths - 1) < _TOLERANCE):  # false for NaN as well
            raise ModelFileError(
                f"the network {self.card.name!r} gives no embedding of a face: its numbers are all zero, or not finite"
            )
        return embeddings
