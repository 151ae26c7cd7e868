"""Whether a face can be enrolled, and if not, why."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, degrees, hypot
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from model.detector import Face


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """What a face must show to be enrolled.

    Args:
        min_score: detection score, 0 to 1.
        min_face_size: shorter side of the box in pixels.
        min_sharpness: see `Quality`.
        max_yaw: degrees to either side.
        max_pitch: degrees up or down.
        max_roll: degrees to either side.
    """

    min_score: float = 0.7
    min_face_size: float = 40
    min_sharpness: float = 10
    max_yaw: float = 60
    max_pitch: float = 45
    max_roll: float = 45


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a face can be seen.

    Args:
        detection_score: 0 to 1.
        face_size: shorter side of the box in pixels.
        sharpness: variance of the Laplacian (3×3, four neighbours) of the crop's grey values, 0 upwards.
        yaw: degrees, positive if the face is turned to the right of the picture.
        pitch: degrees, positive if the face looks up.
        roll: degrees, positive if the face is tilted clockwise as seen in the picture.
    """

    detection_score: float
    face_size: float
    sharpness: float
    yaw: float
    pitch: float
    roll: float


# An average head, seen from the front: how far the tip of the nose stands out, as a share of the distance between the
# eyes and of the distance from eyes to mouth, and how far down the nose lies between eyes and mouth.
_NOSE_DEPTH = 0.41
_NOSE_DEPTH_BY_HEIGHT = 0.36
_NOSE_SHARE = 0.495


@dataclass(frozen=True, slots=True)
class Complaint:
    """One reason why a face cannot be enrolled, as a sentence for the person who sent the photo."""

    kind: Literal["detection_score", "face_size", "sharpness", "pose"]
    sentence: str


def measure_quality(face: Face, _pixels: NDArray[np.uint8], crop: NDArray[np.uint8]) -> Quality:
    """Measure a face.

    Args:
        face: as detected.
        pixels: the photo, shape (height, width, 3), uint8, RGB.
        crop: the aligned face, shape (112, 112, 3), uint8, RGB.
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    sharpness = float(cv2.Laplacian(grey, cv2.CV_64F, ksize=1).var())
    yaw, pitch, roll = head_pose(face.landmarks)
    return Quality(face.score, min(face.box[2:]), sharpness, yaw, pitch, roll)


def head_pose(landmarks: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Estimate how a head is turned, from the place of the nose between eyes and mouth.

    The tip of the nose stands out from the plane of eyes and mouth; a turn by an angle shifts it in that plane's picture by
    the tangent of the angle. An average head is assumed, so expect errors of some ten degrees.

    Args:
        landmarks: as in `Face`.

    Returns:
        Yaw, pitch and roll in degrees, directions as in `Quality`; yaw and pitch are −90 to 90.
    """
    right_eye, left_eye, nose, right_mouth, left_mouth = (complex(x, y) for x, y in landmarks)
    eyes, mouth = (right_eye + left_eye) / 2, (right_mouth + left_mouth) / 2
    # The line between the eyes and the line between the corners of the mouth together are steadier than either.
    across = (left_eye - right_eye) + (left_mouth - right_mouth)
    upright = abs(across) / across if across else 1
    width = abs(left_eye - right_eye)
    down = (mouth - eyes) * upright
    tip = (nose - eyes) * upright
    height = max(down.imag, 0.0)
    share = tip.imag / height if height else _NOSE_SHARE
    yaw = atan2(tip.real - share * down.real, width * _NOSE_DEPTH)
    pitch = atan2((_NOSE_SHARE - share) * height, height * _NOSE_DEPTH_BY_HEIGHT) if height else 0.0
    roll = atan2(across.imag, across.real)
    return degrees(yaw), degrees(pitch), degrees(roll)


def complaints(quality: Quality, limits: QualityLimits) -> tuple[Complaint, ...]:
    """Why a face cannot be enrolled, or nothing if it can."""
    found = []
    if quality.detection_score < limits.min_score:
        found.append(
            Complaint(
                "detection_score",
                f"the face is hard to make out (score {quality.detection_score:.2f}; at least {limits.min_score:.2f} is needed); "
                "send a photo with the whole face in good light",
            )
        )
    if quality.face_size < limits.min_face_size:
        found.append(
            Complaint(
                "face_size",
                f"the face is {quality.face_size:.0f} px wide; send one of at least {limits.min_face_size:.0f} px",
            )
        )
    if quality.sharpness < limits.min_sharpness:
        found.append(
            Complaint(
                "sharpness",
                f"the photo is blurred (sharpness {quality.sharpness:.0f}; at least {limits.min_sharpness:.0f} is needed); "
                "hold the camera still",
            )
        )
    return tuple(found)
