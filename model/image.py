"""From bytes to pixels: formats, limits, orientation, colours."""

import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model.errors import ImageTooLarge, UnsupportedImage

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""The formats that are read, by Pillow's names; no other decoder is ever reached."""

_FORMAT_LIST = "JPEG, PNG, WebP, BMP or GIF"
MAX_SCANS = 64
"""Scans of a JPEG file; programs that make them small use a dozen. Each runs over all pixels and may take 75 bytes."""
MAX_TABLES = 2**16
"""Bytes of a JPEG file's quantisation tables; a file needs four of 65 or 129. Pillow reads each in Python."""
MAX_PIECES = 100_000
"""Pieces in which Pillow reads a file: markers, chunks, blocks, bytes that are none of them. Each is some lines of
Python and may take two bytes of the file; photos of 20 MiB have some thousands."""
MAX_SIDE = 65_535
"""Pixels of a side, the most that JPEG and GIF can have. A row or a column of fifty million takes long by itself."""
MAX_EXIF_PARTS = 64
"""Parts of a JPEG file's EXIF data, of 64 KiB each. Pillow copies what it has so far for each further one."""

_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])", re.DOTALL)  # those that stand alone left out
_SCAN, _END, _TABLES = 0xDA, 0xD9, 0xDB
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow warns of large or odd headers through the warnings module, whose filters belong to the whole process: one
# thread at a time may set them aside. Headers and metadata are read under the lock, pixels never are.
_QUIET = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """How large a photo may be.

    Args:
        max_bytes: bytes of the file.
        max_pixels: width times height; above 178 million Pillow refuses by itself.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


class _Pieces(BytesIO):
    """The bytes of a file, as long as they are read in no more than `MAX_PIECES`."""

    _read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._read += 1
        if self._read > MAX_PIECES:
            raise UnsupportedImage(f"the file has more than {MAX_PIECES:,} pieces; save it anew")
        return super().read(size)


def decode_image(data: bytes, limits: ImageLimits = ImageLimits()) -> NDArray[np.uint8]:
    """Decode a photo into upright RGB pixels.

    The first frame of an animation counts. The EXIF orientation is applied, transparency is laid on white,
    16 bits become 8, and colour profiles are not applied.

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP or GIF file.
        limits: both are checked before any pixel is decoded.

    Returns:
        Pixels, shape (height, width, 3), uint8, RGB, 0 to 255.

    Raises:
        UnsupportedImage: empty, cut off, damaged, or another format.
        ImageTooLarge: more bytes or pixels than the limits allow.
    """
    if not data:
        raise UnsupportedImage(f"the file is empty; send a photo as {_FORMAT_LIST}")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"the file has {_mib(len(data))} MiB; send one of at most {_mib(limits.max_bytes)} MiB")
    with _read_header(data, limits) as image:
        try:
            image.load()
            orientation = _orientation(image)
            pixels = _to_rgb(image)
        except UnsupportedImage:
            raise
        except Exception as error:  # Pillow's decoders raise whatever their parsing ran into
            raise UnsupportedImage(f"the {image.format} file is cut off or damaged; send the whole file") from error
        if orientation in _TRANSPOSITIONS:
            pixels = pixels.transpose(_TRANSPOSITIONS[orientation])
        return np.array(pixels, dtype=np.uint8)


def _read_header(data: bytes, limits: ImageLimits) -> Image.Image:
    if data.startswith(b"\xff\xd8"):
        _check_parts_of_jpeg(data)
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(_Pieces(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ImageTooLarge(f"the photo has too many pixels; send one of at most {limits.max_pixels:,}") from error
        except UnsupportedImage:
            raise
        except UnidentifiedImageError as error:
            raise UnsupportedImage(f"the file is not a photo that can be read; send {_FORMAT_LIST}") from error
        except Exception as error:
            raise UnsupportedImage("the file is cut off or damaged; send the whole file") from error
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ImageTooLarge(
                f"the photo has {width}×{height} = {width * height:,} pixels; send one of at most {limits.max_pixels:,}"
            )
        if max(width, height) > MAX_SIDE:
            raise ImageTooLarge(f"the photo has {width}×{height} pixels; send one of at most {MAX_SIDE:,} a side")
        if any(tile[0] == "bmp_rle" for tile in image.tile):  # Pillow decodes it run by run in Python: 20 MiB take 14 s
            raise UnsupportedImage("the BMP file is run-length encoded; save it without, or as PNG")
        return image


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation of an image whose pixels are decoded: a PNG file may have its EXIF data behind them."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Not PngImageFile's own, which decodes the pixels where it finds no EXIF data before them.
            orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
        except Exception:  # a photo with unreadable EXIF data is still a photo
            return 1
        return orientation if isinstance(orientation, int) else 1


def _check_parts_of_jpeg(data: bytes) -> None:
    """Refuse a JPEG file that has more of something than photos have, before Pillow reads its header.

    Raises:
        UnsupportedImage: it has.
    """
    if data.count(_EXIF) > MAX_EXIF_PARTS:
        raise UnsupportedImage(f"the JPEG file has more than {MAX_EXIF_PARTS} parts of EXIF data; save it without them")
    at, scans, tables = 2, 0, 0
    for _ in range(MAX_PIECES):
        found = _MARKER.search(data, at)
        if found is None or data[found.start() + 1] == _END:
            return
        length = max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
        scans += data[found.start() + 1] == _SCAN
        tables += length if data[found.start() + 1] == _TABLES else 0
        if scans > MAX_SCANS:
            raise UnsupportedImage(f"the JPEG file has more than {MAX_SCANS} scans; save it anew")
        if tables > MAX_TABLES:
            raise UnsupportedImage(f"the JPEG file has more than {MAX_TABLES:,} bytes of tables; save it anew")
        at = found.end() + length
    raise UnsupportedImage(f"the JPEG file has more than {MAX_PIECES:,} pieces; save it anew")


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB; in bands where that takes further copies of it, whose memory a hostile file would multiply."""
    if image.mode.startswith("I"):
        # `convert` would clip 16-bit values at 255 instead of scaling them.
        values = np.asarray(image)
        grey = np.empty(values.shape, np.uint8)
        for top, bottom in _bands(image):
            grey[top:bottom] = np.round(values[top:bottom].astype(np.float32).clip(0, 65535) / 257)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgb = Image.new("RGB", image.size)
        for top, bottom in _bands(image):
            band = image.crop((0, top, image.width, bottom)).convert("RGBA")
            white = Image.new("RGBA", band.size, "white")
            rgb.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
        return rgb
    return image if image.mode == "RGB" else image.convert("RGB")


def _bands(image: Image.Image) -> Iterator[tuple[int, int]]:
    """Rows from and to, about a million pixels at a time."""
    rows = max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        yield top, min(image.height, top + rows)


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f}".removesuffix(".0")
