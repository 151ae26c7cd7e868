"""Photos wait for a worker, and no longer than they are meant to."""

import os
import threading
import time
from pathlib import Path

import anyio
import pytest

from app.api.photo_threads import in_photo_thread
from app.gallery.errors import Busy
from app.gallery.photos import PhotoReader, read_photo
from app.telemetry import QUEUE_SECONDS
from model.errors import UnsupportedImage
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
    for name in ("folder.jpg", "pipe.jpg", "nothing.jpg"):
        with pytest.raises(UnsupportedImage, match="the file cannot be read: "):
            read_photo(tmp_path / name, max_bytes=10)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
