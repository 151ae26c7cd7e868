"""A service is backed up while it enrolls, goes on, is stopped and restored, and knows who it knew at the backup."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

from tests.dumping import Operator
from tests.http.conftest import Server, jpeg
from tests.http.test_faults import candidates, send


@dataclass(frozen=True, slots=True)
class BackUp:
    """How a database is backed up and restored, by the documents; the service has its address by these settings."""

    copy: Callable[[], None]
    restore: Callable[[], None]
    settings: dict[str, str]


@pytest.fixture
def sqlite(tmp_path: Path) -> BackUp:
    def run(*words: str) -> None:
        command = [sys.executable, "-c", "from app.cli import main; main()", *words]
        subprocess.run(command, env=os.environ | {"FACEGALLERY_DATA_DIR": str(tmp_path / "data")}, check=True)

    copy = str(tmp_path / "night.db")
    return BackUp(lambda: run("backup", copy), lambda: run("restore", copy), {})


@pytest.fixture
def postgresql(tmp_path: Path, postgresql_server: str) -> BackUp:
    operator = Operator(postgresql_server, tmp_path)

    def copy() -> None:
        with psycopg.connect(operator.address) as connection:  # else `restore` waits a minute for whoever reported now
            connection.execute("UPDATE follower SET seen_at = seen_at - interval '1 minute'")
        operator.dump()

    return BackUp(copy, operator.restore, {"FACEGALLERY_DATABASE_URL": operator.address})


@pytest.fixture
def face(astronaut: NDArray[np.uint8]) -> bytes:
    return jpeg(astronaut[20:220, 130:330])


class Enrolling:
    """Somebody who enrolls one person after the other, and knows who was acknowledged."""

    def __init__(self, server: Server, photo: bytes) -> None:
        self.acknowledged: list[str] = []
        self._server, self._photo = server, photo
        self._told, self._enough = threading.Condition(), threading.Event()

    def wait_for(self, more: int) -> None:
        """Wait until so many more are acknowledged."""
        wanted = len(self.acknowledged) + more
        with self._told:
            assert self._told.wait_for(lambda: len(self.acknowledged) >= wanted, timeout=120)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._enroll)
        thread.start()
        try:
            yield
        finally:
            self._enough.set()
            thread.join()

    def _enroll(self) -> None:
        while not self._enough.is_set():
            key = f"person {len(self.acknowledged)}"
            assert send(self._server.client, key, self._photo).status_code == 201
            with self._told:
                self.acknowledged.append(key)
                self._told.notify_all()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_service_is_restored_to_the_moment_of_its_backup(
    request: pytest.FixtureRequest, kind: str, serve: Callable[..., Server], tmp_path: Path, face: bytes
) -> None:
    back_up: BackUp = request.getfixturevalue(kind)
    (tmp_path / "data").mkdir()
    server = serve(tmp_path / "data", **back_up.settings)
    enrolling = Enrolling(server, face)
    with enrolling.at_work():
        enrolling.wait_for(6)
        before = set(enrolling.acknowledged)
        back_up.copy()
        meanwhile = set(enrolling.acknowledged)
        enrolling.wait_for(4)
    late = set(enrolling.acknowledged[len(meanwhile) + 1 :])  # one may have been stored and not yet acknowledged
    assert len(late) >= 3
    server.client.delete("/galleries/default/subjects/person 2").raise_for_status()
    assert candidates(server.client, face) == set(enrolling.acknowledged) - {"person 2"}
    assert server.stop() in {0, -15}

    back_up.restore()

    server = serve(tmp_path / "data", **back_up.settings)
    found = candidates(server.client, face)
    assert before - found == {"person 2"}  # whose key is destroyed, so that no backup brings them back
    assert found.isdisjoint(late)
    assert send(server.client, "somebody new", face).status_code == 201
    assert candidates(server.client, face) == found | {"somebody new"}
    assert server.stop() in {0, -15}
