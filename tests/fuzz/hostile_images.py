"""Images that mean harm, made here: bombs, lies, metadata without end, files that are two things at once."""

import struct
import zipfile
import zlib
from functools import cache
from io import BytesIO
from typing import Any

from PIL import Image

MIB = 2**20


def chunk(kind: bytes, body: bytes, *, length: int | None = None) -> bytes:
    """A chunk of a PNG file, with a length that may be a lie."""
    return (
        struct.pack(">I", len(body) if length is None else length)
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body))
    )


def png(
    width: int, height: int, data: bytes, *more: bytes, depth: int = 8, colour: int = 2, interlace: int = 0
) -> bytes:
    """A PNG file with that header and those pixels, whatever they are."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    )


def png_of_16_bits(width: int, height: int) -> bytes:
    """A whole PNG file of 16 bits in each of four channels: eight bytes a pixel, of which next to nothing is sent."""
    packer, parts = zlib.compressobj(1), list[bytes]()
    for _ in range(height):
        parts.append(packer.compress(bytes(1 + width * 8)))
    header = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    pixels = b"".join([*parts, packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def plain(form: str, size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    """A harmless file."""
    file = BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(file, form, **options)
    return file.getvalue()


def jpeg_segments(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG file with those segments behind its beginning."""
    file = plain("JPEG")
    extra = b"".join(bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
    return file[:2] + extra + file[2:]


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG file whose header says that it is larger than it is."""
    file = bytearray(plain("JPEG"))
    at = file.index(b"\xff\xc0") + 5
    file[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(file)


def scans(count: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A progressive JPEG file whose last scan comes again and again: work without pixels."""
    flat = BytesIO()
    Image.new("L", size).save(flat, "JPEG", progressive=True)
    file = plain("JPEG", progressive=True) if size == (64, 64) else flat.getvalue()
    at = file.rindex(b"\xff\xda")
    return file[:at] + file[at:-2] * count + file[-2:]


def bmp(width: int, height: int, bits: int = 24, compression: int = 0) -> bytes:
    """A BMP file with that header and next to no pixels."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 64, 0, 0, 54) + info + bytes(64)


def bmp_of_runs(width: int, height: int) -> bytes:
    """A whole BMP file of which every pixel is a run of its own: 18 MiB that make much work."""
    body = (b"\x01\x05" * width + b"\x00\x00") * height + b"\x00\x01"
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + info + bytes(1024) + body


def gif(width: int, height: int, frames: int = 1) -> bytes:
    """A GIF file with that screen and as many frames of one pixel."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return (
        b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\x00\x00" + b"\0\0\0\xff\xff\xff" + frame * frames + b";"
    )


def webp_of_size(width: int, height: int) -> bytes:
    """A WebP file whose canvas is larger than its picture."""
    picture = plain("WEBP", lossless=True)[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x00\x00\x00\x00"
    canvas += struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + canvas + picture
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif(*entries: bytes, count: int | None = None, following: int = 0) -> bytes:
    """An EXIF block with a directory of those entries."""
    directory = struct.pack("<H", len(entries) if count is None else count) + b"".join(entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + directory + struct.pack("<I", following)


def zipped() -> bytes:
    """A ZIP archive."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("run.html", "<script>alert(1)</script>")
    return file.getvalue()


@cache
def hostile_images() -> dict[str, bytes]:
    """The corpus by name; every file has less than 20 MiB."""
    orientation = struct.pack("<HHII", 0x0112, 3, 1, 6)
    text = b"Comment\0\0" + zlib.compress(bytes(200 * MIB), 9)
    profile = b"icc\0\0" + zlib.compress(bytes(200 * MIB), 9)
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + b"<x>" * 20_000
    icc = b"ICC_PROFILE\0" + b"\x01\xff" + b"A" * 65_000
    jpeg, small_png = plain("JPEG"), plain("PNG")
    corpus = {
        # more pixels than bytes can justify
        "png-30000x30000": png(30_000, 30_000, b""),
        "png-2-to-the-31": png(2**31 - 1, 2**31 - 1, b""),
        "png-zero": png(0, 0, b""),
        "png-one-row": png(50_000_001, 1, b""),
        "png-pixels-without-end": png(64, 64, bytes(100 * MIB)),
        "png-interlaced-short": png(5000, 5000, bytes(100), interlace=1),
        "png-16-bit": png(2000, 2000, bytes(2000 * (4 * 2 * 2000 + 1)), depth=16, colour=6),
        "gif-65535x65535": gif(65_535, 65_535),
        "gif-100000-frames": gif(8, 8, 100_000),
        "bmp-2-to-the-31": bmp(2**31 - 1, 2**31 - 1),
        "bmp-negative": bmp(-5, -(2**31)),
        "bmp-rle": bmp(60_000, 800, bits=8, compression=1),
        "bmp-rle-of-single-pixels": bmp_of_runs(3000, 3000),
        "webp-16384x16384": webp_of_size(16_384, 16_384),
        "webp-larger-canvas": webp_of_size(6000, 6000),
        "jpeg-65500x65500": jpeg_of_size(65_500, 65_500),
        "jpeg-7000x7000-lie": jpeg_of_size(7000, 7000),
        "jpeg-1000-scans": scans(1000),
        "jpeg-20-mib-of-scans": scans(250_000, (7000, 7000)),
        # lengths and places that lie
        "png-chunk-length": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13), length=2**31 - 1),
        "png-palette-missing": png(64, 64, bytes(65 * 64), colour=3),
        "jpeg-segment-length": b"\xff\xd8\xff\xe1\xff\xff" + jpeg[2:],
        "jpeg-no-tables": jpeg.replace(b"\xff\xdb", b"\xff\xfe"),
        "riff-length": b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff" + bytes(64),
        # metadata without end
        "png-text-bomb": png(8, 8, bytes(200), chunk(b"zTXt", text)),
        "png-icc-bomb": png(8, 8, bytes(200), chunk(b"iCCP", profile)),
        "png-exif-bomb": png(8, 8, bytes(200), chunk(b"eXIf", bytes(4 * MIB))),
        "png-100000-chunks": png(8, 8, bytes(200), *[chunk(b"tEXt", b"k\0v")] * 100_000),
        "jpeg-xmp": jpeg_segments(*[(0xE1, xmp)] * 150),
        "jpeg-icc": jpeg_segments(*[(0xE2, icc)] * 150),
        "jpeg-comments": jpeg_segments(*[(0xFE, b"x" * 65_000)] * 150),
        "jpeg-exif-parts": jpeg_segments(*[(0xE1, b"Exif\0\0" + b"x" * 10)] * 800_000),
        "jpeg-empty-segments": jpeg[:2] + b"\xff\xe0\x00\x02" * 4_900_000 + jpeg[2:],
        "png-empty-chunks": png(8, 8, bytes(200), *[chunk(b"prVt", b"")] * 1_600_000),
        "jpeg-exif-full": jpeg_segments((0xE1, exif(*[orientation] * 5000))),
        "jpeg-exif-loop": jpeg_segments((0xE1, exif(orientation, following=8))),
        "jpeg-exif-count": jpeg_segments((0xE1, exif(orientation, count=65_535))),
        "jpeg-exif-offset": jpeg_segments((0xE1, exif(struct.pack("<HHII", 0x0112, 5, 2**31, 2**31)))),
        "jpeg-exif-text": jpeg_segments((0xE1, exif(struct.pack("<HHII", 0x0112, 2, 4, 0x41414141)))),
        # two things at once
        "jpeg-and-zip": jpeg + zipped(),
        "png-and-zip": small_png + zipped(),
        "jpeg-and-page": jpeg_segments((0xFE, b"--><script>alert(1)</script><!--")),
        "gif-and-script": b"GIF89a=1;/*" + gif(8, 8)[11:] + b"*/alert(1)",
        "pdf-and-jpeg": b"%PDF-1.7\n" + jpeg,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n",
        "address": b"http://169.254.169.254/latest/meta-data/",
        "path": b"/etc/passwd",
    }
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        whole = plain(form)
        for share in (1, 10, 50, 90, 99):
            corpus[f"{form.lower()}-cut-at-{share}%"] = whole[: len(whole) * share // 100]
    return corpus
