"""A real `facegallery serve` in a process of its own, for the length of a benchmark."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

_COMMAND = [sys.executable, "-c", "from app.cli import main; main()"]
_START_SECONDS = 1800.0  # with millions of templates and no snapshot


@contextmanager
def running_service() -> Iterator[str]:
    """Migrate an empty SQLite database in a temporary folder, serve it on a free port, and yield the service's URL.

    Every other setting is that of the environment, so other settings can be measured too.

    Raises:
        RuntimeError: the service ended or was not ready in time; the message ends with its log.
    """
    with tempfile.TemporaryDirectory(prefix="facegallery-") as folder:
        own = {"FACEGALLERY_DATA_DIR": folder, "FACEGALLERY_DATABASE_URL": ""}
        subprocess.run([*_COMMAND, "migrate"], env={**os.environ, **own}, check=True)
        with service_on(own) as url:
            yield url


@contextmanager
def service_on(settings: Mapping[str, str]) -> Iterator[str]:
    """Serve what the settings name (`FACEGALLERY_…`, beside those of the environment) on a free port.

    Raises:
        RuntimeError: as for `running_service`.
    """
    with tempfile.TemporaryDirectory(prefix="facegallery-") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        own = {"LOG_LEVEL": "warning", "HOST": "127.0.0.1", "PORT": str(port)}
        environment = {**os.environ, **settings, **{f"FACEGALLERY_{name}": value for name, value in own.items()}}
        log = Path(folder) / "serve.log"
        with log.open("wb") as output:
            process = subprocess.Popen([*_COMMAND, "serve"], env=environment, stderr=output, stdout=output)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait()


def resident_bytes(url: str) -> int:
    """Bytes of resident memory of the process that listens at a service's URL."""
    port = f"{int(url.rsplit(':', 1)[1]):04X}"
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = (fields[9] for fields in sockets if fields[1].endswith(f":{port}") and fields[3] == "0A")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(file.readlink()) == f"socket:[{inode}]" for file in (process / "fd").iterdir()):
                return int((process / "statm").read_text().split()[1]) * 4096
        except OSError:  # it is gone, or another account's
            continue
    raise RuntimeError(f"no process listens on {url}")


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass  # nothing listens yet
        time.sleep(0.02)
    raise RuntimeError("the service did not get ready; its log:\n" + log.read_text(errors="replace")[-4000:])
