"""The decoder on damaged files: it gives pixels or refuses, whatever was done to a real photo.

`FACEGALLERY_FUZZ` is the number of files; `make fuzz` sets it to 10,000.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from model.errors import ImageTooLarge, UnsupportedImage
from model.image import ImageLimits, decode_image
from tests.fuzz.hostile_images import hostile_images

EXAMPLES = int(os.environ.get("FACEGALLERY_FUZZ", "200"))
LIMITS = ImageLimits(max_bytes=20 * 2**20, max_pixels=4_000_000)
MARKS = [
    b"\xff\xd8",
    b"\xff\xda",
    b"\xff\xc0",
    b"\xff\xd9",
    b"IHDR",
    b"IDAT",
    b"VP8X",
    b"\x2c",
    b"Exif\0\0",
    b"\xff" * 4,
]


@pytest.fixture(scope="session")
def seeds(astronaut: NDArray[np.uint8]) -> list[bytes]:
    """A real photo in every form."""
    photo = Image.fromarray(astronaut).resize((96, 96))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    forms = [
        ("JPEG", photo, {"quality": 80, "exif": exif}),
        ("JPEG", photo, {"progressive": True, "quality": 60}),
        ("JPEG", photo.convert("CMYK"), {}),
        ("PNG", photo, {"exif": exif}),
        ("PNG", photo.convert("P"), {"transparency": 3}),
        ("PNG", photo.convert("RGBA"), {}),
        ("PNG", photo.convert("I;16"), {}),
        ("WEBP", photo, {"exif": exif.tobytes()}),
        ("WEBP", photo, {"lossless": True}),
        ("GIF", photo, {"save_all": True, "append_images": [photo.rotate(90)]}),
        ("BMP", photo, {}),
        ("BMP", photo.convert("1"), {}),
    ]
    files = []
    for form, image, options in forms:
        file = BytesIO()
        image.save(file, form, **options)  # type: ignore[arg-type]
        files.append(file.getvalue())
    return files


def flip(file: bytearray, draw: Callable[[int], int], _other: bytes) -> None:
    for _ in range(1 + draw(8)):
        file[draw(len(file) - 1)] = draw(255)


def mark(file: bytearray, draw: Callable[[int], int], _other: bytes) -> None:
    at = draw(len(file) - 1)
    file[at : at + 4] = MARKS[draw(len(MARKS) - 1)]


def cut(file: bytearray, draw: Callable[[int], int], _other: bytes) -> None:
    del file[1 + draw(len(file) - 1) :]


def remove(file: bytearray, draw: Callable[[int], int], _other: bytes) -> None:
    at = draw(len(file) - 1)
    del file[at : at + 1 + draw(200)]


def repeat(file: bytearray, draw: Callable[[int], int], _other: bytes) -> None:
    at, length = draw(len(file) - 1), 1 + draw(500)
    file[at:at] = file[at : at + length] * (1 + draw(5))


def splice(file: bytearray, draw: Callable[[int], int], other: bytes) -> None:
    at = draw(len(file) - 1)
    start = draw(len(other) - 1)
    file[at : at + 300] = other[start : start + 300]


def grow_numbers(file: bytearray, draw: Callable[[int], int], _other: bytes) -> None:
    at = draw(min(len(file) - 1, 200))  # where headers are
    file[at : at + 4] = (0x7FFFFFFF if draw(1) else 0xFFFFFFFF).to_bytes(4, "big" if draw(1) else "little")


MUTATIONS = [flip, mark, cut, remove, repeat, splice, grow_numbers]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_mutated_photo_is_read_or_refused(seeds: list[bytes], data: st.DataObject) -> None:
    def draw(most: int) -> int:
        return data.draw(st.integers(0, max(0, most)))

    file = bytearray(seeds[draw(len(seeds) - 1)])
    for _ in range(1 + draw(4)):
        if file:
            MUTATIONS[draw(len(MUTATIONS) - 1)](file, draw, seeds[draw(len(seeds) - 1)])
    with suppress(UnsupportedImage, ImageTooLarge):
        pixels = decode_image(bytes(file), LIMITS)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert pixels.shape[0] * pixels.shape[1] <= LIMITS.max_pixels


@pytest.mark.parametrize("name", hostile_images())
def test_a_hostile_image_is_read_or_refused(name: str) -> None:
    with suppress(UnsupportedImage, ImageTooLarge):
        assert decode_image(hostile_images()[name], LIMITS).shape[2] == 3


def test_what_only_looks_like_an_image_is_no_image() -> None:
    for name in ("pdf-and-jpeg", "svg", "postscript", "address", "path"):
        with pytest.raises(UnsupportedImage):
            decode_image(hostile_images()[name], LIMITS)


@pytest.mark.parametrize("name", ["png-30000x30000", "gif-65535x65535", "jpeg-65500x65500", "webp-16384x16384"])
def test_what_says_that_it_is_too_large_is_believed(name: str) -> None:
    with pytest.raises((ImageTooLarge, UnsupportedImage)):
        decode_image(hostile_images()[name], LIMITS)
