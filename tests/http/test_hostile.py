"""Callers that mean harm: slow ones, endless ones, many at once; and the headers that keep browsers in check."""

import asyncio
import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from fastapi import Response
from fastapi.testclient import TestClient
from PIL import Image
from starlette.types import Receive, Scope, Send

from app.api.body_guard import MAX_PLAIN_BYTES, BodyGuard
from app.settings import Settings
from tests.fuzz.hostile_images import hostile_images, png_of_16_bits
from tests.http.conftest import Server, running
from tests.http.test_bad_input import is_problem

MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp("hostile"),
        FACEGALLERY_BODY_TIMEOUT="0.5",
        FACEGALLERY_HEADER_TIMEOUT="0.5",
        FACEGALLERY_MAX_HEADER_BYTES="4096",
        FACEGALLERY_QUEUE_TIMEOUT="1",
    )
    yield server
    server.stop()


def answer_to(server: Server, sent: bytes) -> bytes:
    """What comes back until the server hangs up, which it does by itself."""
    url = server.client.base_url
    parts = []
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        with suppress(ConnectionError):  # it hung up while more was being sent
            connection.sendall(sent)
        with suppress(ConnectionError):
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts)


FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
CHUNKED = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
START = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.jpg"\r\n\r\n'


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b"408"),
        (b"G", b"408"),
        (b"GET /galleries HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"408"),
        (b"POST /identify HTTP/1.1\r\nHost: localhost\r\n" + FORM + b"Content-Length: 9999\r\n\r\n" + START, b"408"),
        (
            b"POST /galleries HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED + b"\r\n1\r\n{\r\n",
            b"408",
        ),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 100_000, b"431"),
        (b"GET /?" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: x\r\n" * 10_000 + b"\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no TLS here\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
    ],
    ids=[
        "says nothing", "one byte", "half a header", "half a body", "half a chunked body", "keeps the line",
        "endless header", "endless address", "many headers", "TLS", "two lengths",
    ],
)  # fmt: skip
def test_who_is_slow_or_endless_is_cut_off(server: Server, sent: bytes, status: bytes) -> None:
    answer = answer_to(server, sent)
    assert answer.split(b" ", 2)[1] == status
    if status != b"200":
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["status"] == int(status)
    assert server.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("endless", [b"0\r\nX-Behind: ", b"1;"], ids=["header behind a body", "header of a chunk"])
@pytest.mark.parametrize("call", [b"/identify", b"/healthz"])
def test_what_is_endless_between_chunks_is_cut_off_before_it_is_late(
    server: Server, call: bytes, endless: bytes
) -> None:
    start = b"POST " + call + b" HTTP/1.1\r\nHost: localhost\r\n" + CHUNKED + b"\r\n" + endless
    answer = answer_to(server, start + b"x" * 2_000_000)
    assert b"408" not in answer
    assert server.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (b"/identify", b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"),
        (b"/galleries", b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"),
        (b"/identify", FORM + b"Content-Length: 1000\r\n\r\n" + START),
        (b"/enroll", FORM + b"Content-Length: 1000\r\n\r\n" + START),
    ],
    ids=["an embedding", "a gallery", "a probe", "an enrolment"],
)
def test_who_leaves_within_the_body_is_no_failure_of_the_service(server: Server, call: bytes, start: bytes) -> None:
    url = server.client.base_url
    before = len(server.log)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(b"POST " + call + b" HTTP/1.1\r\nHost: localhost\r\n" + start)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""
    for _ in range(100):
        if "status=499" in server.log[before:]:
            break
        time.sleep(0.1)
    assert "status=499" in server.log[before:]
    assert "request.failed" not in server.log[before:]


def test_who_does_not_take_the_answer_is_cut_off(server: Server) -> None:
    url = server.client.base_url
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((url.host, url.port or 80))
        connection.setblocking(False)
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200
        with suppress(BlockingIOError):
            connection.sendall(asked)
        for _ in range(600):
            if "answer.not_taken" in server.log:
                break
            time.sleep(0.1)
        connection.setblocking(True)
        taken = 0
        with suppress(ConnectionError):
            while more := connection.recv(65536):
                taken += len(more)
    assert taken < 100 * len(server.client.get("/openapi.json").content)
    assert server.log.partition("Traceback")[2] == ""


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain", None])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_that_is_no_form_with_files_is_short(client: TestClient, kind: str | None, declared: bool) -> None:
    body = b"[" + b"[]," * (MAX_PLAIN_BYTES // 3) + b"[]]"
    headers = {} if kind is None else {"Content-Type": kind}
    # In chunks its length is not known before it is read, and what a route cannot read is refused first.
    refused = {413} if declared or kind == "application/json" else {413, 415, 422}
    for method, call in (("POST", "/identify"), ("POST", "/galleries"), ("PATCH", "/galleries/none")):
        answer = client.request(method, call, content=body if declared else iter([body]), headers=headers)
        assert answer.status_code in refused


def test_a_length_that_is_no_number_is_refused(client: TestClient) -> None:
    for length in ("-1", "1e3", "\N{SUPERSCRIPT TWO}"):
        headers = [(b"content-length", length.encode("latin-1"))]
        answer = client.post("/galleries", headers=headers)
        assert is_problem(answer, 400, "http")


def part(name: str, value: bytes = b"", file: bool = False) -> bytes:
    end = b'; filename="x.jpg"' if file else b""
    return b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name.encode(), end, value)


@pytest.mark.parametrize("call", ["/enroll", "/identify", "/verify", "/detect", "/embed"])
@pytest.mark.parametrize(
    "body",
    [
        part("x") * 21,
        part("images", b"", True) * 102,
        part("metadata", b"x" * 65_537),
        b"--b\r\n" + b"X-Header: x\r\n" * 100 + b"\r\n\r\n",
        b"--b\r\nX-Header: " + b"x" * 10_000 + b"\r\n\r\n",
        b"--b\r\nContent-Disposition: form-data\r\n\r\n",
    ],
    ids=["fields", "files", "long field", "headers of a part", "long header of a part", "no name"],
)
def test_a_form_of_too_many_parts_is_refused(client: TestClient, call: str, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post(call, content=body + b"--b--\r\n", headers=headers)
    assert is_problem(answer, 400, "http")


def test_bodies_of_all_requests_together_have_a_limit() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        await Response()(scope, receive, send)

    guard = BodyGuard(answer, max_bytes=MIB, max_held_bytes=MIB, late=30, min_rate=1, work=30)

    async def statuses() -> list[int]:
        both = asyncio.Barrier(2)

        async def body() -> AsyncIterator[bytes]:
            await both.wait()
            yield bytes(MIB * 2 // 3)
            await asyncio.sleep(0.1)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://test") as caller:
            headers = {"Content-Type": "multipart/form-data; boundary=b; charset=utf-8"}
            calls = (caller.post("/", content=body(), headers=headers) for _ in range(2))
            return sorted([one.status_code for one in await asyncio.gather(*calls)])

    for _ in range(3):  # what was held is given back
        assert asyncio.run(statuses()) == [200, 503]


def test_a_body_that_is_more_than_all_bodies_together_may_be_is_too_large(tmp_path: Path, portrait: bytes) -> None:
    with running(Settings(data_dir=tmp_path, max_upload_bytes=MIB, _env_file=None)) as client:
        for number in range(2):  # trying again would not help
            refused = client.post("/identify", files={"image": bytes((2 + number) * MIB)})
            assert is_problem(refused, 413, "request-too-large")
            assert "Retry-After" not in refused.headers
        for _ in range(10):  # what was held is given back
            assert client.post("/detect", files={"image": portrait}).status_code == 200


def test_work_that_takes_too_long_is_given_up_and_nothing_is_stored(tmp_path: Path, portrait: bytes) -> None:
    with running(Settings(data_dir=tmp_path, request_timeout=1e-9, _env_file=None)) as client:
        answer = client.post("/enroll", data={"subject": "eileen"}, files={"images": portrait})
        assert is_problem(answer, 503, "timed-out")
        assert is_problem(client.post("/detect", files={"image": portrait}), 503, "timed-out")
        assert client.get("/galleries").json() == {"galleries": [], "next_cursor": None}


def peak_memory(server: Server) -> int:
    """Bytes that the process had at most."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(kilobytes) * 1024


def test_fifty_bombs_at_once_are_answered_and_memory_stays_bounded(
    serve: Callable[..., Server], tmp_path: Path, portrait: bytes
) -> None:
    server = serve(tmp_path, FACEGALLERY_QUEUE_TIMEOUT="1")  # and the usual time for a body: one core sends fifty
    rgba, grey = BytesIO(), BytesIO()
    Image.new("RGBA", (7000, 7000)).save(rgba, "PNG")  # 190 KB that are 49 million pixels
    Image.new("I;16", (7000, 7000)).save(grey, "PNG")
    bombs = [rgba.getvalue(), grey.getvalue(), png_of_16_bits(7000, 7000), hostile_images()["png-30000x30000"]]
    before = peak_memory(server)

    def send(number: int) -> int:
        photo = bombs[number % 4]
        answer = httpx.post(f"{server.client.base_url}/identify", files={"image": photo}, timeout=120)
        return answer.status_code

    server.client.post("/enroll", data={"subject": "eileen"}, files={"images": portrait}).raise_for_status()
    with ThreadPoolExecutor(50) as pool:
        statuses = set(pool.map(send, range(50)))
    assert statuses <= {200, 413, 503}
    assert {413, 503} & statuses
    # A worker for each of the two processors of a small machine, up to eight, and 700 MiB for each.
    assert peak_memory(server) - before < 8 * 700 * MIB
    (face,) = server.client.post("/identify", files={"image": portrait}).json()["faces"]
    assert face["identity"]["subject"] == "eileen"


@pytest.mark.parametrize("name", hostile_images())
def test_a_hostile_image_is_read_or_refused(client: TestClient, name: str) -> None:
    photo = hostile_images()[name]
    assert client.post("/identify", files={"image": photo}, data={"gallery": "none"}).status_code in {404, 413, 422}
    assert client.post("/detect", files={"image": photo}).status_code in {200, 413, 422}
    data = {"subject": "mallory", "gallery": "hostile"}
    assert client.post("/enroll", files={"images": photo}, data=data).status_code == 422


# -- browsers


@pytest.mark.parametrize("address", ["/galleries", "/healthz", "/nothing", "/docs", "/galleries/none", "/metrics"])
def test_every_answer_keeps_browsers_in_check(client: TestClient, address: str) -> None:
    headers = client.get(address).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert ("script-src 'self'" in policy) == (address == "/docs")
    assert "http" not in policy
    assert "Access-Control-Allow-Origin" not in headers
    assert "Strict-Transport-Security" not in headers


def test_pages_of_named_origins_may_call_and_no_others(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, authentication="keys", cors_origins="https://desk.example.org", _env_file=None
    )
    with running(settings) as client:
        for origin, allowed in (("https://desk.example.org", True), ("https://desk.example.org.evil.org", False)):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            asked["Access-Control-Request-Headers"] = "authorization"
            answer = client.options("/identify", headers=asked)
            assert (answer.status_code == 200) == allowed
            assert ("Access-Control-Allow-Origin" in answer.headers) == allowed
        assert client.get("/galleries", headers={"Origin": "https://desk.example.org"}).status_code == 401


def test_the_page_of_documents_has_all_that_it_loads_from_the_service_itself(client: TestClient) -> None:
    page = client.get("/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    kinds = [client.get(address).headers["Content-Type"].split(";")[0] for address in loaded]
    assert sorted(kinds) == ["image/png", "text/css", "text/javascript"]
    assert "url: '/openapi.json'" in page
    assert client.get("/docs/redoc.standalone.js").status_code == 422


def test_the_page_of_documents_can_be_switched_off(tmp_path: Path) -> None:
    with running(Settings(data_dir=tmp_path, docs=False, _env_file=None)) as client:
        for address in ("/docs", "/docs/swagger-ui.css", "/openapi.json", "/redoc"):
            assert is_problem(client.get(address), 404, "http")


def test_tls_by_the_services_own_settings(tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(chain)]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    server = Server(tmp_path, FACEGALLERY_TLS_CERTIFICATE=str(chain), FACEGALLERY_TLS_KEY=str(key))
    trusted = ssl.create_default_context(cafile=str(chain))
    answer = httpx.get(f"{server.client.base_url}/galleries", verify=trusted)
    server.stop()
    assert answer.status_code == 200
    assert answer.headers["Strict-Transport-Security"]
    assert "Server" not in answer.headers


def test_a_trusted_proxy_names_the_caller_and_nobody_else_does(tmp_path: Path) -> None:
    server = Server(
        tmp_path,
        FACEGALLERY_AUTHENTICATION="keys",
        FACEGALLERY_TRUSTED_PROXIES="127.0.0.1",
        FACEGALLERY_RATE_LIMIT="0.001",
        FACEGALLERY_RATE_BURST="1",
    )
    for address, status in (("203.0.113.5", 401), ("203.0.113.6", 401), ("203.0.113.5", 429)):
        headers = {"X-Forwarded-For": f"198.51.100.{status % 250}, {address}"}  # what a caller wrote comes first
        assert server.client.get("/galleries", headers=headers).status_code == status
    server.stop()
