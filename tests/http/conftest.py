"""The whole service: in this process for most tests, as a process of its own where one is stopped or killed."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import migrate
from app.main import create_app
from app.settings import Settings


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=95)
    return file.getvalue()


@contextmanager
def running(settings: Settings) -> Iterator[TestClient]:
    engine = open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout)
    migrate(engine)
    engine.dispose()
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with running(Settings(data_dir=tmp_path_factory.mktemp("gallery"), _env_file=None)) as client:
        yield client


@pytest.fixture
def gallery() -> str:
    """A name that no other test uses."""
    return f"gallery {uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def portrait(astronaut_jpeg: bytes) -> bytes:
    return astronaut_jpeg


@pytest.fixture(scope="session")
def mirrored(astronaut: NDArray[np.uint8]) -> bytes:
    return jpeg(astronaut[:, ::-1])


@pytest.fixture(scope="session")
def ten_faces(astronaut: NDArray[np.uint8]) -> bytes:
    face = astronaut[20:220, 130:330]
    return jpeg(np.vstack([np.hstack([face] * 5)] * 2))


@pytest.fixture(scope="session")
def no_face() -> bytes:
    return jpeg(np.full((300, 300, 3), 127, np.uint8))


Enroll = Callable[..., httpx.Response]


@pytest.fixture
def enroll(client: TestClient, gallery: str) -> Enroll:
    def enroll(subject: str, *photos: bytes, **fields: Any) -> httpx.Response:
        files = [("images", (f"{number}.jpg", photo)) for number, photo in enumerate(photos)]
        answer: httpx.Response = client.post(
            "/enroll", data={"subject": subject, "gallery": gallery, **fields}, files=files
        )
        return answer

    return enroll


@pytest.fixture
def identify(client: TestClient, gallery: str) -> Callable[..., httpx.Response]:
    def identify(photo: bytes, **fields: Any) -> httpx.Response:
        answer: httpx.Response = client.post("/identify", data={"gallery": gallery, **fields}, files={"image": photo})
        return answer

    return identify


class Server:
    """`facegallery serve` as a process of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._environment = os.environ | {"FACEGALLERY_DATA_DIR": str(folder), "FACEGALLERY_PORT": "0"} | environment
        self._log = folder / f"log-{uuid.uuid4().hex}.txt"
        self.process = self._start()
        self.client = httpx.Client(base_url=self._address(), timeout=60)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        status = self.process.wait(60)
        self.client.close()
        return status

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from app.cli import main; main()", "serve", "--migrate"]
        with self._log.open("wb") as log:
            return subprocess.Popen(command, env=self._environment, stderr=log)

    def _address(self) -> str:
        for _ in range(600):
            if found := re.search(r"running on (https?://127\.0\.0\.1:\d+)", self.log):
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(self.log)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(folder: Path, **environment: str) -> Server:
        servers.append(Server(folder, **environment))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop(signal.SIGKILL)
