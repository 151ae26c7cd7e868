"""Several processes behind one port."""

import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import httpx

from tests.http.conftest import Server

NAMED = re.compile(r'^facegallery_decisions_total\{decision="identified"\} ([0-9.]+)$', re.MULTILINE)
KEY = re.compile(r"^fg_\w{12}_\w{64}$", re.MULTILINE)


def test_two_processes_answer_as_one(serve: Callable[..., Server], tmp_path: Path, portrait: bytes) -> None:
    memory = tmp_path / "memory"
    (tmp_path / "data").mkdir()
    server = serve(tmp_path / "data", FACEGALLERY_PROCESSES="2", FACEGALLERY_RUNTIME_DIR=str(memory))
    address = str(server.client.base_url)
    until = time.monotonic() + 60
    while time.monotonic() < until:  # the port is bound before anybody listens
        with suppress(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
            break
        time.sleep(0.05)
    for number in range(3):
        answer = httpx.post(
            f"{address}/enroll", data={"subject": f"person {number}"}, files={"images": portrait}, timeout=60
        )
        assert answer.status_code == 201
        for _ in range(4):  # each on a connection of its own, which either process may take
            found = httpx.post(f"{address}/identify", files={"image": portrait}, timeout=60).json()
            assert found["faces"][0]["identity"] is not None
            assert len(found["faces"][0]["candidates"]) == number + 1
    assert httpx.get(f"{address}/readyz").json()["status"] == "ready"
    (named,) = NAMED.findall(httpx.get(f"{address}/metrics").text)
    assert float(named) == 12
    parent = server.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    states = [Path(f"/proc/{child}/status").read_text(encoding="utf-8") for child in children]
    assert len(states) >= 2
    assert not any("\nTHP_enabled:\t1\n" in state for state in states)  # see `use_no_huge_pages`
    assert len(list(memory.rglob("counter_*.db"))) >= 2  # of each process, where a full disk ends neither
    assert server.stop() in {0, -15}
    assert list((memory / "facegallery").iterdir()) == []
    assert "Traceback" not in server.log


def test_the_first_key_is_made_and_the_settings_are_written_down_once_for_all(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    server = serve(tmp_path / "data", FACEGALLERY_PROCESSES="2", FACEGALLERY_AUTHENTICATION="keys")
    until = time.monotonic() + 120
    while server.log.count("Application startup complete") < 2:
        assert time.monotonic() < until, server.log
        time.sleep(0.1)
    (key,) = KEY.findall(server.log)
    assert server.log.index(key) < server.log.index("Started parent process")
    answer = httpx.get(f"{server.client.base_url}/galleries", headers={"Authorization": f"Bearer {key}"}, timeout=60)
    assert answer.status_code == 200
    assert server.stop() in {0, -15}
    with closing(sqlite3.connect(tmp_path / "data" / "facegallery.db")) as database:
        actions = [action for (action,) in database.execute("SELECT action FROM audit ORDER BY number")]
    assert actions == ["settings", "create-key"]


def test_a_process_that_starts_slowly_is_waited_for(serve: Callable[..., Server], tmp_path: Path) -> None:
    # As where many load their networks on few processors: who was ended after five seconds began anew, without end.
    slowly = 'import sys, time\nif "--multiprocessing-fork" in sys.orig_argv:\n    time.sleep(7)\n'
    (tmp_path / "sitecustomize.py").write_text(slowly)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "data").mkdir()
    server = serve(tmp_path / "data", FACEGALLERY_PROCESSES="2", PYTHONPATH=path)
    until = time.monotonic() + 120
    while server.log.count("Application startup complete") < 2 and "died" not in server.log:
        assert time.monotonic() < until, server.log
        time.sleep(0.1)

    assert "died" not in server.log
    assert server.stop() in {0, -15}
