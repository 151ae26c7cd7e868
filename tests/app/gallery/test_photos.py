"""Photos wait for a worker, and no longer than they are meant to."""

import os
import threading
import time
from io import BytesIO
from pathlib import Path

import anyio
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY

from app.api.photo_threads import in_photo_thread
from app.gallery.deadline import within
from app.gallery.errors import Busy, TimedOut
from app.gallery.photos import Photo, PhotoReader, read_photo, waiting_for_worker
from app.telemetry import QUEUE_SECONDS
from model.errors import SeveralFaces, UnsupportedImage
from model.image import ImageLimits
from model.pipeline import Networks
from model.quality import QualityLimits

HOUR = 3600.0
THREADS = 40


@pytest.fixture
def reader(networks: Networks) -> PhotoReader:
    return PhotoReader(
        networks, image_limits=ImageLimits(), quality_limits=QualityLimits(), workers=1, queue_timeout=HOUR
    )


def waited() -> float:
    (metric,) = QUEUE_SECONDS.collect()
    return next(float(sample.value) for sample in metric.samples if sample.name.endswith("_sum"))


def test_a_wait_for_a_thread_is_a_wait_for_a_worker(reader: PhotoReader, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.perf_counter

    def photo_whose_thread_came_late(by: float) -> None:
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + by)
        try:
            with reader.worker():
                pass
        finally:
            monkeypatch.undo()

    before = waited()
    anyio.run(in_photo_thread, photo_whose_thread_came_late, HOUR / 2)
    assert waited() - before == pytest.approx(HOUR / 2, abs=60)
    with reader.worker(), pytest.raises(Busy):
        anyio.run(in_photo_thread, photo_whose_thread_came_late, 2 * HOUR)


def test_photos_that_wait_have_so_many_threads_and_no_more() -> None:
    before, go = set(threading.enumerate()), threading.Event()

    async def many() -> int:
        async with anyio.create_task_group() as tasks:
            for _ in range(THREADS + 5):
                tasks.start_soon(in_photo_thread, go.wait)
            await anyio.wait_all_tasks_blocked()
            begun = set(threading.enumerate()) - before
            go.set()
        return len(begun)

    assert anyio.run(many) == THREADS


def test_what_is_no_photo_is_not_left_open(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for name, reason in (
        ("folder.jpg", "Is a directory"),  # without the number and the path that the system's error has
        ("pipe.jpg", "it is no regular file"),
        ("nothing.jpg", "No such file or directory"),
        ("nul\0.jpg", "embedded null byte"),
    ):
        with pytest.raises(UnsupportedImage, match=f"^the file cannot be read: {reason}$"):
            read_photo(tmp_path / name, max_bytes=10)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_of_a_file_that_is_too_long_one_byte_more_is_read(tmp_path: Path) -> None:
    (tmp_path / "long.jpg").write_bytes(bytes(30))
    assert [len(read_photo(tmp_path / "long.jpg", max_bytes=most)) for most in (10, 29, 30, 31)] == [11, 30, 30, 30]


def test_a_request_waits_for_a_worker_no_longer_than_it_may(reader: PhotoReader) -> None:
    with reader.worker(), within(0.01), pytest.raises(TimedOut), reader.worker():
        pass


def test_a_request_that_is_out_of_time_looks_at_no_photo(reader: PhotoReader) -> None:
    with within(0), pytest.raises(TimedOut):
        reader.faces(Photo("text", b"no photo"))


def test_who_has_waited_before_begins_anew(reader: PhotoReader, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.perf_counter
    with waiting_for_worker():
        pass
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 2 * HOUR)
    before = waited()
    with reader.worker():
        pass
    assert waited() - before == pytest.approx(0, abs=60)


def test_the_face_of_the_largest_area_comes_first(reader: PhotoReader, astronaut: NDArray[np.uint8]) -> None:
    face, picture = Image.fromarray(astronaut[20:220, 130:330]), Image.new("RGB", (840, 340))
    for left, size in ((10, (180, 310)), (210, (320, 200)), (550, (260, 170))):
        picture.paste(face.resize(size), (left, 20))
    file = BytesIO()
    picture.save(file, "PNG")
    photo, before = Photo("three", file.getvalue()), REGISTRY.get_sample_value("facegallery_faces_total") or 0
    boxes = [one.face.box for one in reader.faces(photo)]
    assert REGISTRY.get_sample_value("facegallery_faces_total") == before + 3
    first, tall, broad = boxes
    assert first[2] * first[3] > tall[2] * tall[3] > broad[2] * broad[3]
    assert first[3] < tall[3]
    assert tall[2] < broad[2]
    assert [one.face.box for one in reader.faces(photo, at_most=2)] == boxes[:2]


def test_two_faces_are_several(reader: PhotoReader, astronaut: NDArray[np.uint8]) -> None:
    file = BytesIO()
    Image.fromarray(np.hstack([astronaut, astronaut])).save(file, "PNG")
    with pytest.raises(SeveralFaces, match=r"^2 faces were found"):
        reader.one_face(Photo("twins", file.getvalue()), "single", part="image")
