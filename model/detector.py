"""From pixels to faces."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from model.card import ModelCard, read_card
from model.errors import ModelFileError
from model.runtime import Network, Precision, Runtime, open_network

STRIDES = (8, 16, 32)
_OVERVIEW_SIZE = 240
_OVERLAP = 0.3  # intersection over union, above which two boxes overlap
_PART = 0.8
_MOST_CANDIDATES = 5000


@dataclass(frozen=True, slots=True)
class Face:
    """A face in a photo.

    Args:
        box: x, y of the upper left corner, width, height, in pixels of the photo; it may reach beyond the photo.
        landmarks: five points (x, y) in pixels: right eye, left eye, nose, right and left corner of the mouth.
            Right is the person's, on the left of the picture.
        score: 0 to 1, how sure the detector is.
    """

    box: tuple[float, float, float, float]
    landmarks: tuple[tuple[float, float], ...]
    score: float


class Detector:
    """Finds faces with YuNet; safe to share between threads.

    YuNet finds faces of 20 to 400 pixels. So a photo is searched twice: at ``working_size`` for small faces, and as a
    small overview for faces that fill the picture, however large it is. Of a face found in both, the better score
    stays.

    Args:
        network: reads (N, 3, height, width), float32, BGR, 0 to 255, see `model.networks.YuNet`.
        card: of the network.
        score_threshold: faces with a lower score (0 to 1) are left out.
        working_size: pixels; photos with a longer side are scaled down to it. Faces down to 24 pixels are found in
            photos that are not larger, and down to a 66th of the longer side in those that are.
    """

    def __init__(
        self, network: Network, card: ModelCard, *, score_threshold: float = 0.7, working_size: int = 1600
    ) -> None:
        if card.task != "detector":
            raise ModelFileError(f"the network {card.name!r} is an {card.task}; choose a detector")
        self.card = card
        self.score_threshold = score_threshold
        self.working_size = working_size
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
        """Load the detector of a folder with a card; arguments as for `model.runtime.open_network`."""
        card = read_card(folder)
        path = folder / card.file
        return cls(open_network(path, runtime=runtime, threads=threads, device=device, precision=precision), card)

    def detect(self, pixels: NDArray[np.uint8]) -> list[Face]:
        """Find the faces of a photo.

        Args:
            pixels: shape (height, width, 3), uint8, RGB, any size.

        Returns:
            Faces in pixels of the photo, the best score first.
        """
        view = _shrink(pixels, self.working_size)
        found = [self._search(view, pixels)]
        if max(view.shape) > _OVERVIEW_SIZE:
            found.append(self._search(_shrink(view, _OVERVIEW_SIZE), pixels))
        rows = np.concatenate(found)
        return [_face(row) for row in rows[non_maximum_suppression(rows)]]

    def _search(self, view: NDArray[np.uint8], photo: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = view.shape[:2]
        batch = np.zeros((1, 3, _whole_cells(height), _whole_cells(width)), dtype=np.float32)
        batch[0, :, :height, :width] = view[:, :, ::-1].transpose(2, 0, 1)
        rows = decode(self._network(batch), batch.shape[3], self.score_threshold)
        rows[:, :14] *= np.tile(np.array([photo.shape[1] / width, photo.shape[0] / height], dtype=np.float32), 7)
        return rows


def _shrink(pixels: NDArray[np.uint8], longer_side: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    scale = longer_side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrunk: NDArray[np.uint8] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return shrunk


def _whole_cells(side: int) -> int:
    return -(-side // STRIDES[-1]) * STRIDES[-1]


def decode(outputs: Sequence[NDArray[np.float32]], width: int, score_threshold: float) -> NDArray[np.float32]:
    """Turn YuNet's outputs for one picture into rows of x, y, width, height, ten landmark coordinates, score.

    Args:
        outputs: the twelve outputs, see `model.networks.YuNet`.
        width: of the picture that the network read, in pixels.
        score_threshold: rows with a lower score are left out.

    Returns:
        Shape (faces, 15), float32, pixels of that picture, not yet suppressed, the best score first.
    """
    found = []
    for level, stride in enumerate(STRIDES):
        cls, obj, bbox, kps = (outputs[level + 3 * kind][0] for kind in range(4))
        scores = np.sqrt(cls[:, 0].clip(0, 1) * obj[:, 0].clip(0, 1))
        cells = np.flatnonzero(scores >= score_threshold)
        corner = np.stack([cells % (width // stride), cells // (width // stride)], axis=1).astype(np.float32)
        centre = (corner + bbox[cells, :2]) * stride
        size = np.exp(bbox[cells, 2:]) * stride
        landmarks = (kps[cells] + np.tile(corner, 5)) * stride
        found.append(np.hstack([centre - size / 2, size, landmarks, scores[cells, None]]))
    rows: NDArray[np.float32] = np.concatenate(found)
    return rows[np.argsort(-rows[:, 14], kind="stable")[:_MOST_CANDIDATES]]


def non_maximum_suppression(rows: NDArray[np.float32]) -> NDArray[np.intp]:
    """Choose the boxes that stay if of two for the same face the better one wins.

    Two boxes are for the same face if they overlap, or if more than four fifths of one lie in the other: in a face much
    larger than it was trained for, the network now and then sees a small one.

    Args:
        rows: shape (N, 15), as `decode` gives them, in any order.

    Returns:
        Indices of the rows that stay, the best score first.
    """
    left, top = rows[:, 0], rows[:, 1]
    right, bottom = left + rows[:, 2], top + rows[:, 3]
    areas = rows[:, 2] * rows[:, 3]
    waiting = np.argsort(-rows[:, 14], kind="stable")
    kept: list[int] = []
    while len(waiting):
        best, rest = waiting[0], waiting[1:]
        kept.append(int(best))
        across = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest])
        down = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest])
        shared = np.maximum(across, 0) * np.maximum(down, 0)
        apart = shared <= _OVERLAP * (areas[best] + areas[rest] - shared)
        waiting = rest[apart & (shared <= _PART * np.minimum(areas[best], areas[rest]))]
    return np.array(kept, dtype=np.intp)


def _face(row: NDArray[np.float32]) -> Face:
    x, y, width, height, *points, score = (float(value) for value in row)
    return Face((x, y, width, height), tuple(zip(points[::2], points[1::2], strict=True)), score)
