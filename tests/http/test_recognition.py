"""Enroll, identify, verify, detect, embed: with real networks on a real face."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

Call = Callable[..., httpx.Response]


def test_enrolled_people_are_named_in_other_photos(
    enroll: Call, identify: Call, portrait: bytes, mirrored: bytes
) -> None:
    enrolled = enroll("eileen", portrait, metadata='{"badge": 17}')
    assert enrolled.status_code == 201
    assert enrolled.json()["subject"] | {"created_at": "", "updated_at": ""} == {
        "subject": "eileen",
        "metadata": {"badge": 17},
        "templates": 1,
        "created_at": "",
        "updated_at": "",
        "consent": None,
        "expires_at": None,
        "seen_at": None,
    }
    (face,) = identify(mirrored).json()["faces"]
    assert face["identity"]["subject"] == "eileen"
    assert face["identity"]["metadata"] == {"badge": 17}
    assert 0 < face["identity"]["distance"] < 0.7


def test_a_distance_beyond_the_threshold_is_unknown(
    enroll: Call, identify: Call, portrait: bytes, mirrored: bytes
) -> None:
    enroll("eileen", portrait)
    (face,) = identify(mirrored, threshold="0.01").json()["faces"]
    assert (face["identity"], face["candidates"]) == (None, [])
    (face,) = identify(mirrored, threshold="0.01", all_candidates="true").json()["faces"]
    assert face["identity"] is None
    assert [candidate["subject"] for candidate in face["candidates"]] == ["eileen"]


def test_the_same_photo_again_adds_nothing(enroll: Call, portrait: bytes) -> None:
    first, second = enroll("eileen", portrait), enroll("eileen", portrait)
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json()["subject"]["templates"] == 1
    assert [photo["new"] for photo in second.json()["enrolled"]] == [False]


def test_a_photo_that_is_sent_twice_is_listed_twice(enroll: Call, portrait: bytes, mirrored: bytes) -> None:
    answer = enroll("eileen", portrait, mirrored, portrait)
    assert answer.status_code == 201
    assert answer.json()["subject"]["templates"] == 2
    enrolled = {one["photo"]: one for one in answer.json()["enrolled"]}
    assert {name: one["new"] for name, one in enrolled.items()} == {"0.jpg": True, "1.jpg": True, "2.jpg": False}
    assert enrolled["0.jpg"]["template"] == enrolled["2.jpg"]["template"]


def test_photos_that_cannot_be_used_are_listed_with_the_reason(
    enroll: Call, portrait: bytes, no_face: bytes, ten_faces: bytes
) -> None:
    answer = enroll("eileen", portrait, no_face, b"text", ten_faces).json()
    assert [(one["photo"], one["reason"]) for one in answer["refused"]] == [
        ("1.jpg", "no-face"),
        ("2.jpg", "unsupported-image"),
        ("3.jpg", "several-faces"),
    ]
    assert answer["subject"]["templates"] == 1


def test_every_face_of_a_photo_is_answered(enroll: Call, identify: Call, portrait: bytes, ten_faces: bytes) -> None:
    enroll("eileen", portrait)
    faces = identify(ten_faces).json()["faces"]
    assert len(faces) == 10
    assert {face["identity"]["subject"] for face in faces} == {"eileen"}
    assert len(identify(ten_faces, max_faces="3").json()["faces"]) == 3


def test_one_candidate_a_subject_and_at_most_top_k(
    enroll: Call, identify: Call, portrait: bytes, mirrored: bytes
) -> None:
    for subject in ("a", "b", "c"):
        assert enroll(subject, portrait, mirrored).json()["subject"]["templates"] == 2
    (face,) = identify(portrait).json()["faces"]
    assert sorted(candidate["subject"] for candidate in face["candidates"]) == ["a", "b", "c"]
    (face,) = identify(portrait, top_k="2").json()["faces"]
    assert len(face["candidates"]) == 2


def test_galleries_are_apart(client: TestClient, enroll: Call, portrait: bytes, gallery: str) -> None:
    enroll("eileen", portrait)
    client.post("/galleries", json={"name": f"{gallery} other"})
    answer = client.post("/identify", data={"gallery": f"{gallery} other"}, files={"image": portrait}).json()
    assert answer["subjects"] == 0
    assert answer["faces"][0]["identity"] is None


def test_a_photo_without_a_face_has_no_faces(enroll: Call, identify: Call, portrait: bytes, no_face: bytes) -> None:
    enroll("eileen", portrait)
    answer = identify(no_face)
    assert (answer.status_code, answer.json()["faces"]) == (200, [])


def test_an_embedding_is_identified_as_its_photo_is(
    client: TestClient, enroll: Call, portrait: bytes, gallery: str
) -> None:
    enroll("eileen", portrait)
    (face,) = client.post("/embed", files={"image": portrait}).json()["faces"]
    assert np.linalg.norm(face["embedding"]) == pytest.approx(1, abs=1e-5)
    answer = client.post("/identify", json={"embedding": face["embedding"], "gallery": gallery}).json()
    assert answer["probe"]["identity"]["subject"] == "eileen"
    assert answer["probe"]["identity"]["distance"] == pytest.approx(0, abs=1e-3)


def test_detect_finds_box_landmarks_and_quality(client: TestClient, portrait: bytes) -> None:
    (face,) = client.post("/detect", files={"image": portrait}).json()["faces"]
    assert face["box"]["x"] == pytest.approx(178, abs=5)
    assert face["landmarks"]["right_eye"]["x"] < face["landmarks"]["left_eye"]["x"]
    assert face["quality"]["face_size"] == pytest.approx(91, abs=5)


def test_verify_compares_two_photos_or_a_photo_and_a_subject(
    client: TestClient, enroll: Call, portrait: bytes, mirrored: bytes, gallery: str
) -> None:
    enroll("eileen", portrait)
    two = client.post("/verify", files={"image": mirrored, "reference": portrait}).json()
    one = client.post("/verify", data={"subject": "eileen", "gallery": gallery}, files={"image": mirrored}).json()
    assert two["match"]
    assert one["match"]
    assert one["distance"] == pytest.approx(two["distance"], abs=1e-4)
    strict = client.post("/verify", data={"threshold": "0"}, files={"image": mirrored, "reference": portrait}).json()
    assert not strict["match"]


def test_two_enrolls_of_one_new_subject_at_the_same_time(
    client: TestClient, enroll: Call, portrait: bytes, mirrored: bytes, gallery: str
) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda photo: enroll("eileen", photo), (portrait, mirrored)))
    assert [answer.status_code for answer in answers] == [201, 201]
    (subject,) = client.get(f"/galleries/{gallery}/subjects").json()["subjects"]
    assert (subject["subject"], subject["templates"]) == ("eileen", 2)


def test_people_of_lfw_are_named_and_strangers_are_not(enroll: Call, identify: Call, lfw_sample: Path) -> None:
    people = [sorted(folder.glob("*.jpg")) for folder in sorted(lfw_sample.iterdir())]
    known, strangers = [p for p in people if len(p) >= 5][:8], [p[0] for p in people if len(p) == 1][:20]
    for photos in known:
        answer = enroll(photos[0].parent.name, *(photo.read_bytes() for photo in photos[:3]), face="largest")
        assert answer.status_code == 201

    def named(photo: Path) -> str | None:
        identity = identify(photo.read_bytes(), max_faces="1").json()["faces"][0]["identity"]
        return identity["subject"] if identity else None

    probes = [photo for photos in known for photo in photos[3:]]
    names = [named(photo) for photo in probes]
    assert all(name in {photo.parent.name, None} for name, photo in zip(names, probes, strict=True))
    assert names.count(None) <= 2
    assert [named(photo) for photo in strangers].count(None) >= len(strangers) - 1
