"""Degraded copies of aligned crops: what small, blurred, dark, compressed and covered faces cost.

The crop is changed, not the photo, so the detector is no part of what is measured: on real photos of this kind some
faces would not be found at all.
"""

import hashlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from model.alignment import CROP_SIZE

LOW_RESOLUTION = "24px"
BLUR = "blur"
DARK = "dark"
JPEG = "jpeg20"
COVERED = "covered"

Crop = NDArray[np.uint8]

_SMALL = 24  # pixels across the crop, the smallest face that the detector finds
_SIGMA = 2.5 / CROP_SIZE  # of the crop's side
_LIGHT = 0.2  # of the pixel values that are left
_QUALITY = 20  # of 100, libjpeg's scale
_GREY = 128


def degrade(crops: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Return copies of crops with one kind of degradation; the same crop always gives the same copy.

    Args:
        crops: shape (N, S, S, 3), uint8, RGB; S is 112 but for extractors of others.
        kind: one of `KINDS`: `24px` (scaled down to 24×24 and back), `blur` (Gaussian, 2.5 pixels of 112), `dark` (a
            fifth of the values), `jpeg20` (JPEG at quality 20), `covered` (the lower half is grey).

    Returns:
        Shape (N, S, S, 3), uint8, RGB.

    Raises:
        ValueError: another kind.
    """
    if kind not in _CHANGES:
        raise ValueError(f"no degradation {kind!r}; choose of {', '.join(KINDS)}")
    copies = np.empty_like(crops)
    for copy, crop in zip(copies, crops, strict=True):
        copy[:] = _CHANGES[kind](crop)
    return copies


def degrade_mixed(crops: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.uint8]:
    """Return copies of crops, each with the one kind of degradation that its name decides.

    Args:
        crops: shape (N, S, S, 3), uint8, RGB.
        names: of the photos, N of them.
    """
    copies = [degrade(crop[None], kind_of(name))[0] for crop, name in zip(crops, names, strict=True)]
    return np.array(copies, np.uint8).reshape(crops.shape)


def kind_of(name: str) -> str:
    """The kind of degradation of a photo with this name, all kinds alike often and the same on every machine."""
    return KINDS[int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % len(KINDS)]


def _low_resolution(crop: Crop) -> Crop:
    small = cv2.resize(crop, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA)
    large: Crop = cv2.resize(small, crop.shape[:2], interpolation=cv2.INTER_LINEAR)  # as alignment enlarges
    return large


def _blur(crop: Crop) -> Crop:
    blurred: Crop = cv2.GaussianBlur(crop, (0, 0), _SIGMA * len(crop))
    return blurred


def _dark(crop: Crop) -> Crop:
    dark: Crop = np.rint(crop * _LIGHT).astype(np.uint8)
    return dark


def _jpeg(crop: Crop) -> Crop:
    _, data = cv2.imencode(".jpg", crop[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.flip(decoded, axis=2)


def _covered(crop: Crop) -> Crop:
    covered = crop.copy()
    covered[len(crop) // 2 :] = _GREY
    return covered


_CHANGES: dict[str, Callable[[Crop], Crop]] = {
    LOW_RESOLUTION: _low_resolution,
    BLUR: _blur,
    DARK: _dark,
    JPEG: _jpeg,
    COVERED: _covered,
}
KINDS: tuple[str, ...] = tuple(_CHANGES)
"""All kinds of degradation."""
