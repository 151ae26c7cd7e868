"""From five landmarks to the crop that an extractor reads."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

CROP_SIZE = 112
"""Side of the square crop in pixels."""

TEMPLATE_LANDMARKS: NDArray[np.float64] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where the landmarks lie in the crop (x, y): right eye, left eye, nose, right and left corner of the mouth.

The template of ArcFace (Deng et al., CVPR 2019), on which most extractors are trained.
"""
TEMPLATE_LANDMARKS.flags.writeable = False


def similarity_transform(landmarks: ArrayLike) -> NDArray[np.float64]:
    """The rotation, scale and shift, never a reflection, that bring landmarks closest to the template.

    Closest by least squares (Umeyama, PAMI 1991).

    Args:
        landmarks: shape (5, 2), x and y in pixels of the photo. If all are one point, the scale is 0.

    Returns:
        Matrix, shape (2, 3), float64: crop = matrix @ (x, y, 1).
    """
    points = np.asarray(landmarks, dtype=np.float64)
    source_mean, target_mean = points.mean(axis=0), TEMPLATE_LANDMARKS.mean(axis=0)
    source, target = points - source_mean, TEMPLATE_LANDMARKS - target_mean
    # In the plane, Umeyama's decomposition has a closed form: the best complex factor from source to target.
    spread = max(float((source**2).sum()), np.finfo(np.float64).tiny)
    along = float((source * target).sum()) / spread
    across = float((source[:, 0] * target[:, 1] - source[:, 1] * target[:, 0]).sum()) / spread
    linear = np.array([[along, -across], [across, along]])
    return np.column_stack([linear, target_mean - linear @ source_mean])


def align_face(
    pixels: NDArray[np.uint8], landmarks: Sequence[tuple[float, float]] | NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Cut a face out of a photo, upright and of the size that extractors read.

    A face that is twice as large as the crop, or more, is first scaled down by means of whole pixels: interpolation
    alone would take four pixels of the photo for each of the crop, and their noise with them.

    Args:
        pixels: shape (height, width, 3), uint8.
        landmarks: five points (x, y) in pixels, in the order of `TEMPLATE_LANDMARKS`.

    Returns:
        Crop, shape (112, 112, 3), uint8, the photo's channel order; black where it reaches beyond the photo.
    """
    matrix = similarity_transform(landmarks)
    scale = float(np.linalg.norm(matrix[:, 0]))
    times = int(1 / scale) if scale > 1 / max(pixels.shape) else 1
    if times > 1:
        pixels, matrix = _scaled_down(pixels, matrix, times)
    crop: NDArray[np.uint8] = cv2.warpAffine(pixels, matrix, (CROP_SIZE, CROP_SIZE), flags=cv2.INTER_LINEAR)
    return crop


def _scaled_down(
    pixels: NDArray[np.uint8], matrix: NDArray[np.float64], times: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The part of a photo that a crop shows, so many times smaller, and the matrix from there to the crop."""
    corners = np.array([[0, 0, CROP_SIZE, CROP_SIZE], [0, CROP_SIZE, 0, CROP_SIZE]])
    shown = np.linalg.solve(matrix[:, :2], corners - matrix[:, 2:])
    size = np.array(pixels.shape[1::-1])
    first = np.clip(np.floor(shown.min(axis=1)) - times, 0, size).astype(int)
    cells = (np.clip(np.ceil(shown.max(axis=1)) + times, first, size).astype(int) - first) // times
    if cells.min() < 1:  # next to nothing of it lies in the photo
        return pixels, matrix
    last = first + cells * times
    part = pixels[first[1] : last[1], first[0] : last[0]]
    small: NDArray[np.uint8] = cv2.resize(part, (int(cells[0]), int(cells[1])), interpolation=cv2.INTER_AREA)
    # The middle of a cell, in pixels of the photo.
    back = np.vstack([np.column_stack([times * np.eye(2), first + (times - 1) / 2]), [0, 0, 1]])
    return small, matrix @ back
