"""How long one photo can take that is within all limits: the slowest kinds that were found.

    PYTHONPATH=. taskset -c 0 python benchmarks/slow_photos.py

Each but the small one has 49 million pixels, and less than 20 MiB. Seconds of the processor, to decode it and to find
faces in it.
"""

import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from model.image import MAX_PIECES, MAX_SCANS, ImageLimits, decode_image
from model.pipeline import load_networks
from tests.fuzz.hostile_images import png_of_16_bits, scans

_SIDE = 7000
_QUALITIES = range(50, 0, -10)


def main() -> None:
    """Print a row of a Markdown table for each kind."""
    detector = load_networks(threads=1).detector
    print("| photo | MiB | decoded in s | faces found in s |\n| --- | ---: | ---: | ---: |")
    for name, data in _photos():
        start = time.process_time()
        pixels = decode_image(data)
        decoded = time.process_time()
        detector.detect(pixels)
        found = time.process_time()
        print(
            f"| {name} | {len(data) / 2**20:.1f} | {decoded - start:.1f} | {found - decoded:.1f} |",
            flush=True,
        )


def _photos() -> Iterator[tuple[str, bytes]]:
    begun = scans(1, (_SIDE, _SIDE)).count(b"\xff\xda")
    yield f"JPEG of {MAX_SCANS} scans", scans(1 + MAX_SCANS - begun, (_SIDE, _SIDE))
    yield "progressive JPEG of noise", _noisy_jpeg()
    yield f"small JPEG of {MAX_PIECES:,} pieces", _jpeg_of_pieces()
    shades = np.random.default_rng(0).integers(0, 8, (_SIDE, _SIDE, 1), np.uint8) * 36  # as much noise as fits
    picture = Image.fromarray(np.repeat(shades, 3, axis=2))
    yield "WebP without loss", _saved(picture, "WEBP", lossless=True, method=0)
    yield "PNG of 16 bits", png_of_16_bits(_SIDE, _SIDE)


def _noisy_jpeg() -> bytes:
    """Noise at the best quality that is taken."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE, 3), np.uint8))
    files = (_saved(noise, "JPEG", progressive=True, quality=quality) for quality in _QUALITIES)
    return next(data for data in files if len(data) <= ImageLimits().max_bytes)


def _jpeg_of_pieces() -> bytes:
    """Empty comments in the header of a small photo, as many as are taken: each is read in three pieces."""
    file = _saved(Image.new("RGB", (64, 64)), "JPEG")
    return file[:2] + b"\xff\xfe\x00\x02" * ((MAX_PIECES - 100) // 3) + file[2:]


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


if __name__ == "__main__":
    main()
