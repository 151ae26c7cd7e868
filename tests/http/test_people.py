"""Subjects, templates and galleries while they change; verification of one person."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from threading import Barrier
from typing import Literal

import httpx
import numpy as np
import pytest
import skimage.data
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from app.settings import Settings
from tests.http.conftest import jpeg, running
from tests.http.test_bad_input import is_problem

Call = Callable[..., httpx.Response]


@pytest.fixture(scope="session")
def stranger() -> bytes:
    """The photographer that scikit-image ships, in profile: good enough to be searched, not to be enrolled."""
    return jpeg(skimage.data.camera())


def test_a_stranger_is_unknown(enroll: Call, identify: Call, portrait: bytes, mirrored: bytes, stranger: bytes) -> None:
    enroll("eileen", portrait, mirrored)
    (face,) = identify(stranger).json()["faces"]

    assert (face["identity"], face["candidates"]) == (None, [])
    assert identify(stranger, threshold="2").json()["faces"][0]["identity"]["subject"] == "eileen"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF"])
def test_every_format_is_enrolled(enroll: Call, portrait: bytes, kind: str) -> None:
    file = BytesIO()
    Image.open(BytesIO(portrait)).save(file, kind)

    assert enroll("eileen", file.getvalue()).json()["subject"]["templates"] == 1


def test_a_small_face_is_refused_with_a_sentence_that_helps(enroll: Call, portrait: bytes) -> None:
    file = BytesIO()
    Image.open(BytesIO(portrait)).resize((170, 170)).save(file, "PNG")
    answer = enroll("eileen", file.getvalue())

    assert is_problem(answer, 422, "low-quality")
    assert "px wide; send one of at least 40 px" in answer.json()["detail"]


def test_metadata_is_kept_until_it_is_replaced(enroll: Call, portrait: bytes, mirrored: bytes) -> None:
    enroll("eileen", portrait, metadata='{"badge": 17}')

    assert enroll("eileen", mirrored).json()["subject"]["metadata"] == {"badge": 17}
    assert enroll("eileen", mirrored, metadata='{"badge": 18}').json()["subject"]["metadata"] == {"badge": 18}


def test_two_ways_to_type_a_gallery_are_one(client: TestClient, gallery: str, portrait: bytes) -> None:
    def enroll(gallery: str) -> httpx.Response:
        data = {"gallery": gallery, "subject": "eileen"}
        answer: httpx.Response = client.post("/enroll", data=data, files={"images": portrait})
        return answer

    composed, decomposed = enroll(f"{gallery} é"), enroll(f"{gallery} e\u0301")
    assert (composed.status_code, decomposed.status_code) == (201, 200)
    assert decomposed.json()["gallery"] == f"{gallery} é"


def test_many_enrolments_of_a_new_subject_in_a_new_gallery_at_the_same_time(
    client: TestClient, gallery: str, enroll: Call, portrait: bytes
) -> None:
    image, barrier = ImageEnhance.Brightness(Image.open(BytesIO(portrait))), Barrier(6)
    photos = [jpeg(np.asarray(image.enhance(0.7 + step / 10))) for step in range(6)]

    def enroll_at_once(photo: bytes) -> int:
        barrier.wait(30)
        return enroll("eileen", photo).status_code

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(enroll_at_once, photos)) == [201] * 6
    (subject,) = client.get(f"/galleries/{gallery}/subjects").json()["subjects"]
    assert (subject["subject"], subject["templates"]) == ("eileen", 6)
    assert client.get(f"/galleries/{gallery}").json()["revision"] == 6


def test_who_is_enrolled_between_two_pages_is_met_and_nobody_is_met_twice(
    client: TestClient, gallery: str, enroll: Call, portrait: bytes
) -> None:
    for name in ("ada", "bob", "eva"):
        enroll(name, portrait)
    first = client.get(f"/galleries/{gallery}/subjects", params={"limit": 2}).json()
    client.delete(f"/galleries/{gallery}/subjects/ada").raise_for_status()
    enroll("mia", portrait)
    second = client.get(f"/galleries/{gallery}/subjects", params={"cursor": first["next_cursor"]}).json()

    assert [[one["subject"] for one in page["subjects"]] for page in (first, second)] == [
        ["ada", "bob"],
        ["eva", "mia"],
    ]
    assert second["next_cursor"] is None


@pytest.mark.parametrize("name", ["...", ".a", "a/b/c", "50% ?#&+;", "templates", " '\"\\<b>"])
def test_names_that_are_hard_to_put_into_an_address(
    client: TestClient, gallery: str, enroll: Call, portrait: bytes, name: str
) -> None:
    escaped = "".join(f"%{byte:02X}" for byte in name.encode())  # dots as well, or a client takes them out
    address = f"/galleries/{gallery}/subjects/{escaped}"
    enroll(name, portrait)

    assert client.get(address).json()["subject"] == name
    assert len(client.get(f"/galleries/{gallery}/templates", params={"subject": name}).json()["templates"]) == 1
    assert client.delete(address).status_code == 204
    assert is_problem(client.get(address), 404, "subject-not-found")


def test_a_template_of_another_gallery_cannot_be_erased(
    client: TestClient, gallery: str, enroll: Call, portrait: bytes
) -> None:
    template = enroll("eileen", portrait).json()["enrolled"][0]["template"]
    client.post("/galleries", json={"name": f"{gallery} other"}).raise_for_status()

    answer = client.delete(f"/galleries/{gallery} other/templates/{template}")
    assert is_problem(answer, 404, "template-not-found")
    assert client.get(f"/galleries/{gallery}").json()["templates"] == 1


def test_a_gallery_made_anew_knows_nobody_of_the_old(
    client: TestClient, gallery: str, enroll: Call, identify: Call, portrait: bytes
) -> None:
    enroll("eileen", portrait)
    assert identify(portrait).json()["faces"][0]["identity"]["subject"] == "eileen"
    client.delete(f"/galleries/{gallery}").raise_for_status()
    client.post("/galleries", json={"name": gallery}).raise_for_status()

    assert identify(portrait, all_candidates="true").json()["faces"][0]["candidates"] == []


def test_the_threshold_tightens_as_the_gallery_grows(
    client: TestClient, gallery: str, enroll: Call, portrait: bytes
) -> None:
    client.post("/galleries", json={"name": gallery, "policy": {"fpir": 0.0001}}).raise_for_status()
    thresholds = []
    for number in range(4):
        enroll(f"person {number}", portrait)
        thresholds.append(client.get(f"/galleries/{gallery}").json()["threshold"])

    assert thresholds == sorted(set(thresholds), reverse=True)


def test_the_threshold_that_is_shown_is_the_one_that_decides(
    client: TestClient, gallery: str, enroll: Call, identify: Call, portrait: bytes, mirrored: bytes
) -> None:
    client.post("/galleries", json={"name": gallery, "policy": {"fpir": 0.01}}).raise_for_status()
    enroll("eileen", portrait)
    (template,) = enroll("mirror", mirrored).json()["enrolled"]
    client.delete(f"/galleries/{gallery}/templates/{template['template']}").raise_for_status()

    shown, used = client.get(f"/galleries/{gallery}").json(), identify(portrait).json()
    assert (shown["subjects"], used["subjects"]) == (2, 1)
    assert shown["threshold"] == used["threshold"]


def test_two_persons_do_not_match(client: TestClient, portrait: bytes, stranger: bytes) -> None:
    answer = client.post("/verify", files={"image": portrait, "reference": stranger}).json()

    assert answer["match"] is False
    assert answer["distance"] > answer["threshold"]


def test_the_templates_of_a_subject_make_one_distance(
    client: TestClient, gallery: str, enroll: Call, identify: Call, portrait: bytes, mirrored: bytes
) -> None:
    enroll("eileen", mirrored, portrait)
    claim, photo = {"gallery": gallery, "subject": "eileen"}, {"image": portrait}
    compared = client.post("/verify", data=claim, files=photo).json()["distance"]

    # One template is the probe itself; the mean of both is at half the angle between them.
    cosine = float(embedding(client, portrait) @ embedding(client, mirrored))
    to_the_mean = np.sqrt((1 + cosine) / 2)
    assert compared == pytest.approx(np.sqrt(2 - 2 * (1 + to_the_mean) / 2), abs=2e-3)
    assert identify(portrait).json()["faces"][0]["identity"]["distance"] == pytest.approx(compared, abs=1e-4)


def test_an_erased_template_has_no_part_in_the_next_decision(
    client: TestClient, gallery: str, enroll: Call, identify: Call, portrait: bytes, mirrored: bytes
) -> None:
    mirror, _ = enroll("eileen", mirrored, portrait).json()["enrolled"]
    before = identify(portrait).json()["faces"][0]["identity"]
    assert before["template"] != mirror["template"]
    client.delete(f"/galleries/{gallery}/templates/{mirror['template']}").raise_for_status()

    after = identify(portrait).json()["faces"][0]["identity"]
    assert after["template"] == before["template"]
    assert after["distance"] < 1e-3 < 0.05 < before["distance"]


@pytest.mark.parametrize("rule", ["best", "mean"])
def test_the_matching_rule_is_a_setting(
    tmp_path: Path, portrait: bytes, mirrored: bytes, rule: Literal["best", "mean"]
) -> None:
    with running(Settings(data_dir=tmp_path, matching_rule=rule, _env_file=None)) as client:
        files = [("images", (str(number), photo)) for number, photo in enumerate((mirrored, portrait))]
        client.post("/enroll", data={"subject": "eileen"}, files=files).raise_for_status()
        answer = client.post("/verify", data={"subject": "eileen"}, files={"image": portrait}).json()
        cosine = float(embedding(client, portrait) @ embedding(client, mirrored))

    wanted = {"best": 0.0, "mean": np.sqrt(2 - 2 * np.sqrt((1 + cosine) / 2))}[rule]
    assert answer["distance"] == pytest.approx(wanted, abs=2e-3)


def embedding(client: TestClient, photo: bytes) -> NDArray[np.float64]:
    return np.array(client.post("/embed", files={"image": photo}).json()["faces"][0]["embedding"])


def test_a_claim_that_cannot_be_compared_is_refused(
    client: TestClient, gallery: str, enroll: Call, portrait: bytes, ten_faces: bytes
) -> None:
    template = enroll("eileen", portrait).json()["enrolled"][0]["template"]
    client.delete(f"/galleries/{gallery}/templates/{template}").raise_for_status()
    claim, photo = {"gallery": gallery, "subject": "eileen"}, {"image": portrait}

    assert is_problem(client.post("/verify", data=claim, files=photo), 404, "subject-not-found")
    assert is_problem(client.post("/verify", data=claim | {"subject": "ada"}, files=photo), 404, "subject-not-found")
    both = client.post("/verify", data=claim, files=photo | {"reference": portrait})
    assert is_problem(both, 422, "invalid-input")
    several = client.post("/verify", files=photo | {"reference": ten_faces})
    assert is_problem(several, 422, "several-faces")
    assert several.json()["part"] == "reference"
    largest = client.post("/verify", data={"face": "largest"}, files=photo | {"reference": ten_faces})
    assert largest.json()["match"] is True
