"""Kept crops come back pixel for pixel, or not at all."""

import hashlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.crops import MAX_CROP_BYTES, decode_crop, encode_crop
from model.errors import UnsupportedImage


def sha256(crop: NDArray[np.uint8]) -> str:
    return hashlib.sha256(crop.tobytes()).hexdigest()


@pytest.fixture
def crop() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (112, 112, 3)).astype(np.uint8)


def test_a_crop_comes_back_pixel_for_pixel(crop: NDArray[np.uint8]) -> None:
    file = encode_crop(crop)
    assert len(file) < MAX_CROP_BYTES  # noise, which nothing compresses
    assert np.array_equal(decode_crop(file, sha256=sha256(crop)), crop)


def test_a_damaged_crop_is_refused(crop: NDArray[np.uint8]) -> None:
    file = encode_crop(crop)
    for damaged in (b"", b"no picture", file[:20], file[: len(file) // 2], b"\xff\xd8" + file):
        with pytest.raises(UnsupportedImage, match=r"^a kept crop "):
            decode_crop(damaged, sha256=sha256(crop))


def test_another_crop_is_refused(crop: NDArray[np.uint8]) -> None:
    with pytest.raises(UnsupportedImage, match="not the one that its template was made of"):
        decode_crop(encode_crop(crop), sha256=sha256(255 - crop))


def test_a_large_picture_is_refused_before_it_is_unpacked() -> None:
    _, file = cv2.imencode(".png", np.zeros((5000, 5000, 3), np.uint8))
    with pytest.raises(UnsupportedImage, match="112 × 112"):
        decode_crop(bytes(file), sha256="0" * 64)
