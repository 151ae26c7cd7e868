"""What operators and callers see around the calls: ready under load, failures, OpenAPI."""

import gc
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.api.problems import PROBLEM_TYPES
from app.settings import Settings
from tests.http.conftest import running
from tests.http.test_bad_input import is_problem

Call = Callable[..., httpx.Response]
THREADS = 40  # of the server for calls with photos
# These stop the start, or are met by commands alone, so that no call can meet them.
NEVER_ANSWERED = {
    "schema-outdated",
    "master-key-missing",
    "template-tampered",
    "file-tampered",
    "receipt-invalid",
}


@pytest.mark.parametrize(
    ("call", "names", "status"),
    [
        ("/enroll", ["images"], 422),
        ("/identify", ["image"], 200),
        ("/verify", ["image", "reference"], 422),
        ("/detect", ["image"], 200),
        ("/embed", ["image"], 200),
    ],
)
def test_everybody_else_is_answered_while_photos_wait_for_a_worker(
    tmp_path: Path, no_face: bytes, call: str, names: list[str], status: int
) -> None:
    def waiting_threads() -> int:
        return sum(thread.name == "AnyIO worker thread" for thread in threading.enumerate())

    settings = Settings(data_dir=tmp_path, workers=1, queue_timeout=60, _env_file=None)
    with running(settings) as client, ThreadPoolExecutor(THREADS + 5) as pool:
        client.post("/galleries", json={"name": "default"})
        sent = {"files": [(name, no_face) for name in names], "data": {"subject": "ada"} if "images" in names else {}}
        with client.app.state.service.reader.worker():  # type: ignore[attr-defined]
            photos = [pool.submit(client.post, call, **sent) for _ in range(THREADS + 5)]
            while waiting_threads() < THREADS:
                time.sleep(0.01)
            for address in ("/healthz", "/readyz", "/metrics", "/problems/busy"):
                assert client.get(address).status_code == 200
            assert client.post("/galleries", json={"name": "people"}).status_code == 201
            assert client.get("/galleries/people/subjects").status_code == 200
            assert client.delete("/galleries/people").status_code == 204
            assert not any(photo.done() for photo in photos)
        assert [photo.result().status_code for photo in photos] == [status] * (THREADS + 5)


def test_a_failure_of_the_service_is_a_problem_document_with_the_requests_id(tmp_path: Path, portrait: bytes) -> None:
    with running(Settings(data_dir=tmp_path, _env_file=None)) as client:
        client.post("/enroll", data={"subject": "eileen"}, files={"images": portrait}).raise_for_status()
        with closing(sqlite3.connect(tmp_path / "facegallery.db", isolation_level=None)) as database:
            database.execute("UPDATE template SET pose = '{\"jaw\": 1}'")  # a row that no version wrote

        answer = client.get("/galleries/default/templates", headers={"X-Request-ID": "order-66"})
        assert is_problem(answer, 500, "internal")
        assert answer.headers["X-Request-ID"] == "order-66"
        assert answer.headers["Facegallery-Extractor"]
        assert "jaw" not in answer.text
        assert client.get("/galleries/default/subjects").status_code == 200


def test_no_metric_names_a_subject_or_a_gallery(
    client: TestClient, gallery: str, enroll: Call, portrait: bytes
) -> None:
    enroll("a most secret name", portrait)
    client.get(f"/galleries/{gallery}/subjects/a most secret name")
    client.get(f"/galleries/{gallery}/nothing/a most secret name")
    text = client.get("/metrics").text

    assert "secret" not in text
    assert gallery not in text
    assert "# TYPE facegallery_stage_seconds histogram" in text


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_openapi_lists_every_problem_that_a_call_may_meet_with_its_status(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    listed = {
        (slug, int(status))
        for _path, _method, operation in operations(document)
        for status, response in operation["responses"].items()
        for slug in response.get("content", {}).get("application/problem+json", {}).get("examples", {})
    }
    (parameter,) = document["paths"]["/problems/{slug}"]["get"]["parameters"]

    general = {(slug, kind.status) for slug, kind in PROBLEM_TYPES.items() if slug not in NEVER_ANSWERED}
    # The first among the photos of an enrolment, the others of a media type that no photo has and a slug of no problem.
    assert listed == general | {("image-too-large", 422), ("http", 415), ("http", 404)}
    assert parameter["schema"]["enum"] == list(PROBLEM_TYPES)


def test_openapi_has_no_loose_reference(client: TestClient) -> None:
    def references(part: object) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(reference := part.get("$ref"), str):
                yield reference
            for value in part.values():
                yield from references(value)
        elif isinstance(part, list):
            for value in part:
                yield from references(value)

    document = client.get("/openapi.json").json()
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known


def test_openapi_says_enough_for_a_generated_client(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    called = {operation["operationId"] for _path, _method, operation in operations(document)}
    silent = [
        f"{schema}.{name}"
        for schema, body in schemas.items()
        for name, part in body.get("properties", {}).items()
        if "description" not in part and "$ref" not in str(part)
    ]
    answers = document["paths"]["/verify"]["post"]["responses"]

    assert silent == []
    assert {"enroll", "identify", "verify", "list_subjects", "forget_subject"} <= called
    assert schemas["Body_verify"]["properties"]["image"]["format"] == "binary"
    assert schemas["GalleryChange"]["properties"]["keep_days"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 36500,
    }
    assert {"X-Request-ID", "Facegallery-Extractor"} == set(answers["200"]["headers"])
    assert "Retry-After" in answers["503"]["headers"]
    assert "WWW-Authenticate" in answers["401"]["headers"]
    assert {tag for _, _, operation in operations(document) for tag in operation["tags"]} == {
        tag["name"] for tag in document["tags"]
    }


def bodies(document: dict[str, Any], method: str, kind: str) -> Iterator[dict[str, Any]]:
    for _path, _method, operation in operations(document):
        if _method == method and (content := operation.get("requestBody", {}).get("content", {}).get(kind)):
            schema = content["schema"]
            yield document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def test_openapi_gives_no_default_to_what_a_change_may_leave_as_it_is(client: TestClient) -> None:
    # A generated client sends defaults: with one for require_consent, each change of a policy switched the rule off.
    changes = list(bodies(client.get("/openapi.json").json(), "patch", "application/json"))

    assert [body["title"] for body in changes] == ["GalleryChange", "SubjectChange"]
    assert [name for body in changes for name, part in body["properties"].items() if "default" in part] == []


def test_openapi_has_no_null_in_a_form(client: TestClient) -> None:
    # A generated client writes it as the text None, which is no moment, no number and no file.
    forms = list(bodies(client.get("/openapi.json").json(), "post", "multipart/form-data"))
    fields = [(name, part) for form in forms for name, part in form["properties"].items()]

    assert [name for name, part in fields if "type" not in part and "$ref" not in part] == []
    assert dict(fields)["expires_at"] == {
        "type": "string",
        "format": "date-time",
        "title": "Expires At",
        "description": "moment from which the person is erased, with its zone",
    }


def test_openapi_says_what_an_answer_always_has(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    asked = {"GalleryChange", "GalleryCreation", "SubjectChange", "Rates", "ConsentBody"}  # which leave things out
    left_out = {
        name: sorted(body["properties"].keys() - set(body.get("required", [])))
        for name, body in schemas.items()
        if name not in asked and not name.startswith("Body_")
    }

    assert {name: fields for name, fields in left_out.items() if fields} == {
        "Problem": ["errors", "part", "refused"],
        "RatesInForce": ["fmr", "fpir"],
    }
    assert "null" not in str(schemas["Problem"])


def test_every_example_of_openapi_works(tmp_path: Path, portrait: bytes) -> None:
    places = {"gallery": "default", "subject": "ada", "template": "1", "slug": "no-face"}
    worked = set()
    with running(Settings(data_dir=tmp_path, _env_file=None)) as client:
        document = client.get("/openapi.json").json()
        client.post("/enroll", data={"subject": "ada"}, files={"images": portrait}).raise_for_status()
        for path, method, operation in operations(document):
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                for request in example_requests(kind, content["schema"], document["components"]["schemas"], portrait):
                    answer = client.request(method, path.format_map(places), **request)
                    assert answer.is_success, (path, answer.text)
                    worked.add((method, path, kind))

    assert len(worked) == 9  # five calls with photos, four with JSON


def example_requests(
    kind: str, schema: dict[str, Any], schemas: dict[str, Any], photo: bytes
) -> Iterator[dict[str, Any]]:
    schema = schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    if kind == "application/json":
        yield from ({"json": example} for example in schema["examples"])
        return
    fields = {name: part["examples"][0] for name, part in schema["properties"].items() if "examples" in part}
    image = "images" if "images" in schema["properties"] else "image"
    yield {"data": {"subject": "ada"} | fields, "files": {image: photo}}


@pytest.mark.parametrize("address", ["/healthz", "/galleries", "/nothing", "/galleries/none", "/openapi.json"])
def test_every_answer_names_the_extractor_and_the_request(client: TestClient, address: str) -> None:
    headers = client.get(address).headers

    assert headers["Facegallery-Extractor"].startswith("sface@")
    assert len(headers["X-Request-ID"]) == 32


def test_what_is_there_at_the_start_is_no_work_for_the_garbage_collector(tmp_path: Path) -> None:
    with running(Settings(data_dir=tmp_path, _env_file=None)):
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
