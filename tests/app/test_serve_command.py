"""What stops a start is told at once, in one line, with code 1."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.app.test_cli import Facegallery, facegallery
from tests.http.conftest import Server, serve

__all__ = ["facegallery", "serve"]  # fixtures

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this machine and its key, in PEM files."""
    return make_pair(tmp_path, "own")


def make_pair(folder: Path, name: str) -> tuple[Path, Path]:
    key, who = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "faces")]),
    )
    day = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(day)
    signed = builder.not_valid_after(day + timedelta(days=1)).sign(key, hashes.SHA256())
    certificate, secret = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return certificate, secret


def test_a_port_that_is_none_is_refused(facegallery: Facegallery) -> None:
    done = facegallery("serve", "--port", "99999")
    assert (done.returncode, "65535" in done.stderr) == (2, True)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_port_that_is_taken_is_told_before_anything_is_loaded(
    facegallery: Facegallery, tmp_path: Path, processes: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = facegallery("serve", "--migrate", "--port", port, "--processes", processes)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: port {port} of 127.0.0.1 cannot be listened on: Address already in use")
    assert not (tmp_path / "gallery").exists()


def test_an_address_of_another_machine_is_told(facegallery: Facegallery) -> None:
    done = facegallery("serve", "--host", "192.0.2.7")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: port 8000 of 192.0.2.7 cannot be listened on: Cannot assign requested")
    done = facegallery("serve", "--host", "no such host")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: FACEGALLERY_HOST: no such host is no address of this machine")


def test_a_start_that_fails_late_is_refused_with_the_same_code(facegallery: Facegallery) -> None:
    program = (
        "import app.commands.serve as serve\nserve.check_address = lambda *_: None\nfrom app.cli import main; main()"
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        words = ["serve", "--migrate", "--port", str(other.getsockname()[1])]
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, env=facegallery.environment, check=False, capture_output=True)
    assert done.returncode == 1


def exchanged(certificate: Path, key: Path) -> str:
    other = key.read_bytes()
    key.write_bytes(certificate.read_bytes())
    certificate.write_bytes(other)
    return f"FACEGALLERY_TLS_CERTIFICATE: {certificate} holds no certificate in PEM"


def without_key(certificate: Path, key: Path) -> str:
    key.unlink()
    return f"FACEGALLERY_TLS_KEY: {key}: No such file or directory"


def of_another(certificate: Path, key: Path) -> str:
    make_pair(key.parent, "other")[1].replace(key)
    return (
        f"FACEGALLERY_TLS_CERTIFICATE: {certificate} and FACEGALLERY_TLS_KEY: {key} are no certificate and its key "
        "([X509: KEY_VALUES_MISMATCH]"
    )


@pytest.mark.parametrize("break_it", [exchanged, without_key, of_another])
def test_tls_files_that_are_none_are_named_with_their_settings(
    tmp_path: Path, pair: tuple[Path, Path], break_it: Callable[[Path, Path], str]
) -> None:
    certificate, key = pair
    sentence = break_it(certificate, key)
    files = {"FACEGALLERY_TLS_CERTIFICATE": str(certificate), "FACEGALLERY_TLS_KEY": str(key)}
    done = Facegallery(tmp_path / "gallery", **files)("serve", "--port", "0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: {sentence}")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a gallery that has a vault, a key and an audit log."""
    folder = tmp_path_factory.mktemp("used") / "gallery"
    for words in (("migrate",), ("keys", "create", "door", "--scope", "read"), ("master-key", "status")):
        assert Facegallery(folder)(*words).returncode == 0
    return folder


def serve_in_vain(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A start that has to end by itself, with all its processes."""
    command = [sys.executable, "-c", "from app.cli import main; main()", "serve", "--port", "0"]
    everything = os.environ | {"FACEGALLERY_DATA_DIR": str(folder)} | environment
    with subprocess.Popen(
        command, env=everything, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        try:
            _, said = started.communicate(timeout=90)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, started.returncode, "", said)


def without_master_key(folder: Path) -> str:
    (folder / "master.key").unlink()
    return "there is no master key: "


def without_pepper(folder: Path) -> str:
    (folder / "key-pepper").unlink()
    return "the pepper is missing, "


def with_another_pepper(folder: Path) -> str:
    (folder / "key-pepper").write_text("another pepper of more than 32 characters")
    return "the audit log's head was changed, or sealed with another pepper; "


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("break_it", [without_master_key, without_pepper, with_another_pepper])
def test_a_start_without_what_it_needs_ends_with_a_sentence(
    tmp_path: Path, used: Path, break_it: Callable[[Path], str], processes: str
) -> None:
    folder = shutil.copytree(used, tmp_path / "gallery")
    sentence = break_it(folder)
    done = serve_in_vain(folder, FACEGALLERY_PROCESSES=processes)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert done.stderr.splitlines()[-1].startswith(f"error: {sentence}")


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("INDEX", "pgvector", "FACEGALLERY_INDEX=pgvector keeps the vectors in the gallery's own PostgreSQL"),
        ("EXTRACTOR", "nosuch", "there is no network 'nosuch'"),
        ("DETECTOR", "sface", "the network 'sface' is an extractor; choose a detector"),
    ],
)
def test_a_start_with_a_setting_that_does_not_fit_ends_with_a_sentence(
    tmp_path: Path, used: Path, variable: str, value: str, sentence: str, processes: str
) -> None:
    folder = shutil.copytree(used, tmp_path / "gallery")
    done = serve_in_vain(folder, FACEGALLERY_PROCESSES=processes, **{f"FACEGALLERY_{variable}": value})
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert done.stderr.splitlines()[-1].startswith(f"error: {sentence}")


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_the_containers_health_check_and_the_log_of_a_mistyped_setting(
    tmp_path: Path, pair: tuple[Path, Path], tls: bool, serve: Callable[..., Server]
) -> None:
    files = {"FACEGALLERY_TLS_CERTIFICATE": str(pair[0]), "FACEGALLERY_TLS_KEY": str(pair[1])} if tls else {}
    (tmp_path / "gallery").mkdir()
    server = serve(tmp_path / "gallery", **files, FACEGALLERY_TSL_KEY="key.pem")
    (check,) = re.findall(r'HEALTHCHECK .*\n  ("import .*")\]', DOCKERFILE.read_text())
    environment = {**files, "FACEGALLERY_PORT": str(server.client.base_url.port)}
    subprocess.run([sys.executable, "-c", check.strip('"')], env=environment, check=True)
    assert server.log.count("FACEGALLERY_TSL_KEY is no setting; the nearest is FACEGALLERY_TLS_KEY") == 1
