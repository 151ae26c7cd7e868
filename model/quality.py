"""Whether a face can be enrolled, and if not, why."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan2, ceil, degrees, floor
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from model.detector import Face


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """What a face must show to be enrolled.

    The defaults were chosen on photos of Labeled Faces in the Wild, where they refuse about four in a thousand, most
    of them profiles; blur that takes the sharpness below 10 also takes the embedding away from the sharp photo's
    (median cosine 0.6).

    Args:
        min_score: detection score, 0 to 1.
        min_face_size: shorter side in pixels of the part of the box that is in the photo.
        min_sharpness: see `Quality`.
        max_yaw: degrees to either side.
        max_pitch: degrees up or down.
        max_roll: degrees to either side.
    """

    min_score: float = 0.8
    min_face_size: float = 40
    min_sharpness: float = 10
    max_yaw: float = 60
    max_pitch: float = 45
    max_roll: float = 60


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a face can be seen.

    Args:
        detection_score: 0 to 1.
        face_size: shorter side in pixels of the part of the box that is in the photo.
        sharpness: variance of the Laplacian (3×3, four neighbours) of the crop's grey values, which are first scaled to
            a standard deviation of 50, so that a dark photo is not a blurred one; 0 upwards, 130 is usual.
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
_NOSE_SHARE = 0.56

_CONTRAST = 50.0


@dataclass(frozen=True, slots=True)
class Complaint:
    """One reason why a face cannot be enrolled, as a sentence for the person who sent the photo."""

    kind: Literal["detection_score", "face_size", "sharpness", "pose"]
    sentence: str


def measure_quality(face: Face, pixels: NDArray[np.uint8], crop: NDArray[np.uint8]) -> Quality:
    """Measure a face.

    Args:
        face: as detected.
        pixels: the photo, shape (height, width, 3), uint8, RGB; of a face that reaches beyond it counts what is in it.
        crop: the aligned face, shape (112, 112, 3), uint8, RGB.
    """
    yaw, pitch, roll = head_pose(face.landmarks)
    return Quality(face.score, _visible_size(face, pixels), _sharpness(crop), yaw, pitch, roll)


def _visible_size(face: Face, pixels: NDArray[np.uint8]) -> float:
    height, width = pixels.shape[:2]
    x, y, box_width, box_height = face.box
    across: float = min(x + box_width, width) - max(x, 0.0)
    down: float = min(y + box_height, height) - max(y, 0.0)
    return max(0.0, min(down, across))


def _sharpness(crop: NDArray[np.uint8]) -> float:
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    edges = float(cv2.Laplacian(grey, cv2.CV_64F, ksize=1).var())
    # A crop of one colour has no contrast to scale to; below 1 there is only noise.
    return edges * _CONTRAST**2 / max(float(grey.var(dtype=np.float64)), 1.0)


def head_pose(landmarks: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Estimate how a head is turned, from the place of the nose between eyes and mouth.

    The tip of the nose stands out from the plane of eyes and mouth; a turn by an angle shifts it in that plane's
    picture by the tangent of the angle. An average head is assumed, so expect errors of some ten degrees.

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
    """Say why a face cannot be enrolled; empty if it can."""
    score, size, sharpness = quality.detection_score, quality.face_size, quality.sharpness
    found: list[Complaint] = []
    if score < limits.min_score:
        wanted = f"score {floor(score * 100) / 100:.2f}; at least {limits.min_score:.2f} is needed"
        sentence = f"the face is hard to make out ({wanted}); send a photo of the whole face in good light"
        found.append(Complaint("detection_score", sentence))
    if size < limits.min_face_size:
        sentence = f"the face is {floor(size)} px wide; send one of at least {ceil(limits.min_face_size)} px"
        found.append(Complaint("face_size", sentence))
    if sharpness < limits.min_sharpness:
        wanted = f"sharpness {floor(sharpness)}; at least {ceil(limits.min_sharpness)} is needed"
        found.append(Complaint("sharpness", f"the photo is blurred ({wanted}); hold the camera still"))
    turns = (
        (abs(quality.yaw), limits.max_yaw, "turned sideways", "look into the camera"),
        (
            abs(quality.pitch),
            limits.max_pitch,
            "turned down" if quality.pitch < 0 else "turned up",
            "look into the camera",
        ),
        (abs(quality.roll), limits.max_roll, "tilted", "hold head and camera upright"),
    )
    for angle, limit, direction, advice in turns:
        if angle > limit:
            sentence = f"the face is {direction} by {ceil(angle)}°; at most {floor(limit)}° is allowed; {advice}"
            found.append(Complaint("pose", sentence))
    return tuple(found)
