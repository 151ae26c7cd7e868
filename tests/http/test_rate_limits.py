from pathlib import Path

from fastapi.testclient import TestClient

from app.access.keys import ALL_SCOPES
from app.settings import Settings
from tests.http.conftest import running
from tests.http.test_bad_input import is_problem


def key(client: TestClient) -> dict[str, str]:
    keys = client.app.state.gate.keys  # type: ignore[attr-defined]
    return {"Authorization": f"Bearer {keys.create('test', ALL_SCOPES)[1]}"}


def test_calls_beyond_the_burst_are_told_when_to_come_back(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, authentication="keys", rate_limit=0.001, rate_burst=3, database_timeout=30, _env_file=None
    )
    with running(settings) as client:
        headers = key(client)
        assert [client.get("/galleries", headers=headers).status_code for _ in range(3)] == [200] * 3
        refused = client.get("/galleries", headers=headers)
        assert is_problem(refused, 429, "too-many-calls")
        assert 990 <= int(refused.headers["Retry-After"]) <= 1000
        # The address has none left either, so that keys cannot be tried; health does not count.
        assert is_problem(client.get("/galleries", headers={"Authorization": "Bearer fg_"}), 429, "too-many-calls")
        assert client.get("/readyz").status_code == 200


def test_a_key_has_a_bucket_of_its_own_wherever_it_calls_from(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, authentication="keys", rate_limit=0.001, rate_burst=2, _env_file=None)
    with running(settings) as client:
        headers = key(client)
        statuses = [
            TestClient(client.app, client=(f"203.0.113.{number}", 1)).get("/galleries", headers=headers).status_code
            for number in range(3)
        ]
        assert statuses == [200, 200, 429]


def test_another_service_on_the_same_database_knows_of_the_calls(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, rate_limit=0.001, rate_burst=2, _env_file=None)
    with running(settings) as one, running(settings) as other:
        statuses = [client.get("/galleries").status_code for client in (one, other, one, other)]
        assert statuses == [200, 200, 429, 429]


def test_an_open_service_has_no_limit_unless_set(client: TestClient) -> None:
    assert {client.get("/problems/busy").status_code for _ in range(150)} == {200}
