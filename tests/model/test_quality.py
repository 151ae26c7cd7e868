from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from model.alignment import TEMPLATE_LANDMARKS, align_face
from model.detector import Face
from model.pipeline import Networks
from model.quality import Quality, QualityLimits, complaints, head_pose, measure_quality

GOOD = Quality(detection_score=0.95, face_size=100, sharpness=130, yaw=0, pitch=0, roll=0)


def measured(pixels: NDArray[np.uint8], networks: Networks) -> Quality:
    (face,) = networks.detector.detect(pixels)
    return measure_quality(face, pixels, align_face(pixels, face.landmarks))


def test_a_good_portrait_has_nothing_to_complain_of(astronaut: NDArray[np.uint8], networks: Networks) -> None:
    quality = measured(astronaut, networks)
    assert quality.face_size == pytest.approx(91.5, abs=4)
    assert max(abs(quality.yaw), abs(quality.pitch), abs(quality.roll)) < 20
    assert complaints(quality, QualityLimits()) == ()


def test_blur_lowers_sharpness_and_darkness_does_not(astronaut: NDArray[np.uint8], networks: Networks) -> None:
    sharp = measured(astronaut, networks).sharpness
    blurred = measured(cv2.GaussianBlur(astronaut, (0, 0), 4), networks).sharpness
    dark = measured((astronaut * 0.4).astype(np.uint8), networks).sharpness
    assert blurred < 10 < sharp / 2
    assert dark == pytest.approx(sharp, rel=0.3)


@pytest.mark.parametrize("degrees", [-30, 20])
def test_roll_is_the_angle_of_the_picture(degrees: float) -> None:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    upright = head_pose([tuple(point) for point in TEMPLATE_LANDMARKS])
    turned = head_pose([tuple(point) for point in TEMPLATE_LANDMARKS @ turn.T])
    assert turned[2] - upright[2] == pytest.approx(degrees, abs=1e-6)
    assert turned[:2] == pytest.approx(upright[:2], abs=1e-6)


def test_a_nose_to_the_right_of_the_picture_is_a_positive_yaw() -> None:
    points = TEMPLATE_LANDMARKS.copy()
    points[2, 0] += 12
    assert head_pose([tuple(point) for point in points])[0] > 20


@pytest.mark.parametrize(("shift", "direction"), [(-4, 1), (4, -1)])
def test_a_nose_near_the_eyes_looks_up_and_one_near_the_mouth_down(shift: float, direction: int) -> None:
    points = TEMPLATE_LANDMARKS.copy()
    points[2, 1] += shift
    before, after = (head_pose([tuple(point) for point in one])[1] for one in (TEMPLATE_LANDMARKS, points))
    assert abs(before) < 15
    assert (after - before) * direction > 10


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((-30.0, 10.0, 60.0, 80.0), 30),
        ((10.0, -30.0, 80.0, 60.0), 30),
        ((80.0, 10.0, 60.0, 80.0), 20),
        ((10.0, 80.0, 80.0, 60.0), 20),
        ((120.0, 10.0, 60.0, 80.0), 0),
    ],
)
def test_a_face_at_an_edge_counts_what_is_in_the_photo(box: tuple[float, float, float, float], size: float) -> None:
    face = Face(box, tuple((float(x), float(y)) for x, y in TEMPLATE_LANDMARKS), 0.9)
    assert measure_quality(face, np.zeros((100, 100, 3), np.uint8), np.zeros((112, 112, 3), np.uint8)).face_size == size


@pytest.mark.parametrize("side", [1, -1])
def test_a_face_that_just_keeps_every_limit_is_enrolled(side: int) -> None:
    assert complaints(Quality(0.8, 40, 10, 60 * side, 45 * side, 60 * side), QualityLimits()) == ()


@pytest.mark.parametrize(
    ("quality", "kind", "sentence"),
    [
        (replace(GOOD, face_size=19.4), "face_size", "the face is 19 px wide; send one of at least 40 px"),
        (
            replace(GOOD, sharpness=3),
            "sharpness",
            "the photo is blurred (sharpness 3; at least 10 is needed); hold the camera still",
        ),
        (
            replace(GOOD, yaw=-75),
            "pose",
            "the face is turned sideways by 75°; at most 60° is allowed; look into the camera",
        ),
        (
            replace(GOOD, pitch=-50),
            "pose",
            "the face is turned down by 50°; at most 45° is allowed; look into the camera",
        ),
        (
            replace(GOOD, roll=70),
            "pose",
            "the face is tilted by 70°; at most 60° is allowed; hold head and camera upright",
        ),
    ],
)
def test_each_limit_has_its_sentence(quality: Quality, kind: str, sentence: str) -> None:
    (complaint,) = complaints(quality, QualityLimits())
    assert (complaint.kind, complaint.sentence) == (kind, sentence)


def test_a_low_score_has_its_sentence() -> None:
    (complaint,) = complaints(replace(GOOD, detection_score=0.5), QualityLimits())
    assert complaint.kind == "detection_score"
    assert complaint.sentence.startswith("the face is hard to make out (score 0.50; at least 0.80 is needed)")


def test_a_score_that_is_too_low_is_not_told_as_high_enough() -> None:
    (complaint,) = complaints(replace(GOOD, detection_score=0.797), QualityLimits())
    assert "(score 0.79; at least 0.80 is needed)" in complaint.sentence
