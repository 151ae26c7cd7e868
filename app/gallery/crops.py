"""Kept crops: an aligned face as a PNG file, which loses nothing."""

import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

from model.alignment import CROP_SIZE
from model.errors import UnsupportedImage

MAX_CROP_BYTES = 64 * 1024
"""No PNG file of a crop is longer; its pixels alone have 37,632 bytes."""

_PNG = b"\x89PNG\r\n\x1a\n"


def encode_crop(crop: NDArray[np.uint8]) -> bytes:
    """The PNG file of a crop (112, 112, 3), uint8, RGB."""
    _, file = cv2.imencode(".png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))
    return bytes(file)


def is_whole(file: bytes, *, sha256: str) -> bool:
    """Whether a PNG file is the crop that a template was made of (see `decode_crop`)."""
    try:
        decode_crop(file, sha256=sha256)
    except UnsupportedImage:
        return False
    return True


def decode_crop(file: bytes, *, sha256: str) -> NDArray[np.uint8]:
    """The crop (112, 112, 3), uint8, RGB, of a PNG file.

    Args:
        file: as `encode_crop` made it.
        sha256: digest of the pixels, as the template has it.

    Raises:
        UnsupportedImage: damaged, of another size, or not the template's crop.
    """
    # The header is read first, so that a small file cannot ask for the memory of a large picture.
    size = int.from_bytes(file[16:20], "big"), int.from_bytes(file[20:24], "big")
    if file[:8] != _PNG or size != (CROP_SIZE, CROP_SIZE):
        raise UnsupportedImage(f"a kept crop is a PNG file of {CROP_SIZE} × {CROP_SIZE} pixels")
    try:
        pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UnsupportedImage("a kept crop cannot be decoded") from error
    if pixels is None:
        raise UnsupportedImage("a kept crop cannot be decoded")
    crop: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    if crop.shape != (CROP_SIZE, CROP_SIZE, 3) or hashlib.sha256(crop.tobytes()).hexdigest() != sha256:
        raise UnsupportedImage("a kept crop is not the one that its template was made of")
    return crop
