"""Who may call: every route refuses what it must, and says so; without keys only this machine is answered."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageOps
from sqlalchemy import update

from app.access.errors import AuditBroken, OpenToTheWorld, PepperUnusable
from app.access.key_store import KeyStore
from app.access.keys import ALL_SCOPES, KEY_FORM, Scope
from app.access.opening import open_audit, open_keys
from app.access.tables import ApiKeyRow
from app.api.authentication import WITHOUT_KEY
from app.gallery.sql.database import open_engine
from app.gallery.tables import now
from app.main import create_app
from app.settings import Settings
from model.errors import FacegalleryError
from tests.http.conftest import running
from tests.http.test_bad_input import is_problem

FORM = {"subject": "eileen", "gallery": "staff"}
# Every call, the scope that it needs, and what it sends; `None`: any key.
CALLS: Mapping[tuple[str, str], tuple[Scope | None, dict[str, Any]]] = {
    ("POST", "/enroll"): (Scope.ENROLL, {"data": FORM, "files": {"images": b"x"}}),
    ("POST", "/identify"): (Scope.IDENTIFY, {"data": FORM, "files": {"image": b"x"}}),
    ("POST", "/verify"): (Scope.IDENTIFY, {"data": FORM, "files": {"image": b"x"}}),
    ("POST", "/detect"): (Scope.IDENTIFY, {"files": {"image": b"x"}}),
    ("POST", "/embed"): (Scope.IDENTIFY, {"files": {"image": b"x"}}),
    ("GET", "/galleries"): (Scope.READ, {}),
    ("POST", "/galleries"): (Scope.ADMIN, {"json": {"name": "staff"}}),
    ("GET", "/galleries/{gallery}"): (Scope.READ, {}),
    ("PATCH", "/galleries/{gallery}"): (Scope.ADMIN, {"json": {"policy": None}}),
    ("DELETE", "/galleries/{gallery}"): (Scope.ADMIN, {}),
    ("GET", "/galleries/{gallery}/subjects"): (Scope.READ, {}),
    ("GET", "/galleries/{gallery}/subjects/{subject}"): (Scope.READ, {}),
    ("PATCH", "/galleries/{gallery}/subjects/{subject}"): (Scope.ENROLL, {"json": {"metadata": {}}}),
    ("DELETE", "/galleries/{gallery}/subjects/{subject}"): (Scope.DELETE, {}),
    ("POST", "/galleries/{gallery}/subjects/{subject}/forget"): (Scope.DELETE, {}),
    ("GET", "/galleries/{gallery}/templates"): (Scope.READ, {}),
    ("GET", "/galleries/{gallery}/templates/{template}"): (Scope.READ, {}),
    ("DELETE", "/galleries/{gallery}/templates/{template}"): (Scope.DELETE, {}),
    ("GET", "/metrics"): (Scope.READ, {}),
    ("GET", "/problems/{slug}"): (None, {}),
    ("GET", "/receipts/key"): (None, {}),
    ("GET", "/openapi.json"): (None, {}),
    ("GET", "/docs"): (None, {}),
    ("GET", "/nothing"): (None, {}),
}
PLACES = {"gallery": "staff", "subject": "eileen", "template": "1", "slug": "busy"}
NAMES = [f"{method} {path}" for method, path in CALLS]
WITH_SCOPE = [call for call, (scope, _) in CALLS.items() if scope is not None]
OF_A_GALLERY = [call for call, (_, sent) in CALLS.items() if "{gallery}" in call[1] or "staff" in json.dumps(str(sent))]


class Service:
    """The service with keys, and the keys."""

    def __init__(self, client: TestClient, keys: KeyStore) -> None:
        self.client, self.keys = client, keys

    def call(self, call: tuple[str, str], key: str | None) -> httpx.Response:
        method, path = call
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        answer: httpx.Response = self.client.request(method, path.format_map(PLACES), headers=headers, **CALLS[call][1])
        return answer

    def key(self, *scopes: Scope, **limits: Any) -> str:
        return self.keys.create("test", scopes or ALL_SCOPES, **limits)[1]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("keys"), authentication="keys", rate_limit=0, _env_file=None)


@pytest.fixture(scope="module")
def service(settings: Settings) -> Iterator[Service]:
    with running(settings) as client:
        engine = open_engine(settings.sqlalchemy_url, timeout=10)
        yield Service(client, open_keys(settings, engine, open_audit(settings, engine)))
        engine.dispose()


@pytest.fixture(scope="module")
def good(service: Service) -> str:
    return service.key()


def test_every_route_is_in_the_table_above(service: Service, good: str) -> None:
    document = service.call(("GET", "/openapi.json"), good).json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    routed = {(method, path) for method, path in CALLS if path not in {"/openapi.json", "/docs", "/nothing"}}
    assert described - {("GET", path) for path in WITHOUT_KEY} == routed
    others = {getattr(route, "path", None) for route in service.client.app.routes} - {None}  # type: ignore[attr-defined]
    assert others <= {path for _, path in CALLS} | WITHOUT_KEY


@pytest.mark.parametrize("path", sorted(WITHOUT_KEY))
def test_health_needs_no_key(service: Service, path: str) -> None:
    assert service.client.get(path).status_code == 200


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_without_a_valid_key_nothing_is_answered(service: Service, call: tuple[str, str], good: str) -> None:
    made, rotated = service.keys.create("rotated", ALL_SCOPES)
    service.keys.rotate(made.id)
    made, revoked = service.keys.create("revoked", ALL_SCOPES)
    service.keys.revoke(made.id)
    made, expired = service.keys.create("expired", ALL_SCOPES, expires_at=now() + timedelta(hours=1))
    with service.keys._sessions.writing() as session:
        session.execute(update(ApiKeyRow).filter_by(id=made.id).values(expires_at=now() - timedelta(seconds=1)))

    for key in (None, "", "x", "fg_", good[:-1], good[:-1] + ("0" if good[-1] != "0" else "1"), good.upper()):
        answer = service.call(call, key)
        assert is_problem(answer, 401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    for key, word in ((rotated, "no valid key"), (revoked, "revoked"), (expired, "expired")):
        answer = service.call(call, key)
        assert is_problem(answer, 401, "unauthorized")
        assert word in answer.json()["detail"]


@pytest.mark.parametrize("call", WITH_SCOPE, ids=[" ".join(call) for call in WITH_SCOPE])
def test_every_other_scope_together_is_not_enough(service: Service, call: tuple[str, str]) -> None:
    needed = CALLS[call][0]
    assert needed is not None
    answer = service.call(call, service.key(*(ALL_SCOPES - {needed})))
    assert is_problem(answer, 403, "forbidden")
    assert f"`{needed}`" in answer.json()["detail"]
    assert service.call(call, service.key(needed)).status_code not in {401, 403, 500}


@pytest.mark.parametrize("call", OF_A_GALLERY, ids=[" ".join(call) for call in OF_A_GALLERY])
def test_a_key_for_another_gallery_learns_nothing_of_this_one(service: Service, call: tuple[str, str]) -> None:
    assert len(OF_A_GALLERY) == 15
    answer = service.call(call, service.key(galleries=["guests"]))
    assert is_problem(answer, 403, "forbidden")
    assert answer.json()["part"] == "gallery"
    assert service.call(call, service.key(galleries=["guests", "staff"])).status_code not in {401, 403, 500}


def test_a_merge_erases_somebody_and_needs_the_scope_for_it(service: Service, good: str) -> None:
    address = "/galleries/staff/subjects/eileen"
    body = {"merge_into": "somebody"}
    for scopes, status in (((Scope.ENROLL,), 403), ((Scope.DELETE,), 403), ((Scope.ENROLL, Scope.DELETE), 404)):
        headers = {"Authorization": f"Bearer {service.key(*scopes)}"}
        assert service.client.patch(address, json=body, headers=headers).status_code == status


def test_an_earlier_end_erases_somebody_and_needs_the_scope_for_it(
    service: Service, good: str, portrait: bytes
) -> None:
    def at(days: int) -> str:
        return (now() + timedelta(days=days)).isoformat()

    def consent(days: int | None) -> dict[str, str]:
        return {"purpose": "x", "granted_at": at(-1)} | ({} if days is None else {"expires_at": at(days)})

    def enroll(key: str, **fields: str) -> httpx.Response:
        sent: httpx.Response = service.client.post(
            "/enroll",
            data={"subject": "ada", "gallery": "ends", **fields},
            files={"images": portrait},
            headers={"Authorization": f"Bearer {key}"},
        )
        return sent

    def patch(key: str, **body: Any) -> httpx.Response:
        sent: httpx.Response = service.client.patch(
            "/galleries/ends/subjects/ada", json=body, headers={"Authorization": f"Bearer {key}"}
        )
        return sent

    enrolls, both = service.key(Scope.ENROLL), service.key(Scope.ENROLL, Scope.DELETE)
    assert enroll(enrolls).status_code == 201
    for refused in (
        patch(enrolls, expires_at=at(9)),
        patch(enrolls, consent=consent(9)),
        enroll(enrolls, expires_at=at(9)),
        enroll(enrolls, consent=json.dumps(consent(9))),
    ):
        assert is_problem(refused, 403, "forbidden")
        assert "`delete`" in refused.json()["detail"]
    assert patch(both, expires_at=at(9)).status_code == 200
    assert is_problem(patch(enrolls, expires_at=at(8)), 403, "forbidden")
    assert is_problem(enroll(enrolls, consent=json.dumps(consent(8))), 403, "forbidden")
    assert patch(enrolls, expires_at=at(10)).status_code == 200
    assert enroll(enrolls, expires_at=at(11), consent=json.dumps(consent(12))).status_code == 200
    assert patch(enrolls, consent=consent(None), metadata={"badge": 1}).status_code == 200
    assert enroll(both, expires_at=at(5)).status_code == 200
    assert enroll(enrolls, subject="somebody new", expires_at=at(1)).status_code == 201


def test_metrics_are_of_all_galleries_and_for_keys_of_all(service: Service) -> None:
    assert is_problem(service.call(("GET", "/metrics"), service.key(Scope.READ, galleries=["staff"])), 403, "forbidden")
    assert service.call(("GET", "/metrics"), service.key(Scope.READ)).status_code == 200


def test_a_probe_as_json_is_for_the_keys_galleries_only(service: Service) -> None:
    headers = {"Authorization": f"Bearer {service.key(galleries=['guests'])}"}
    probe = {"embedding": [1.0] + [0.0] * 127}
    for gallery in ({}, {"gallery": "staff"}):
        assert is_problem(service.client.post("/identify", json=probe | gallery, headers=headers), 403, "forbidden")


def test_a_list_shows_the_keys_own_galleries(service: Service, good: str) -> None:
    for name in ("café", "bar"):
        service.client.post("/galleries", json={"name": name}, headers={"Authorization": f"Bearer {good}"})
    listed = service.call(("GET", "/galleries"), service.key(Scope.READ, galleries=["cafe\N{COMBINING ACUTE ACCENT}"]))
    assert [gallery["name"] for gallery in listed.json()["galleries"]] == ["café"]


def test_a_rotated_key_has_a_time_of_grace(service: Service) -> None:
    made, old = service.keys.create("grace", [Scope.READ])
    new = service.keys.rotate(made.id, grace=timedelta(hours=1))[1]
    assert [service.call(("GET", "/galleries"), key).status_code for key in (old, new)] == [200, 200]
    newest = service.keys.rotate(made.id, grace=timedelta(hours=1))[1]
    statuses = [service.call(("GET", "/galleries"), key).status_code for key in (old, new, newest)]
    assert statuses == [401, 200, 200]


def test_the_last_use_is_written_once_a_minute(service: Service) -> None:
    made, key = service.keys.create("used", [Scope.READ])
    service.call(("GET", "/galleries"), key)
    stored = service.keys.find(made.id)
    assert stored is not None
    assert stored.key.last_used_at is not None
    service.call(("GET", "/galleries"), key)
    assert service.keys.find(made.id) == stored


@pytest.mark.parametrize("query", ["?key={key}", "?api_key=1", "?access_token={key}", "?subject={key}", "?{key}"])
def test_a_key_in_the_address_is_refused(service: Service, good: str, query: str) -> None:
    if query.startswith("?key"):
        query = query.replace("key=", "q=")
    headers = {"Authorization": f"Bearer {good}"}
    answer = service.client.get("/galleries" + query.format(key=good), headers=headers)
    assert is_problem(answer, 400, "key-in-address")
    assert good not in answer.text
    answer = service.client.get(f"/galleries/staff/subjects/{good}", headers=headers)
    assert is_problem(answer, 400, "key-in-address")
    assert good not in answer.text


def test_two_authorizations_are_none(service: Service, good: str) -> None:
    headers = [("Authorization", f"Bearer {good}")] * 2
    assert is_problem(service.client.get("/galleries", headers=headers), 401, "unauthorized")


def test_openapi_says_which_scope_a_call_needs(service: Service, good: str) -> None:
    document = service.call(("GET", "/openapi.json"), good).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for (method, path), (scope, _) in CALLS.items():
        if path not in {"/openapi.json", "/docs", "/nothing"}:
            operation = document["paths"][path][method.lower()]
            assert operation["security"] == [{"key": [scope] if scope else []}]
            assert {"401", "403", "429"} <= operation["responses"].keys()
    assert all("security" not in document["paths"][path]["get"] for path in WITHOUT_KEY)


def test_a_body_is_not_read_before_the_key(service: Service) -> None:
    app, sent = service.client.app, list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        raise AssertionError("somebody read the body")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/enroll", "query_string": b"", "headers": [], "scheme": "http"}
    service.client.portal.call(app, scope, receive, send)  # type: ignore[union-attr, call-arg, arg-type]
    assert sent[0]["status"] == 401


# -- scores


@pytest.fixture(scope="module")
def people(service: Service, good: str, portrait: bytes) -> None:
    data = {"subject": "eileen", "gallery": "people"}
    headers = {"Authorization": f"Bearer {good}"}
    service.client.post("/enroll", data=data, files={"images": portrait}, headers=headers).raise_for_status()


@pytest.mark.usefixtures("people")
def test_without_the_scope_scores_distances_are_rounded_and_nothing_can_be_measured(
    service: Service, mirrored: bytes
) -> None:
    def answer(key: str, call: str = "/identify", **fields: str) -> httpx.Response:
        data = {"gallery": "people"} | fields
        headers = {"Authorization": f"Bearer {key}"}
        sent: httpx.Response = service.client.post(call, data=data, files={"image": mirrored}, headers=headers)
        return sent

    plain, scores = service.key(Scope.IDENTIFY), service.key(Scope.IDENTIFY, Scope.SCORES)
    (exact,) = answer(scores).json()["faces"][0]["candidates"]
    (rounded,) = answer(plain).json()["faces"][0]["candidates"]
    assert rounded["distance"] == math.floor(exact["distance"] * 100) / 100 < exact["distance"]
    assert answer(plain, "/verify", subject="eileen").json()["distance"] == rounded["distance"]
    for fields in ({"threshold": "1"}, {"all_candidates": "true"}):
        assert is_problem(answer(plain, **fields), 403, "forbidden")
        assert answer(scores, **fields).status_code == 200
    assert is_problem(answer(plain, "/verify", subject="eileen", threshold="1"), 403, "forbidden")
    probe = {"gallery": "people", "embedding": [1.0] + [0.0] * 127, "all_candidates": True}
    headers = {"Authorization": f"Bearer {plain}"}
    assert is_problem(service.client.post("/identify", json=probe, headers=headers), 403, "forbidden")


@pytest.mark.parametrize("degrees", [5, 10, 15])
@pytest.mark.usefixtures("people")
def test_a_rounded_distance_is_within_the_threshold_that_it_was_accepted_at(
    service: Service, good: str, portrait: bytes, degrees: int
) -> None:
    file = BytesIO()
    Image.open(BytesIO(portrait)).rotate(degrees).save(file, "PNG")
    claim, photo = {"gallery": "people", "subject": "eileen"}, {"image": file.getvalue()}
    full = {"Authorization": f"Bearer {good}"}
    plain = {"Authorization": f"Bearer {service.key(Scope.IDENTIFY)}"}
    exact = service.client.post("/verify", data=claim | {"threshold": "2"}, files=photo, headers=full).json()
    service.client.patch("/galleries/people", json={"policy": exact["distance"]}, headers=full).raise_for_status()

    answer = service.client.post("/verify", data=claim, files=photo, headers=plain).json()
    service.client.patch("/galleries/people", json={"policy": None}, headers=full).raise_for_status()
    assert (answer["match"], answer["threshold"]) == (True, exact["distance"])
    assert answer["distance"] <= answer["threshold"]


@pytest.mark.usefixtures("people")
def test_without_the_scope_scores_no_match_has_no_distance(service: Service, good: str, portrait: bytes) -> None:
    strict = {"Authorization": f"Bearer {good}"}
    service.client.patch("/galleries/people", json={"policy": 0.0}, headers=strict).raise_for_status()
    files, data = {"image": portrait}, {"gallery": "people", "subject": "eileen"}
    headers = {"Authorization": f"Bearer {service.key(Scope.IDENTIFY)}"}
    file = BytesIO()
    ImageOps.mirror(Image.open(BytesIO(portrait))).save(file, "PNG")
    files["image"] = file.getvalue()
    answer = service.client.post("/verify", data=data, files=files, headers=headers).json()
    assert (answer["match"], answer["distance"]) == (False, None)
    service.client.patch("/galleries/people", json={"policy": None}, headers=strict).raise_for_status()


# -- the first start, and without keys


def test_the_first_start_prints_a_key_once_and_not_into_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path, host="0.0.0.0", log_format="json", _env_file=None)
    with running(settings) as client:
        printed = capfd.readouterr().err
        (key,) = (line for line in printed.splitlines() if KEY_FORM.fullmatch(line))
        assert client.get("/galleries", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/galleries").status_code == 401
    assert all(key not in line for line in printed.splitlines() if line.startswith("{"))
    with running(settings):
        assert not re.search(r"fg_\w{12}_", capfd.readouterr().err)
    assert (tmp_path / "key-pepper").stat().st_mode & 0o777 == 0o600


def test_keys_of_another_pepper_stop_the_start(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, authentication="keys", _env_file=None)
    with running(settings):
        pass
    (tmp_path / "key-pepper").unlink()
    with pytest.raises(FacegalleryError, match="pepper"), running(settings):
        pass


@pytest.mark.parametrize("authentication", ["open", "keys"])
def test_another_pepper_stops_the_start_before_anything_is_served(tmp_path: Path, authentication: str) -> None:
    settings = Settings(data_dir=tmp_path, authentication=authentication, _env_file=None)
    with running(settings):
        pass
    (tmp_path / "key-pepper").write_text("another pepper of more than 32 characters")
    with pytest.raises(AuditBroken, match="sealed with another pepper; put the file `key-pepper`"):
        create_app(settings)


def test_a_pepper_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, _env_file=None)
    with running(settings):
        pass
    (tmp_path / "key-pepper").chmod(0o644)
    with pytest.raises(PepperUnusable, match="chmod 600"):
        create_app(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "faces.example.org"])
def test_an_open_service_does_not_start_on_another_address(tmp_path: Path, host: str) -> None:
    settings = Settings(data_dir=tmp_path, host=host, authentication="open", _env_file=None)
    with pytest.raises(OpenToTheWorld, match="ask for keys, or listen on"), running(settings):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_a_loopback_address_it_is_open_and_says_so_in_one_line(
    tmp_path: Path, host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(Settings(data_dir=tmp_path, host=host, log_format="json", _env_file=None)) as client:
        assert client.get("/galleries").status_code == 200
    lines = [line for line in capfd.readouterr().err.splitlines() if '"event": "open"' in line]
    assert len(lines) == 1


def test_trusted_proxies_ask_for_keys_on_a_loopback_address_too(tmp_path: Path) -> None:
    with running(Settings(data_dir=tmp_path, trusted_proxies="127.0.0.1", _env_file=None)) as client:
        assert is_problem(client.get("/galleries"), 401, "unauthorized")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "203.0.113.5"},
        {"Forwarded": "for=203.0.113.5"},
        {"Host": "rebound.example.org"},
        {"Host": "203.0.113.5:8000"},
        {"Origin": "https://elsewhere.example.org"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Host": "["},
        {"Host": "[::1"},
        {"Via": "1.1 proxy"},
    ],
    ids=str,
)
def test_an_open_service_answers_this_machine_alone(client: TestClient, headers: dict[str, str]) -> None:
    assert is_problem(client.post("/galleries", json={"name": "planted"}, headers=headers), 403, "forbidden")


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "faces.localhost"])
def test_an_open_service_answers_by_the_names_of_this_machine(client: TestClient, host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert client.get("/galleries", headers=headers).status_code == 200


def test_an_open_service_that_was_started_around_its_settings_is_closed(client: TestClient) -> None:
    outside = TestClient(client.app, base_url="http://10.0.0.7:8000")
    assert is_problem(outside.get("/galleries"), 403, "forbidden")
    assert outside.get("/healthz").status_code == 200
