"""Bad input gets a problem document that says what to do, and nothing is stored."""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image

Call = Callable[..., httpx.Response]
JSON = {"Content-Type": "application/json"}


def is_problem(answer: httpx.Response, status: int, slug: str) -> bool:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["detail"]
    assert body["title"]
    assert (answer.status_code, body["status"], body["type"]) == (status, status, f"/problems/{slug}")
    return True


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(30_000 * 3 * 100), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


ANIMATION = encoded(
    Image.new("RGB", (90, 90), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (90, 90), "blue")]
)
ONE_PIXEL = encoded(Image.new("RGB", (1, 1)), "PNG")


@pytest.mark.parametrize(
    ("photo", "status", "slug"),
    [
        (b"this is not an image", 422, "unsupported-image"),
        (b"", 422, "unsupported-image"),
        (ONE_PIXEL, 422, "no-face"),
        (bomb(), 413, "image-too-large"),
        (ANIMATION, 422, "no-face"),
    ],
    ids=["text", "empty", "one pixel", "bomb", "animation"],
)
def test_photos_that_cannot_be_used(
    photo: bytes, status: int, slug: str, client: TestClient, enroll: Call, gallery: str
) -> None:
    refused = enroll("eileen", photo)
    assert is_problem(refused, 422, slug)
    assert refused.json()["refused"][0]["reason"] == slug
    assert client.get(f"/galleries/{gallery}").status_code == 404
    detected = client.post("/detect", files={"image": ("photo", photo)})
    assert detected.json()["faces"] == [] if slug == "no-face" else is_problem(detected, status, slug)


def test_a_truncated_jpeg(enroll: Call, client: TestClient, portrait: bytes) -> None:
    assert is_problem(enroll("eileen", portrait[:3000]), 422, "unsupported-image")
    assert is_problem(client.post("/detect", files={"image": portrait[:3000]}), 422, "unsupported-image")


def test_no_face_and_ten_faces(
    enroll: Call, client: TestClient, no_face: bytes, ten_faces: bytes, gallery: str
) -> None:
    assert is_problem(enroll("eileen", no_face), 422, "no-face")
    assert is_problem(enroll("eileen", ten_faces), 422, "several-faces")
    assert is_problem(enroll("eileen", no_face, ten_faces), 422, "photos-refused")
    assert client.get(f"/galleries/{gallery}").status_code == 404
    assert enroll("eileen", ten_faces, face="largest").status_code == 201
    verify = client.post("/verify", files={"image": no_face, "reference": ten_faces})
    assert is_problem(verify, 422, "no-face")


def test_200_mb_declared(client: TestClient) -> None:
    answer = client.post("/detect", files={"image": bytes(200 * 2**20)})
    assert is_problem(answer, 413, "request-too-large")


def test_200_mb_in_chunks(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        for _ in range(200):
            yield bytes(2**20)

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert is_problem(client.post("/detect", content=chunks(), headers=headers), 413, "request-too-large")


def test_a_photo_over_the_limit_in_a_request_within_it(client: TestClient) -> None:
    assert is_problem(client.post("/detect", files={"image": bytes(30 * 2**20)}), 413, "image-too-large")


def test_a_photo_over_the_limit_is_refused_and_the_others_are_enrolled(
    client: TestClient, enroll: Call, portrait: bytes, no_face: bytes
) -> None:
    answer = enroll("eileen", bytes(21 * 2**20), portrait, no_face)
    assert answer.status_code == 201
    assert [one["photo"] for one in answer.json()["enrolled"]] == ["1.jpg"]
    refused = {one["photo"]: one["reason"] for one in answer.json()["refused"]}
    assert refused == {"0.jpg": "image-too-large", "2.jpg": "no-face"}
    answer = enroll("ada", no_face, bytes(21 * 2**20))
    assert is_problem(answer, 422, "photos-refused")
    assert {one["reason"] for one in answer.json()["refused"]} == {"image-too-large", "no-face"}


def test_missing_fields(client: TestClient, portrait: bytes) -> None:
    assert is_problem(client.post("/enroll", files={"images": portrait}), 422, "invalid-input")
    assert is_problem(client.post("/enroll", data={"subject": "eileen"}), 422, "invalid-input")
    assert is_problem(
        client.post("/identify", data={"gallery": "default"}, files={"other": b"x"}), 422, "invalid-input"
    )
    assert is_problem(client.post("/verify", files={"image": portrait}), 422, "invalid-input")


@pytest.mark.parametrize("subject", ["", "   ", "a" * 10_000, "a" * 201, "a\nb", "a\x00b"])
def test_subjects_that_are_no_names(
    subject: str, client: TestClient, enroll: Call, portrait: bytes, gallery: str
) -> None:
    assert is_problem(enroll(subject, portrait), 422, "invalid-input")
    assert client.get(f"/galleries/{gallery}").status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": "nan"},
        {"threshold": "-0.1"},
        {"threshold": "1e308"},
        {"threshold": "inf"},
        {"threshold": "far"},
        {"top_k": "0"},
        {"top_k": "1000000000"},
        {"max_faces": "0"},
    ],
    ids=str,
)
def test_numbers_out_of_range(fields: dict[str, str], enroll: Call, identify: Call, portrait: bytes) -> None:
    enroll("eileen", portrait)
    answer = identify(portrait, **fields)
    assert is_problem(answer, 422, "invalid-input")
    assert answer.json()["errors"][0]["part"] == next(iter(fields))


@pytest.mark.parametrize(
    "body",
    [
        '{"embedding": [1, 0]}',
        json.dumps({"embedding": [0] * 128}),
        '{"embedding": [NaN]}',
        '{"embedding": []}',
        "{",
        "[]",
        "",
    ],
    ids=["short", "zeros", "nan", "empty", "cut off", "list", "nothing"],
)
def test_embeddings_that_are_none(body: str, client: TestClient, enroll: Call, portrait: bytes) -> None:
    client.post("/enroll", data={"subject": "eileen"}, files={"images": portrait})
    answer = client.post("/identify", content=body, headers={"Content-Type": "application/json"})
    assert is_problem(answer, 422, "invalid-input")


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": True},
        {"threshold": "1"},
        {"top_k": True},
        {"top_k": 1.5},
        {"all_candidates": 1},
        {"embedding": [True] * 128},
    ],
    ids=str,
)
def test_what_is_no_number_in_json_is_not_taken_for_one(
    fields: dict[str, Any], client: TestClient, enroll: Call, portrait: bytes, gallery: str
) -> None:
    enroll("eileen", portrait)
    probe = {"embedding": [0.1] * 128, "gallery": gallery, "threshold": 1, "top_k": 1.0}
    assert client.post("/identify", json=probe).status_code == 200
    answer = client.post("/identify", json=probe | fields)
    assert is_problem(answer, 422, "invalid-input")
    assert answer.json()["errors"][0]["part"].split(".")[0] == next(iter(fields))


@pytest.mark.parametrize("policy", [True, "1", {"fpir": "0.01"}, {"fmr": True}], ids=str)
def test_what_is_no_rate_is_not_taken_for_one(policy: object, client: TestClient, gallery: str) -> None:
    assert is_problem(client.post("/galleries", json={"name": gallery, "policy": policy}), 422, "invalid-input")


@pytest.mark.parametrize("body", [{}, {"subject": None}, {"metadata": None, "merge_into": None}], ids=str)
def test_a_change_of_a_subject_that_changes_nothing_is_refused(
    body: dict[str, Any], client: TestClient, enroll: Call, portrait: bytes, gallery: str
) -> None:
    before = enroll("eileen", portrait).json()["subject"]
    address = f"/galleries/{gallery}/subjects/eileen"
    assert is_problem(client.patch(address, json=body), 422, "invalid-input")
    assert client.get(address).json() == before


def test_an_embedding_with_a_nan_among_numbers(client: TestClient) -> None:
    body = f'{{"embedding": [{", ".join(["0.1"] * 127)}, NaN]}}'
    answer = client.post("/identify", content=body, headers={"Content-Type": "application/json"})
    assert is_problem(answer, 422, "invalid-input")


@pytest.mark.parametrize(
    "metadata",
    ["{", "[]", '"text"', '{"a": NaN}', r'{"a": "\ud800"}', "[" * 5000, json.dumps({"a": "x" * 20_000})],
    ids=["cut off", "list", "text", "nan", "surrogate", "nested", "long"],
)
def test_metadata_that_is_no_object(
    metadata: str, client: TestClient, enroll: Call, portrait: bytes, gallery: str
) -> None:
    assert is_problem(enroll("eileen", portrait, metadata=metadata), 422, "invalid-input")
    assert client.get(f"/galleries/{gallery}").status_code == 404


def test_metadata_is_nested_32_levels_deep_at_most(
    client: TestClient, enroll: Call, identify: Call, portrait: bytes, gallery: str
) -> None:
    def nested(levels: int) -> str:
        return '{"a": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"

    address = f"/galleries/{gallery}/subjects/eileen"
    assert enroll("eileen", portrait, metadata=nested(32)).status_code == 201
    for levels in (33, 300, 960):
        assert is_problem(enroll("eileen", portrait, metadata=nested(levels)), 422, "invalid-input")
        changed = client.patch(address, content=f'{{"metadata": {nested(levels)}}}', headers=JSON)
        assert is_problem(changed, 422, "invalid-input")
    assert client.get(address).json()["metadata"] == json.loads(nested(32))
    assert identify(portrait).json()["faces"][0]["identity"]["metadata"] == json.loads(nested(32))


def test_a_gallery_that_does_not_exist(identify: Call, client: TestClient, portrait: bytes, gallery: str) -> None:
    assert is_problem(identify(portrait), 404, "gallery-not-found")
    assert is_problem(client.get(f"/galleries/{gallery}/subjects"), 404, "gallery-not-found")
    assert is_problem(client.delete(f"/galleries/{gallery}"), 404, "gallery-not-found")


def test_a_subject_that_does_not_exist(enroll: Call, client: TestClient, portrait: bytes, gallery: str) -> None:
    enroll("eileen", portrait)
    assert is_problem(client.delete(f"/galleries/{gallery}/subjects/nobody"), 404, "subject-not-found")
    assert is_problem(client.delete(f"/galleries/{gallery}/templates/987654321"), 404, "template-not-found")


def test_too_many_photos(enroll: Call, portrait: bytes) -> None:
    assert is_problem(enroll("eileen", *[portrait] * 21), 422, "invalid-input")


@pytest.mark.parametrize("cursor", ["x", "-1", "9" * 30, "1e3"])
def test_cursors_of_others(cursor: str, enroll: Call, client: TestClient, portrait: bytes, gallery: str) -> None:
    enroll("eileen", portrait)
    answer = client.get(f"/galleries/{gallery}/subjects", params={"cursor": cursor})
    assert is_problem(answer, 422, "invalid-input")


def test_policies_that_are_none(client: TestClient, gallery: str) -> None:
    for policy in ({}, {"fpir": 2}, {"fpir": 0}, -1, 3, "strict", {"fmr": None}):
        answer = client.post("/galleries", json={"name": gallery, "policy": policy})
        assert is_problem(answer, 422, "invalid-input"), policy


def test_other_addresses_methods_and_media(client: TestClient) -> None:
    assert is_problem(client.get("/nothing"), 404, "http")
    assert is_problem(client.get("/enroll"), 405, "http")
    assert is_problem(client.post("/identify", content=b"x", headers={"Content-Type": "text/plain"}), 415, "http")


def form_with_file(name: bytes, photo: bytes, *, field: bytes, subject: bytes = b"eileen") -> bytes:
    def part(disposition: bytes, value: bytes) -> bytes:
        return b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + value + b"\r\n"

    file = part(b'name="%s"; filename="%s"' % (field, name), photo)
    return part(b'name="subject"', subject) + part(b'name="gallery"', b"charsets") + file + b"--b--\r\n"


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "undefined", "utf-16", "hex", "idna", "nothing", '""'])
@pytest.mark.parametrize("call", ["/enroll", "/identify"])
def test_a_form_in_another_charset_is_refused(client: TestClient, portrait: bytes, call: str, charset: str) -> None:
    body = form_with_file(rb"\\ud800+2AA-.jpg", portrait, field=b"images" if call == "/enroll" else b"image")
    headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    assert is_problem(client.post(call, content=body, headers=headers), 400, "http")
    assert client.get("/galleries/charsets").status_code == 404


@pytest.mark.parametrize(
    ("charset", "written"),
    [
        ("", "Zo\u00eb".encode()),
        ("; charset=UTF-8", "Zo\u00eb".encode()),
        ("; charset=Latin-1", b"Zo\xeb"),
        ("; charset=ISO_8859-1", b"Zo\xeb"),
        ("; charset=windows-1252", b"Zo\xeb"),
    ],
)
def test_names_in_a_form_of_either_charset(client: TestClient, portrait: bytes, charset: str, written: bytes) -> None:
    body = form_with_file(written + b"\x1b.jpg", portrait, field=b"images", subject=written)
    headers = {"Content-Type": "multipart/form-data; boundary=b" + charset}
    answer = client.post("/enroll", content=body, headers=headers).json()
    client.delete("/galleries/charsets")
    assert answer["subject"]["subject"] == "Zo\u00eb"
    assert answer["enrolled"][0]["photo"] == "Zo\u00eb\N{REPLACEMENT CHARACTER}.jpg"


@pytest.mark.parametrize(
    ("address", "methods"),
    [
        ("/identify", "POST"),
        ("/galleries", "GET, HEAD, POST"),
        ("/galleries/x", "DELETE, GET, HEAD, PATCH"),
        ("/galleries/x/subjects", "GET, HEAD"),
        ("/galleries/x/subjects/y", "DELETE, GET, HEAD, PATCH"),
        ("/galleries/x/subjects/y/forget", "DELETE, GET, HEAD, PATCH, POST"),
        ("/galleries/x/templates/1", "DELETE, GET, HEAD"),
        ("/healthz", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_ones_there_are(client: TestClient, address: str, methods: str) -> None:
    for method in {"PUT", "OPTIONS", "HEAD"} - set(methods.split(", ")):
        answer = client.request(method, address)
        assert answer.headers["Allow"] == methods
        assert answer.status_code == 405
    assert is_problem(client.put(address), 405, "http")


@pytest.mark.parametrize("address", ["/healthz", "/readyz", "/galleries", "/galleries/none", "/openapi.json", "/none"])
def test_head_is_answered_as_get_is_without_a_body(client: TestClient, address: str) -> None:
    shown, head = client.get(address), client.head(address)
    assert (head.status_code, head.content) == (shown.status_code, b"")
    for header in ("Content-Type", "Content-Length", "Facegallery-Extractor"):
        assert head.headers[header] == shown.headers[header]


def test_an_address_that_is_not_utf8_is_refused(
    client: TestClient, enroll: Call, portrait: bytes, gallery: str
) -> None:
    enroll("\N{REPLACEMENT CHARACTER}", portrait)
    subjects = f"/galleries/{gallery}/subjects"
    for address in (f"{subjects}/%FF", f"{subjects}/%ED%A0%80", f"/galleries/{gallery}/templates?subject=%FF"):
        assert is_problem(client.get(address), 400, "http")
        assert is_problem(client.delete(address), 400, "http")
    assert client.get(f"{subjects}/%EF%BF%BD").status_code == 200
