"""Every call refuses what it cannot take, by the part that is wrong, and nothing is stored."""

from collections.abc import Callable, Iterator
from io import BytesIO

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.http.test_bad_input import bomb, is_problem

Call = Callable[..., httpx.Response]
GALLERY = "refusals"
CALLS = ["/enroll", "/identify", "/verify", "/detect", "/embed"]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module", autouse=True)
def eileen(client: TestClient, portrait: bytes) -> None:
    data = {"subject": "eileen", "gallery": GALLERY}
    assert client.post("/enroll", data=data, files={"images": portrait}).status_code == 201


@pytest.fixture(autouse=True)
def nothing_is_stored(client: TestClient, eileen: None) -> Iterator[None]:
    def stored() -> list[object]:
        addresses = ("/galleries", f"/galleries/{GALLERY}/subjects", f"/galleries/{GALLERY}/templates")
        return [client.get(address).json() for address in addresses]

    before = stored()
    yield
    assert stored() == before


def send(client: TestClient, call: str, photo: bytes, **fields: str) -> httpx.Response:
    data = {"subject": "eileen", "gallery": GALLERY} | fields
    answer: httpx.Response = client.post(call, data=data, files={"images" if call == "/enroll" else "image": photo})
    return answer


def parts(answer: httpx.Response) -> list[str]:
    assert is_problem(answer, 422, "invalid-input")
    return [one["part"] for one in answer.json()["errors"]]


@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_whole_photo(client: TestClient, call: str, portrait: bytes) -> None:
    for photo in (b"", b"text", b"%PDF-1.7\n" + bytes(1000), portrait[:200], portrait[: len(portrait) // 2]):
        answer = send(client, call, photo)
        assert is_problem(answer, 422, "unsupported-image")
        assert "send" in answer.json()["detail"]


@pytest.mark.parametrize("call", CALLS)
def test_a_photo_with_too_many_pixels_or_bytes(client: TestClient, call: str, portrait: bytes) -> None:
    # An enrolment is refused as a whole, for the reason that its photos share.
    for photo in (bomb(), portrait + bytes(21 * 2**20)):
        assert is_problem(send(client, call, photo), 422 if call == "/enroll" else 413, "image-too-large")


@pytest.mark.parametrize("call", ["/identify", "/detect", "/embed"])
def test_the_first_frame_of_an_animated_gif_is_the_photo(client: TestClient, call: str, portrait: bytes) -> None:
    image, file = Image.open(BytesIO(portrait)), BytesIO()
    image.save(file, "GIF", save_all=True, append_images=[Image.new("RGB", image.size, "red")], duration=100)

    assert len(send(client, call, file.getvalue()).json()["faces"]) == 1


@pytest.mark.parametrize(
    ("call", "data", "files", "part"),
    [
        ("/enroll", {"gallery": GALLERY}, ["images"], "subject"),
        ("/enroll", {"subject": "ada"}, ["image"], "images"),
        ("/enroll", {"subject": "ada", "images": "text"}, ["other"], "images.0"),
        ("/identify", {"gallery": GALLERY, "image": "text"}, ["other"], "image"),
        ("/verify", {"subject": "ada"}, ["reference"], "image"),
        ("/detect", {"max_faces": "1"}, ["photo"], "image"),
        ("/embed", {"max_faces": "1"}, ["images"], "image"),
    ],
)
def test_a_missing_field_is_named(
    client: TestClient, portrait: bytes, call: str, data: dict[str, str], files: list[str], part: str
) -> None:
    assert part in parts(client.post(call, data=data, files=dict.fromkeys(files, portrait)))


@pytest.mark.parametrize("call", ["/enroll", "/identify"])
@pytest.mark.parametrize("gallery", [" ", "a/b", "..", "x" * 10_000, "a\tb"], ids=lambda name: name[:5])
def test_a_gallery_that_has_no_name(client: TestClient, portrait: bytes, call: str, gallery: str) -> None:
    assert parts(send(client, call, portrait, gallery=gallery)) == ["gallery"]


@pytest.mark.parametrize("call", ["/identify", "/verify"])
@pytest.mark.parametrize("threshold", ["nan", "-0.1", "2.1", "1e308", "-inf", "1e999", "near", "0x1"])
def test_a_threshold_outside_0_to_2(client: TestClient, portrait: bytes, call: str, threshold: str) -> None:
    assert parts(send(client, call, portrait, threshold=threshold)) == ["threshold"]


@pytest.mark.parametrize("field", ["top_k", "max_faces"])
@pytest.mark.parametrize("count", ["0", "1000000000", "-1", "101", "1" + "0" * 400, "many", "1.5"], ids=lambda n: n[:5])
def test_a_count_out_of_bounds(client: TestClient, portrait: bytes, field: str, count: str) -> None:
    assert parts(send(client, "/identify", portrait, **{field: count})) == [field]


@pytest.mark.parametrize(
    "values",
    [["0.1"] * 127, ["0.1"] * 129, ["0.1"] * 100_000, ["0"] * 128, ["Infinity", *["0.1"] * 127],
     ["1e999", *["0.1"] * 127], ['"a"'] * 128, ["[0.1]"] * 128, ["null"] * 128],
    ids=["127", "129", "100,000", "zeros", "infinity", "overflow", "text", "nested", "null"],
)  # fmt: skip
def test_an_embedding_of_other_numbers(client: TestClient, values: list[str]) -> None:
    body = f'{{"gallery": "{GALLERY}", "embedding": [{", ".join(values)}]}}'

    assert all(part.startswith("embedding") for part in parts(client.post("/identify", content=body, headers=JSON)))


@pytest.mark.parametrize(
    "fields", [{"threshold": -1}, {"threshold": 3}, {"top_k": 0}, {"top_k": 10**9}, {"gallery": "a/b"}, {"topk": 1}]
)
def test_fields_beside_an_embedding(client: TestClient, fields: dict[str, object]) -> None:
    probe = {"gallery": GALLERY, "embedding": [1.0] + [0.0] * 127} | fields

    assert parts(client.post("/identify", json=probe)) == list(fields)


@pytest.mark.parametrize("call", ["/galleries", "/identify"])
@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"", b'{"name": NaN}'], ids=lambda b: str(b[:5]))
def test_a_body_that_is_no_json(client: TestClient, call: str, body: bytes) -> None:
    assert parts(client.post(call, content=body, headers=JSON))


@pytest.mark.parametrize("call", ["/galleries", "/identify"])
@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"name": ' * 100_000, b'{"name": "\xff\xff"}', b"\xff\xff"],
    ids=["list", "object", "text", "bytes"],
)
def test_json_that_is_nested_too_deep_or_not_utf_8(client: TestClient, call: str, body: bytes) -> None:
    assert parts(client.post(call, content=body, headers=JSON)) == ["body"]


@pytest.mark.parametrize("call", ["/enroll", "/identify", "/detect"])
def test_a_form_without_a_boundary(client: TestClient, call: str) -> None:
    answer = client.post(call, content=b"--x\r\n", headers={"Content-Type": "multipart/form-data"})

    assert is_problem(answer, 400, "http")


@pytest.mark.parametrize(
    ("method", "address", "body"),
    [
        ("GET", "", None),
        ("PATCH", "", {"policy": None}),
        ("DELETE", "", None),
        ("GET", "/subjects", None),
        ("GET", "/subjects/eileen", None),
        ("PATCH", "/subjects/eileen", {"metadata": {}}),
        ("DELETE", "/subjects/eileen", None),
        ("GET", "/templates", None),
        ("DELETE", "/templates/1", None),
    ],
)
def test_a_gallery_that_is_not_there(client: TestClient, method: str, address: str, body: object) -> None:
    assert is_problem(client.request(method, f"/galleries/none{address}", json=body), 404, "gallery-not-found")


def test_nobody_is_looked_for_in_a_gallery_that_is_not_there(client: TestClient, portrait: bytes) -> None:
    probe = {"gallery": "none", "embedding": [1.0] + [0.0] * 127}

    assert is_problem(send(client, "/identify", portrait, gallery="none"), 404, "gallery-not-found")
    assert is_problem(send(client, "/verify", portrait, gallery="none"), 404, "gallery-not-found")
    assert is_problem(client.post("/identify", json=probe), 404, "gallery-not-found")


@pytest.mark.parametrize("kind", ["subjects", "templates"])
@pytest.mark.parametrize("query", ["limit=0", "limit=1000000000", "limit=-1", "limit=x", "cursor="])
def test_a_page_that_cannot_be(client: TestClient, kind: str, query: str) -> None:
    assert parts(client.get(f"/galleries/{GALLERY}/{kind}?{query}")) == [query.partition("=")[0]]


@pytest.mark.parametrize("template", ["0", "-1", "x", "9" * 30])
def test_an_id_that_cannot_be(client: TestClient, template: str) -> None:
    assert parts(client.delete(f"/galleries/{GALLERY}/templates/{template}")) == ["template"]


def test_a_subject_without_a_name_in_the_address(client: TestClient) -> None:
    assert parts(client.delete(f"/galleries/{GALLERY}/subjects/")) == ["subject"]


@pytest.mark.parametrize("body", [{"subject": ""}, {"subject": "x" * 201}, {"metadata": [1]}, {"name": "x"}, [], None])
def test_a_change_of_a_subject_that_makes_no_sense(client: TestClient, body: object) -> None:
    assert parts(client.patch(f"/galleries/{GALLERY}/subjects/eileen", json=body))


@pytest.mark.parametrize("name", ['""', '" "', '"a/b"', '"."', '".."', '"a\\nb"', '"\\ud800"', "17", "null"])
def test_a_gallery_to_be_made_without_a_name(client: TestClient, name: str) -> None:
    assert parts(client.post("/galleries", content=f'{{"name": {name}}}', headers=JSON))


@pytest.mark.parametrize("policy", [True, {"fpir": 1}, {"fpir": 0.1, "far": 0.1}, [], 1e9])
def test_a_policy_that_makes_no_sense(client: TestClient, policy: object) -> None:
    assert parts(client.post("/galleries", json={"name": "strict", "policy": policy}))
    assert parts(client.patch(f"/galleries/{GALLERY}", json={"policy": policy}))
