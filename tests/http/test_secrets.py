"""A whole run with planted secrets; then everything that it wrote is searched for them, and for embeddings."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from app.access.settings_watch import described
from app.cli import cli
from app.settings import Settings
from app.telemetry import set_up_logging
from tests.http.conftest import Server
from tests.postgresql import postgresql

PASSWORD = "planted-database-password"
PEPPER = "planted-pepper-of-more-than-32-characters"


@pytest.fixture
def database_url() -> Iterator[str]:
    with postgresql() as server:
        yield make_url(server.address).set(password=PASSWORD).render_as_string(hide_password=False)


def shapes(embedding: list[float]) -> list[str]:
    """What an embedding could look like in text: base64 at each of its three offsets, hexadecimal, numbers."""
    raw = np.array(embedding, "<f4").tobytes()
    encoded = [base64.b64encode(bytes(offset) + raw).decode()[8:40] for offset in range(3)]
    return [
        *encoded,
        *(text.replace("+", "-").replace("/", "_") for text in encoded),
        raw.hex()[:32],
        repr(embedding[0]),
    ]


def test_secrets_and_embeddings_are_in_nothing_that_a_run_writes(
    tmp_path: Path, portrait: bytes, no_face: bytes, database_url: str
) -> None:
    environment = {
        "FACEGALLERY_DATABASE_URL": database_url,
        "FACEGALLERY_DATA_DIR": str(tmp_path),
        "FACEGALLERY_KEY_PEPPER": PEPPER,
        "FACEGALLERY_AUTHENTICATION": "keys",
        "FACEGALLERY_LOG_FORMAT": "json",
        "FACEGALLERY_LOG_LEVEL": "debug",
    }
    runner = CliRunner(env=environment)
    assert runner.invoke(cli, ["migrate"]).exit_code == 0
    scopes = "enroll,identify,read,delete,admin,scores"
    created = runner.invoke(cli, ["keys", "create", "planted", "--scope", scopes])
    key = created.stdout.strip().splitlines()[-1]
    written = [created.stderr]

    server = Server(tmp_path, **environment)
    written.append(Path(f"/proc/{server.process.pid}/cmdline").read_text())
    client = server.client
    client.headers["Authorization"] = f"Bearer {key}"
    embedding = client.post("/embed", files={"image": portrait}).json()["faces"][0]["embedding"]
    answers = [
        client.post("/enroll", data={"subject": "eileen"}, files={"images": portrait}),
        client.post("/enroll", data={"subject": "nobody"}, files={"images": no_face}),
        client.post("/identify", files={"image": portrait}),
        client.post("/identify", json={"embedding": embedding}),
        client.post("/identify", json={"embedding": [*embedding, "x"]}),
        client.post("/identify", json={"embedding": embedding[1:]}),
        client.post("/verify", data={"subject": "eileen"}, files={"image": portrait}),
        client.get("/galleries"),
        client.get("/galleries/default/templates"),
        client.get("/galleries", params={"key": key}),
        client.get(f"/galleries/{key}"),
        client.get("/galleries", headers={"Authorization": f"Basic {key}"}),
        client.get("/galleries", headers={"Authorization": f"Bearer {key}0"}),
        client.get("/metrics"),
        client.get("/openapi.json"),
        client.delete("/galleries/default/subjects/eileen"),
    ]
    assert {answer.status_code // 100 for answer in answers} == {2, 4}
    gallery_named_like_the_key = answers.pop(10)  # a caller who writes a key where a name belongs reads it back
    assert gallery_named_like_the_key.status_code in {400, 404}
    written += [answer.text + json.dumps(dict(answer.headers)) for answer in answers]
    server.stop()
    written.append(server.log)
    assert "request" in server.log

    for words in (["audit", "export"], ["audit", "verify"], ["keys", "list", "--json"], ["keys", "list"]):
        done = runner.invoke(cli, words)
        assert done.exit_code == 0
        written.append(done.stdout + done.stderr)
    gone = make_url(database_url).set(query={"host": str(tmp_path)}).render_as_string(hide_password=False)
    failed = runner.invoke(cli, ["keys", "list"], env={"FACEGALLERY_DATABASE_URL": gone})
    assert failed.exception is not None
    written.append(f"{failed.stdout} {failed.stderr} {failed.exception!r} {failed.exception.__cause__!r}")
    written += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]

    everything = "\n".join(written)
    for secret in (key, key.rsplit("_", 1)[1], PASSWORD, PEPPER, *shapes(embedding)):
        assert secret not in everything


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_no_values(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        photo = "planted " + "photo"
        raise ValueError(len(photo))

    set_up_logging(form=form, level="info")
    try:
        fail()
    except ValueError as error:
        structlog.get_logger().error("request.failed", exc_info=error)
    finally:
        structlog.reset_defaults()
    written = capsys.readouterr().err
    assert "in fail" in written
    assert "planted photo" not in written


def test_an_error_of_the_database_shows_no_values(engine: Engine) -> None:
    with pytest.raises(DBAPIError) as caught, engine.begin() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:metadata)"), {"metadata": "planted metadata"})
    assert "nowhere" in str(caught.value)
    assert "planted" not in str(caught.value)


def test_the_settings_in_the_audit_log_show_no_secret() -> None:
    shown = described(
        Settings(
            database_url="postgresql://faces:planted@db/faces",
            vault_url="postgresql://faces@vault/faces?password=planted&sslpassword=planted&sslmode=require",
            milvus_uri="http://root:planted@milvus:19530/faces?token=planted",
            milvus_token="root:planted",
            key_pepper="planted" * 5,
            master_key="planted",
            _env_file=None,
        )
    )
    assert "planted" not in json.dumps(shown)
    assert shown["vault"] == "postgresql://faces@vault/faces?sslmode=require"
    assert shown["milvus"] == "milvus:19530/faces"
    assert (shown["key_pepper"], shown["master_key"], shown["milvus_token"]) == (True, True, True)
