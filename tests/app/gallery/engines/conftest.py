"""Real engines: pgvector in the test run's PostgreSQL, and Milvus Lite behind its server's address.

FACEGALLERY_TEST_MILVUS_URI names another Milvus that is tested instead, but for what needs one to go away.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest

from app.gallery.engines import IndexEngine
from app.gallery.engines.milvus import MilvusEngine
from app.gallery.engines.pgvector import PgvectorEngine
from app.gallery.records import Gallery
from tests.app.gallery.index.test_contract import MakeIndex

EXTRACTOR = "net@0123456789ab"
_numbers = count(1)  # a gallery's moment is part of its name in an engine, so that another run has others


def new_gallery(dimension: int = 8) -> Gallery:
    """A gallery that no engine has seen."""
    return Gallery(
        id=next(_numbers),
        name="people",
        extractor=EXTRACTOR,
        dimension=dimension,
        revision=0,
        policy=None,
        created_at=datetime.now(UTC),
    )


class MilvusServer:
    """Milvus Lite in a process of its own, which can die and come back."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._folder = folder
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self._folder / "milvus")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--port", str(self._port)], stdout=log, stderr=log)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            time.sleep(0.05)
        raise TimeoutError("Milvus Lite did not start")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(30)


@contextmanager
def milvus_server(folder: Path) -> Iterator[MilvusServer]:
    server = MilvusServer(folder)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that lives as long as the test run."""
    if other := os.environ.get("FACEGALLERY_TEST_MILVUS_URI"):
        yield other
        return
    with milvus_server(tmp_path_factory.mktemp("milvus")) as server:
        yield server.uri


@pytest.fixture(params=["pgvector", "milvus"])
def open_shared(request: pytest.FixtureRequest) -> Iterator[Callable[[], IndexEngine]]:
    """Opens an engine as a further process would, computing every distance."""
    opened: list[IndexEngine] = []
    if request.param == "pgvector":
        address = str(request.getfixturevalue("postgresql_server"))
    else:
        address = str(request.getfixturevalue("milvus_uri"))

    def make() -> IndexEngine:
        if request.param == "pgvector":
            opened.append(PgvectorEngine(address, timeout=10))
        else:
            opened.append(MilvusEngine(address, timeout=10, exact=True))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture
def shared(open_shared: Callable[[], IndexEngine]) -> IndexEngine:
    return open_shared()


@pytest.fixture
def make_index(shared: IndexEngine) -> MakeIndex:
    return lambda dimension: shared.index(new_gallery(dimension))


@pytest.fixture
def examples() -> int:
    """Histories that an index goes through; every step is a call to another process."""
    return 8


@pytest.fixture
def reload() -> None:
    """What an engine keeps is on its own disk."""
