import struct
import zlib
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

import model.image as image_module
from model.errors import ImageTooLarge, UnsupportedImage
from model.image import MAX_EXIF_PARTS, MAX_PIECES, MAX_SCANS, MAX_SIDE, MAX_TABLES, ImageLimits, decode_image
from tests.fuzz.hostile_images import bmp_of_runs, scans

PICTURE = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_give_the_pixels_back(form: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(PICTURE), form, **options)), PICTURE)


def test_jpeg(astronaut: NDArray[np.uint8], astronaut_jpeg: bytes) -> None:
    assert np.abs(decode_image(astronaut_jpeg).astype(int) - astronaut).mean() < 3


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data)[2, 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    turn = {1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.transpose(1, 0, 2)}
    turn |= {6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p.transpose(1, 0, 2), 2), 8: np.rot90}
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PICTURE), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data), turn[orientation](PICTURE))


def test_exif_data_behind_the_pixels_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(Image.fromarray(PICTURE), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    assert end < last
    behind = data[:start] + data[end:last] + data[start:end] + data[last:]
    np.testing.assert_array_equal(decode_image(behind), np.rot90(PICTURE, 2))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_no_pixel_is_decoded_while_other_threads_wait(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    load = ImageFile.ImageFile.load

    def watched(image: ImageFile.ImageFile) -> object:
        held.append(image_module._QUIET.locked())
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    decode_image(encoded(Image.fromarray(PICTURE), form))
    assert held
    assert not any(held)


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGBA", (2, 2), (0, 0, 0, 0)), [255, 255, 255]),
        (Image.new("LA", (2, 2), (0, 0)), [255, 255, 255]),
        (Image.new("L", (2, 2), 7), [7, 7, 7]),
        (Image.new("1", (2, 2), 1), [255, 255, 255]),
        (Image.new("RGB", (2, 2), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE), [9, 8, 7]),
        (Image.fromarray(np.full((2, 2), 257 * 50, np.uint16)), [50, 50, 50]),
    ],
    ids=["alpha", "grey alpha", "grey", "one bit", "palette", "16 bit"],
)
def test_every_kind_of_pixel_becomes_rgb(image: Image.Image, pixel: list[int]) -> None:
    assert decode_image(encoded(image, "PNG"))[0, 0].tolist() == pixel


def test_cmyk() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(decode_image(data)[4, 4].astype(int) - [255, 0, 0]).max() < 6


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", b"%PDF-1.4", encoded(Image.new("RGB", (2, 2)), "TIFF")],
    ids=["empty", "text", "pdf", "tiff"],
)
def test_what_is_no_photo_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedImage):
        decode_image(data)


def test_a_cut_off_jpeg_is_refused(astronaut_jpeg: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="cut off or damaged"):
        decode_image(astronaut_jpeg[: len(astronaut_jpeg) // 2])


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 30_000])
def test_pixels_are_counted_before_they_are_decoded(side: int) -> None:
    with pytest.raises(ImageTooLarge):
        decode_image(png_header(side, side))


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_a_side_is_measured_before_anything_is_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(ImageTooLarge, match="at most 65,535 a side"):
        decode_image(encoded(Image.new("RGB", size), "PNG"))


def test_bytes_are_counted_before_anything_is_read() -> None:
    with pytest.raises(ImageTooLarge, match="send one of at most 1 MiB"):
        decode_image(bytes(2 * 2**20), ImageLimits(max_bytes=2**20))


def test_one_pixel() -> None:
    assert decode_image(encoded(Image.new("RGB", (1, 1), "lime"), "PNG")).tolist() == [[[0, 255, 0]]]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    file = bytearray(
        encoded(Image.fromarray(PICTURE), data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"])))
    )
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    with suppress(UnsupportedImage, ImageTooLarge):
        assert decode_image(bytes(file)).shape[2] == 3


def test_a_jpeg_file_has_so_many_scans_and_no_more() -> None:
    own = scans(0).count(b"\xff\xda")
    assert decode_image(scans(MAX_SCANS - own)).shape == (64, 64, 3)
    with pytest.raises(UnsupportedImage, match="more than 64 scans"):
        decode_image(scans(MAX_SCANS - own + 1))
    with pytest.raises(UnsupportedImage, match="more than 64 scans"):
        decode_image(scans(250_000, (7000, 7000)))


def test_what_looks_like_scans_behind_the_end_or_in_metadata_is_none(astronaut_jpeg: bytes) -> None:
    decode_image(astronaut_jpeg + b"\xff\xda" * 1000)  # such as a film behind a photo
    comment = b"\xff\xfe" + struct.pack(">H", 2002) + b"\xff\xda" * 1000
    decode_image(astronaut_jpeg[:2] + comment + astronaut_jpeg[2:])


def test_bmp_files_of_runs_are_refused_for_the_time_they_take() -> None:
    with pytest.raises(UnsupportedImage, match="run-length"):
        decode_image(bmp_of_runs(30, 30))


def _segments(data: bytes, segment: bytes, count: int) -> bytes:
    """A JPEG file with as many of that behind its first segment."""
    first = 4 + int.from_bytes(data[4:6], "big")
    return data[:first] + segment * count + data[first:]


@pytest.mark.parametrize(
    "segment", [b"\xff\xfe\x00\x02", b"\xff\xd0", b"\x00"], ids=["comments", "markers that stand alone", "no markers"]
)
def test_a_jpeg_header_of_pieces_without_end_is_refused(segment: bytes, astronaut_jpeg: bytes) -> None:
    assert decode_image(_segments(astronaut_jpeg, segment, 10_000)).shape == (512, 512, 3)
    with pytest.raises(UnsupportedImage, match="more than 100,000 pieces"):
        decode_image(_segments(astronaut_jpeg, segment, MAX_PIECES))


def test_a_jpeg_file_of_parts_without_end_behind_its_header_is_refused(astronaut_jpeg: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="more than 100,000 pieces"):
        decode_image(astronaut_jpeg[:-2] + b"\xff\xfe\x00\x02" * MAX_PIECES + astronaut_jpeg[-2:])


@pytest.mark.parametrize("kind", [b"prVt", b"IDAT"])
def test_a_png_file_of_chunks_without_end_is_refused(kind: bytes) -> None:
    file = encoded(Image.fromarray(PICTURE), "PNG")
    at = file.index(b"IDAT") - 4
    empty = bytes(4) + kind + struct.pack(">I", zlib.crc32(kind))
    np.testing.assert_array_equal(decode_image(file[:at] + empty * 10_000 + file[at:]), PICTURE)
    with pytest.raises(UnsupportedImage, match="more than 100,000 pieces"):
        decode_image(file[:at] + empty * MAX_PIECES + file[at:])


def test_a_photo_with_unreadable_exif_data_is_still_a_photo() -> None:
    file = encoded(Image.fromarray(PICTURE), "PNG", exif=b"Exif\0\0no TIFF header at all")
    np.testing.assert_array_equal(decode_image(file), PICTURE)


def test_exif_data_comes_in_so_many_parts_and_no_more(astronaut_jpeg: bytes) -> None:
    part = b"\xff\xe1" + struct.pack(">H", 1008) + b"Exif\0\0" + b"x" * 1000
    assert decode_image(_segments(astronaut_jpeg, part, MAX_EXIF_PARTS)).shape == (512, 512, 3)
    with pytest.raises(UnsupportedImage, match="more than 64 parts of EXIF data"):
        decode_image(_segments(astronaut_jpeg, part, MAX_EXIF_PARTS + 1))


def test_a_jpeg_header_of_tables_without_end_is_refused(astronaut_jpeg: bytes) -> None:
    at = astronaut_jpeg.index(b"\xff\xdb")
    tables = astronaut_jpeg[at : at + 2 + int.from_bytes(astronaut_jpeg[at + 2 : at + 4], "big")]
    own = astronaut_jpeg.count(b"\xff\xdb")
    most = MAX_TABLES // (len(tables) - 2) - own  # the two bytes of a marker do not count
    assert decode_image(_segments(astronaut_jpeg, tables, most)).shape == (512, 512, 3)
    with pytest.raises(UnsupportedImage, match="more than 65,536 bytes of tables"):
        decode_image(_segments(astronaut_jpeg, tables, most + 1))
