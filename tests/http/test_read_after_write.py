"""What one process of a service has acknowledged, every other finds on its next call, while two write at once."""

import base64
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from random import Random

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.databases import empty_schema
from tests.http.conftest import Server, jpeg

WRITES = 50  # of each of two who write
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/net/tcp").exists(), reason="Linux tells which process has a connection"
)


class Person:
    """Somebody who writes through one process and looks through another for all that was acknowledged to them.

    Args:
        name: in the keys of the subjects, which nobody else writes.
        photo: of every subject.
        embedding: of the photo.
        addresses: where to connect to, in turns.
        processes: that answer there.
    """

    def __init__(
        self, name: str, photo: bytes, embedding: list[float], addresses: Sequence[str], processes: Sequence[int]
    ) -> None:
        self.written_by = set[int]()
        self._name, self._photo = name, photo
        self._probe = {"embedding": embedding, "top_k": 100, "all_candidates": True}
        self._addresses, self._processes = cycle(addresses), processes
        self._clients = [self._client()]
        self._there = set[str]()

    def write_and_read(self) -> None:
        chance = Random(self._name)
        for number in range(WRITES):
            client = self._clients[number % len(self._clients)]
            if self._there and chance.random() < 0.4:
                key = chance.choice(sorted(self._there))
                answer = client.delete(f"/galleries/default/subjects/{key}")
                assert answer.status_code == 204
                self._there.remove(key)
            else:
                key = f"{self._name} {number}"
                answer = client.post("/enroll", data={"subject": key}, files={"images": self._photo})
                assert answer.status_code == 201
                self._there.add(key)
            self._read_through_another(process_of(answer, self._processes))

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def _read_through_another(self, process: int) -> None:
        """Read until another process than that one has answered; whichever does, it has to know everything."""
        self.written_by.add(process)
        for client in self._open_clients():
            answer = client.post("/identify", json=self._probe)
            found = {one["subject"] for one in answer.raise_for_status().json()["probe"]["candidates"]}
            assert len(found) < 100  # so that nobody is left out
            assert {key for key in found if key.startswith(self._name)} == self._there
            if process_of(answer, self._processes) != process:
                return
        raise AssertionError("no other process answers")

    def _open_clients(self) -> Iterator[httpx.Client]:
        """Those that there are, and new ones: which process takes a connection nobody can choose."""
        yield from list(self._clients)
        while len(self._clients) < 100:
            self._clients.append(self._client())
            yield self._clients[-1]

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=next(self._addresses), timeout=60)


def process_of(answer: httpx.Response, processes: Sequence[int]) -> int:
    """Which of some processes has the other end of the connection that an answer has come by."""
    stream = answer.extensions["network_stream"]
    ends = [f"{stream.get_extra_info(name)[1]:04X}" for name in ("server_addr", "client_addr")]
    connections = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    (socket,) = (f"socket:[{one[9]}]" for one in connections if [end[-4:] for end in one[1:3]] == ends)
    (process,) = (one for one in processes if socket in files_of(one))
    return process


def files_of(process: int) -> set[str]:
    """What a process has open."""
    return {str(path.readlink()) for path in Path(f"/proc/{process}/fd").iterdir() if path.is_symlink()}


def two_write_at_once(addresses: Sequence[str], processes: Sequence[int], photo: bytes) -> None:
    embedded = httpx.post(f"{addresses[0]}/embed", files={"image": photo}, timeout=60).json()
    embedding = embedded["faces"][0]["embedding"]
    people = [Person(name, photo, embedding, addresses, processes) for name in ("ada", "bob")]
    try:
        with ThreadPoolExecutor(len(people)) as threads:
            for done in [threads.submit(person.write_and_read) for person in people]:
                done.result()
    finally:
        for person in people:
            person.close()
    assert all(len(person.written_by) == 2 for person in people)


@pytest.fixture(scope="module")
def face(astronaut: NDArray[np.uint8]) -> bytes:
    return jpeg(astronaut[20:220, 130:330])


def test_two_processes_on_sqlite(serve: Callable[..., Server], tmp_path: Path, face: bytes) -> None:
    server = serve(tmp_path, FACEGALLERY_PROCESSES="2")
    until = time.monotonic() + 120
    while server.log.count("Application startup complete") < 2:
        assert time.monotonic() < until, server.log
        time.sleep(0.1)
    leader = server.process.pid
    workers = [int(one) for one in Path(f"/proc/{leader}/task/{leader}/children").read_text().split()]
    two_write_at_once([str(server.client.base_url)], workers, face)
    assert server.stop() in {0, -15}
    assert "Traceback" not in server.log


def test_two_services_on_one_postgresql(
    serve: Callable[..., Server], tmp_path: Path, postgresql_server: str, face: bytes
) -> None:
    shared = {
        "FACEGALLERY_DATABASE_URL": empty_schema(postgresql_server),
        "FACEGALLERY_VAULT_URL": empty_schema(postgresql_server),
        "FACEGALLERY_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "FACEGALLERY_KEY_PEPPER": secrets.token_hex(),
    }
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    services = [serve(tmp_path / name, **shared) for name in ("one", "other")]  # each has its own snapshots
    addresses = [str(service.client.base_url) for service in services]
    two_write_at_once(addresses, [service.process.pid for service in services], face)
    for service in services:
        assert service.stop() in {0, -15}
        assert "Traceback" not in service.log
