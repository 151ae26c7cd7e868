"""What files in many pieces cost Pillow where nobody counts the pieces, beside the service's own answer.

    PYTHONPATH=. taskset -c 0 python benchmarks/pieces.py

Seconds of the processor for each, in which no other photo is decoded, as Pillow goes through pieces under the
interpreter's lock.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO

from PIL import Image

from model.errors import FacegalleryError
from model.image import decode_image
from tests.fuzz.hostile_images import hostile_images, jpeg_segments

_EXIF_PARTS = 20, 60, 120  # thousands


def main() -> None:
    """Print a row of a Markdown table for each file."""
    print("| file | MiB | Pillow alone, s | here, s | answer |\n| --- | ---: | ---: | ---: | --- |")
    for name, data in _files():
        start = time.process_time()
        with suppress(OSError, SyntaxError, ValueError), Image.open(BytesIO(data)) as image:
            image.load()
            image.getexif()
        alone = time.process_time() - start
        start, answer = time.process_time(), "read"
        try:
            decode_image(data)
        except FacegalleryError as error:
            answer = str(error)
        print(f"| {name} | {len(data) / 2**20:.1f} | {alone:.2f} | {time.process_time() - start:.2f} | {answer} |")


def _files() -> Iterator[tuple[str, bytes]]:
    files = hostile_images()
    for name in ("jpeg-empty-segments", "png-empty-chunks"):
        yield name, files[name]
    for thousands in _EXIF_PARTS:
        part = 0xE1, b"Exif\0\0" + b"x" * 10
        yield f"jpeg-exif-parts, {thousands},000", jpeg_segments(*[part] * (1000 * thousands))


if __name__ == "__main__":
    main()
