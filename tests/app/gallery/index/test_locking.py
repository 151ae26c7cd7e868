import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.gallery.index.locking import ReadWriteLock


def test_readers_run_together() -> None:
    lock, both_inside = ReadWriteLock(), threading.Barrier(2, timeout=30)

    def read() -> None:
        with lock.reading():
            both_inside.wait()

    with ThreadPoolExecutor(2) as pool:
        for reader in [pool.submit(read), pool.submit(read)]:
            reader.result()


def test_a_writer_is_alone() -> None:
    lock, reading, writing = ReadWriteLock(), set[int](), set[int]()

    def write(name: int) -> None:
        for _ in range(100):
            with lock.writing():
                writing.add(name)
                assert (writing, reading) == ({name}, set())
                writing.remove(name)

    def read(name: int) -> None:
        for _ in range(100):
            with lock.reading():
                reading.add(name)
                assert not writing
                reading.remove(name)

    with ThreadPoolExecutor(6) as pool:
        for thread in [pool.submit(write if name < 3 else read, name) for name in range(6)]:
            thread.result()


def test_a_waiting_writer_goes_before_later_readers() -> None:
    lock, order = ReadWriteLock(), list[str]()

    def write() -> None:
        with lock.writing():
            order.append("writer")

    def read() -> None:
        with lock.reading():
            order.append("later reader")

    writer, later = threading.Thread(target=write), threading.Thread(target=read)
    with lock.reading():
        writer.start()
        while not lock._writers_waiting:
            writer.join(0.001)
        later.start()
        later.join(0.05)
        assert order == []
    writer.join()
    later.join()
    assert order == ["writer", "later reader"]


def test_an_error_gives_the_lock_back() -> None:
    lock = ReadWriteLock()
    for hold in (lock.reading, lock.writing, lock.reading):
        with pytest.raises(ZeroDivisionError), hold():
            raise ZeroDivisionError
