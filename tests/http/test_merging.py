"""Two subjects that are one person, over HTTP."""

from collections.abc import Callable

import httpx
from fastapi.testclient import TestClient


def test_merge_two_subjects(
    client: TestClient,
    gallery: str,
    enroll: Callable[..., httpx.Response],
    identify: Callable[..., httpx.Response],
    portrait: bytes,
    mirrored: bytes,
) -> None:
    enroll("eileen", portrait, metadata='{"badge": 1}')
    enroll("collins", mirrored, metadata='{"badge": 2}')
    assert identify(mirrored).json()["faces"][0]["identity"]["subject"] == "collins"
    address = f"/galleries/{gallery}/subjects"
    answer = client.patch(f"{address}/collins", json={"merge_into": "eileen"})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["subject"], body["metadata"], body["templates"]) == ("eileen", {"badge": 1}, 2)
    assert identify(mirrored).json()["faces"][0]["identity"]["subject"] == "eileen"
    assert identify(mirrored).json()["subjects"] == 1
    assert client.get(f"{address}/collins").status_code == 404


def test_what_cannot_be_merged(
    client: TestClient, gallery: str, enroll: Callable[..., httpx.Response], portrait: bytes
) -> None:
    enroll("eileen", portrait)
    address = f"/galleries/{gallery}/subjects/eileen"
    for body, status, slug, part in (
        ({"merge_into": "nobody"}, 404, "subject-not-found", "merge_into"),
        ({"merge_into": "eileen"}, 422, "invalid-input", "merge_into"),
        ({"merge_into": ""}, 422, "invalid-input", "merge_into"),
        ({"merge_into": "x", "metadata": {}}, 422, "invalid-input", "merge_into"),
    ):
        answer = client.patch(address, json=body)
        assert (answer.status_code, answer.json()["type"], answer.json()["part"]) == (status, f"/problems/{slug}", part)
    assert client.get(address).json()["templates"] == 1
