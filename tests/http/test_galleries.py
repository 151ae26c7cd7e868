"""Galleries, subjects, templates and what operators ask."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.api.problems import PROBLEM_TYPES
from app.gallery.views.snapshot_keeping import SnapshotKeeping
from app.gallery.views.upkeep import Upkeep
from app.settings import Settings
from tests.http.conftest import running
from tests.http.test_bad_input import is_problem

Call = Callable[..., httpx.Response]


def test_a_gallery_from_creation_to_erasure(client: TestClient, gallery: str) -> None:
    made = client.post("/galleries", json={"name": gallery, "policy": {"fpir": 0.001}})
    assert made.status_code == 201
    assert made.json()["policy"] == {"fpir": 0.001}
    assert client.post("/galleries", json={"name": gallery}).json()["type"] == "/problems/gallery-exists"
    changed = client.patch(f"/galleries/{gallery}", json={"policy": 0.9}).json()
    assert (changed["threshold"], changed["own_policy"]) == (0.9, True)
    back = client.patch(f"/galleries/{gallery}", json={"policy": None}).json()
    assert (back["policy"], back["own_policy"]) == ({"fpir": 0.01, "fmr": 0.0001}, False)
    assert gallery in [one["name"] for one in _pages(client, "/galleries", "galleries", limit=100)]
    assert client.delete(f"/galleries/{gallery}").status_code == 204
    assert client.get(f"/galleries/{gallery}").status_code == 404


@pytest.mark.parametrize("policy", [7, True, "loose", [], {"fpir": 2}, {"fpir": 0.1, "far": 0.1}])
def test_a_policy_that_is_none_is_one_sentence_about_the_policy(
    client: TestClient, gallery: str, policy: object
) -> None:
    answer = client.patch(f"/galleries/{gallery}", json={"policy": policy})
    assert is_problem(answer, 422, "invalid-input")
    sentence = "a policy is a distance from 0 to 2, or an object with `fpir`, `fmr` or both, rates between 0 and 1"
    assert answer.json()["errors"] == [{"part": "policy", "message": sentence}]


def test_a_change_of_nothing_is_told_in_our_own_words(client: TestClient, gallery: str) -> None:
    answer = client.patch(f"/galleries/{gallery}", json={})
    assert is_problem(answer, 422, "invalid-input")
    assert answer.json()["detail"].startswith("body: nothing to change; send `policy`")


def test_the_gallerys_policy_decides(
    client: TestClient, enroll: Call, identify: Call, portrait: bytes, gallery: str
) -> None:
    enroll("eileen", portrait)
    client.patch(f"/galleries/{gallery}", json={"policy": 0.25})
    assert identify(portrait).json()["threshold"] == 0.25
    assert identify(portrait, threshold="0.5").json()["threshold"] == 0.5


@pytest.mark.parametrize("name", ["林徽因", "نجيب محفوظ", "👩🏽‍🚀 Eileen", "Zoë / night shift", "a" * 200])
def test_names_of_every_script(
    name: str, client: TestClient, enroll: Call, identify: Call, portrait: bytes, gallery: str
) -> None:
    assert enroll(name, portrait).json()["subject"]["subject"] == name
    assert identify(portrait).json()["faces"][0]["identity"]["subject"] == name
    address = f"/galleries/{gallery}/subjects/{httpx.URL('').copy_with(path='/' + name).raw_path.decode()[1:]}"
    assert client.patch(address, json={"metadata": {"名": name}}).json()["metadata"] == {"名": name}
    assert client.get(address).json()["subject"] == name
    assert client.delete(address).status_code == 204
    assert identify(portrait).json()["faces"][0]["identity"] is None


def test_composed_and_decomposed_names_are_one(client: TestClient, enroll: Call, portrait: bytes, gallery: str) -> None:
    assert enroll("Zoe\u0308", portrait).status_code == 201
    assert enroll("Zo\u00eb", portrait).status_code == 200


def test_renaming_a_subject(client: TestClient, enroll: Call, identify: Call, portrait: bytes, gallery: str) -> None:
    enroll("eileen", portrait)
    enroll("ada", portrait)
    address = f"/galleries/{gallery}/subjects/eileen"
    assert client.patch(address, json={"subject": "ada"}).json()["type"] == "/problems/subject-exists"
    assert client.patch(address, json={"subject": "Eileen Collins"}).json()["subject"] == "Eileen Collins"
    names = {one["subject"] for one in identify(portrait).json()["faces"][0]["candidates"]}
    assert names == {"ada", "Eileen Collins"}


def test_pages_hold_everybody_once(client: TestClient, enroll: Call, portrait: bytes, gallery: str) -> None:
    names = [f"person {number}" for number in range(5)]
    for name in names:
        enroll(name, portrait)
    for kind in ("subjects", "templates"):
        found = _pages(client, f"/galleries/{gallery}/{kind}", kind, limit=2)
        assert [one["subject"] for one in found] == names


def _pages(client: TestClient, address: str, kind: str, *, limit: int) -> list[dict[str, Any]]:
    """All entries of a listing, each page full but the last."""
    found, page = list[dict[str, Any]](), client.get(address, params={"limit": limit}).json()
    while page["next_cursor"] is not None:
        assert len(page[kind]) == limit
        found += page[kind]
        page = client.get(address, params={"limit": limit, "cursor": page["next_cursor"]}).json()
    assert len(page[kind]) <= limit
    return [*found, *page[kind]]


def test_pages_of_galleries_hold_each_once_with_its_own_size(
    client: TestClient, enroll: Call, portrait: bytes, gallery: str
) -> None:
    names = [f"{gallery} {letter}" for letter in "bZaéz"]
    for number, name in enumerate(names):
        client.post("/galleries", json={"name": name})
        for place in range(number):
            assert enroll(f"person {place}", portrait, gallery=name).status_code == 201
    client.post("/galleries", json={"name": names[0] + "0"})
    empty = client.post(f"/galleries/{names[4]}/subjects/person 0/forget")
    assert empty.status_code == 200
    found = [one for one in _pages(client, "/galleries", "galleries", limit=2) if one["name"].startswith(gallery + " ")]
    assert [one["name"] for one in found] == sorted([*names, names[0] + "0"])
    sizes = {one["name"]: (one["subjects"], one["templates"]) for one in found}
    assert sizes == {names[0] + "0": (0, 0)} | {name: (number, number) for number, name in enumerate(names[:4])} | {
        names[4]: (3, 3)
    }
    for one in found:
        assert client.get(f"/galleries/{one['name']}").json() == one


def test_one_template_is_shown_in_its_gallery_alone(
    client: TestClient, enroll: Call, portrait: bytes, gallery: str
) -> None:
    enroll("eileen", portrait)
    client.post("/galleries", json={"name": f"{gallery} other"})
    (template,) = client.get(f"/galleries/{gallery}/templates").json()["templates"]
    assert client.get(f"/galleries/{gallery}/templates/{template['id']}").json() == template
    for address in (f"{gallery} other/templates/{template['id']}", f"{gallery}/templates/{template['id'] + 1}"):
        assert is_problem(client.get(f"/galleries/{address}"), 404, "template-not-found")


def test_an_erased_template_is_not_found_again(
    client: TestClient, enroll: Call, identify: Call, portrait: bytes, gallery: str
) -> None:
    enroll("eileen", portrait)
    (template,) = client.get(f"/galleries/{gallery}/templates", params={"subject": "eileen"}).json()["templates"]
    assert client.delete(f"/galleries/{gallery}/templates/{template['id']}").status_code == 204
    assert client.delete(f"/galleries/{gallery}/templates/{template['id']}").status_code == 404
    assert identify(portrait).json()["faces"][0]["identity"] is None
    assert client.get(f"/galleries/{gallery}/subjects/eileen").json()["templates"] == 0


def test_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    ready = client.get("/readyz")
    assert ready.json()["extractor"] == ready.headers["Facegallery-Extractor"]
    assert ready.json()["awaited"] == 0


def test_readiness_says_how_far_a_process_lags(
    tmp_path: Path, portrait: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, _env_file=None)
    monkeypatch.setattr(Upkeep, "start", lambda _upkeep: None)  # which would follow at once
    with running(settings) as client, running(settings) as other:
        assert client.post("/enroll", data={"subject": "ada"}, files={"images": portrait}).status_code == 201
        assert client.post("/identify", files={"image": portrait}).json()["faces"][0]["identity"]["subject"] == "ada"
        assert client.get("/readyz").json()["lag"] == 0
        assert other.delete("/galleries/default/subjects/ada").status_code == 204
        until = time.monotonic() + 20
        while client.get("/readyz").json()["lag"] == 0:  # what others have written counts a moment later
            assert time.monotonic() < until
            time.sleep(0.05)
        assert client.get("/readyz").json()["lag"] == 1
        assert client.post("/identify", files={"image": portrait}).json()["faces"][0]["identity"] is None
        assert client.get("/readyz").json()["lag"] == 0


def test_readiness_counts_the_large_galleries_whose_index_another_process_builds(
    tmp_path: Path, portrait: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, _env_file=None)
    upkeeps = list[Upkeep]()
    monkeypatch.setattr(Upkeep, "start", lambda upkeep: upkeeps.append(upkeep))  # which would tick at once
    with running(settings) as leader:
        assert leader.post("/enroll", data={"subject": "ada"}, files={"images": portrait}).status_code == 201
        assert leader.post("/identify", files={"image": portrait}).status_code == 200
        with monkeypatch.context() as meanwhile:  # it leads from now on, and has written nothing yet
            meanwhile.setattr(SnapshotKeeping, "keep", lambda *_: None)
            upkeeps[0].tick()
        monkeypatch.setattr("app.gallery.views.gallery_reading._LARGE", 0)
        with running(settings) as client:
            assert client.get("/readyz").json()["awaited"] == 1
            refused = client.post("/identify", files={"image": portrait})
            assert is_problem(refused, 503, "busy")
            assert int(refused.headers["Retry-After"]) > 0
            for upkeep in upkeeps:
                upkeep.tick()
            assert client.get("/readyz").json()["awaited"] == 0
            named = client.post("/identify", files={"image": portrait})
    assert named.json()["faces"][0]["identity"]["subject"] == "ada"


def test_metrics_have_every_stage_and_no_subject(
    client: TestClient, enroll: Call, identify: Call, portrait: bytes
) -> None:
    enroll("a most unusual name", portrait)
    identify(portrait)
    text = client.get("/metrics").text
    stages = set(re.findall(r'facegallery_stage_seconds_count\{stage="(\w+)"\}', text))
    assert stages == {"decode", "detect", "align", "embed", "store", "replay", "search", "name"}
    assert "unusual" not in text


def test_request_ids_are_kept_or_made(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["X-Request-ID"] == "abc-1"
    assert len(client.get("/healthz", headers={"X-Request-ID": "a b\tc"}).headers["X-Request-ID"]) == 32


def test_problem_types_are_explained(client: TestClient) -> None:
    for slug, kind in PROBLEM_TYPES.items():
        assert client.get(f"/problems/{slug}").json()["status"] == kind.status
    assert client.get("/problems/nothing").status_code == 404


def test_openapi_lists_every_call_with_summary_and_errors(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    text = str(document)
    assert "HTTPValidationError" not in text
    raised = set(PROBLEM_TYPES) - {
        "request-too-large",
        "not-ready",
        "internal",
        "http",
        "schema-outdated",
        "model-file",
        "master-key-missing",
        "template-tampered",
        "file-tampered",
        "receipt-invalid",
    }
    assert [slug for slug in raised if f"/problems/{slug}" not in text] == []
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert all(operation["summary"] and operation["description"] for operation in operations)


def test_openapi_examples_work(client: TestClient, enroll: Call, portrait: bytes) -> None:
    client.post("/enroll", data={"subject": "eileen"}, files={"images": portrait})
    document = client.get("/openapi.json").json()
    body = document["paths"]["/identify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert client.post("/identify", json=body["examples"][0]).status_code == 200
    creation = document["components"]["schemas"]["GalleryCreation"]["examples"][0]
    assert client.post("/galleries", json=creation).status_code == 201
    change = document["components"]["schemas"]["GalleryChange"]["examples"][0]
    assert client.patch(f"/galleries/{creation['name']}", json=change).status_code == 200
    person = document["components"]["schemas"]["SubjectChange"]["examples"][0]
    assert client.patch("/galleries/default/subjects/eileen", json=person).status_code == 200


@pytest.mark.parametrize("deed", ["delete_template", "merge_subjects"])
def test_what_was_done_is_answered_though_the_gallery_is_erased_a_moment_later(
    client: TestClient,
    enroll: Call,
    portrait: bytes,
    mirrored: bytes,
    gallery: str,
    deed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enroll("eileen", portrait)
    template = enroll("collins", mirrored).json()["enrolled"][0]["template"]
    service = client.app.state.service  # type: ignore[attr-defined]
    done = getattr(service.store, deed)

    def and_then_the_gallery_goes(*arguments: object, **named: object) -> object:
        answer = done(*arguments, **named)
        service.delete_gallery(gallery)
        return answer

    monkeypatch.setattr(service.store, deed, and_then_the_gallery_goes)
    if deed == "delete_template":
        assert client.delete(f"/galleries/{gallery}/templates/{template}").status_code == 204
    else:
        address = f"/galleries/{gallery}/subjects/collins"
        assert client.patch(address, json={"merge_into": "eileen"}).json()["templates"] == 2
    assert client.get(f"/galleries/{gallery}").status_code == 404
