"""What only a process and a socket show: a body that is too large is not read to its end, and the log."""

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.http.conftest import Server
from tests.http.test_bad_input import is_problem

MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("process"), FACEGALLERY_LOG_FORMAT="json")
    yield server
    server.stop()


@pytest.mark.parametrize("call", ["/enroll", "/identify", "/embed", "/galleries"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_200_megabytes_are_refused_and_not_read_to_the_end(server: Server, call: str, declared: bool) -> None:
    size, sent = 200 * MIB, 0
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\n\r\n'

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield start
        while sent < size:
            sent += MIB
            yield bytes(MIB)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    headers |= {"Content-Length": str(len(start) + size)} if declared else {}
    answer = server.client.post(call, content=body(), headers=headers)

    assert is_problem(answer, 413, "request-too-large")
    assert sent < (100 * MIB if declared else size)


def test_the_log_has_a_line_of_json_for_each_request_with_its_id_and_without_names(
    server: Server, portrait: bytes
) -> None:
    server.client.post("/enroll", data={"subject": "a secret name"}, files={"images": portrait}).raise_for_status()
    server.client.get("/galleries/default/subjects/a secret name", headers={"X-Request-ID": "order-66"})
    until = time.monotonic() + 30
    while "order-66" not in server.log and time.monotonic() < until:
        time.sleep(0.01)  # the line is written once the answer is out
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]

    (line,) = [one for one in lines if one.get("request_id") == "order-66"]
    assert (line["event"], line["method"], line["status"]) == ("request", "GET", 200)
    assert line["route"] == "/galleries/{gallery}/subjects/{subject:path}"
    assert [text for text in server.log.splitlines() if not text.startswith("{")] == []
    assert "secret" not in server.log


def test_a_connection_is_kept_after_a_refusal(
    server: Server, refusals: Callable[[httpx.Client], Iterator[int]]
) -> None:
    assert list(refusals(server.client)) == [404, 405, 422, 415]
    assert server.client.get("/healthz").status_code == 200


@pytest.fixture
def refusals() -> Callable[[httpx.Client], Iterator[int]]:
    def refusals(client: httpx.Client) -> Iterator[int]:
        yield client.get("/nothing").status_code
        yield client.get("/enroll").status_code
        yield client.post("/enroll", data={"subject": "eileen"}).status_code
        yield client.post("/identify", content=b"x", headers={"Content-Type": "text/plain"}).status_code

    return refusals


@pytest.mark.parametrize("most", [1, 2])
def test_as_many_connections_as_are_set_are_answered(serve: Callable[..., Server], tmp_path: Path, most: int) -> None:
    server = serve(tmp_path, FACEGALLERY_MAX_CONNECTIONS=str(most))
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(httpx.Client(base_url=server.client.base_url)) for _ in range(most + 1)]
        answers = [client.get("/healthz") for client in clients]
        assert [answer.status_code for answer in answers] == [200] * most + [503]
        assert answers[-1].headers["content-type"].startswith("text/plain")
        for _ in range(100):  # until the server has seen that the refused one is gone
            again = [client.get("/healthz").status_code for client in clients[:most]]
            if again == [200] * most:
                break
        assert again == [200] * most


def test_a_thousand_galleries_do_not_meet_the_limit_of_a_shell(tmp_path: Path) -> None:
    """The process that leads a gallery's snapshots has a file open for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        server = Server(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = Path(f"/proc/{server.process.pid}/limits").read_text().partition("Max open files")[2].split()[0]
    assert server.stop() in {0, -15}
    assert int(allowed) == min(hard, 65_536)
