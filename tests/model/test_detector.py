import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from model.detector import STRIDES, Face, decode, non_maximum_suppression
from model.pipeline import Networks


def face_box(networks: Networks, astronaut: NDArray[np.uint8]) -> Face:
    (face,) = networks.detector.detect(astronaut)
    return face


def pasted(astronaut: NDArray[np.uint8], face_width: float, size: tuple[int, int]) -> tuple[NDArray[np.uint8], float]:
    """The portrait, scaled so that its face of 91.5 px gets a width, with the face in the middle of a grey photo."""
    scale = face_width / 91.5
    middle_of_face = np.array([224.0, 114.0])
    shift = np.array(size) / 2 - scale * middle_of_face
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    source = cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=how) if scale < 1 else astronaut
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]]) if scale < 1 else matrix
    photo: NDArray[np.uint8] = cv2.warpAffine(source, matrix, size, borderValue=(128, 128, 128))
    return photo, scale


def test_finds_the_one_face_with_its_landmarks(astronaut: NDArray[np.uint8], networks: Networks) -> None:
    face = face_box(networks, astronaut)
    x, y, width, height = face.box
    assert (x, y, x + width, y + height) == pytest.approx((178, 57, 270, 172), abs=4)
    right_eye, left_eye, nose, right_mouth, left_mouth = face.landmarks
    assert right_eye[0] < nose[0] < left_eye[0]
    assert right_mouth[0] < nose[0] < left_mouth[0]
    assert right_eye[1] < nose[1] < right_mouth[1]
    assert 0.9 < face.score <= 1


@pytest.mark.parametrize("face_width", [24, 60, 300, 1500])
def test_finds_small_and_large_faces_where_they_are(
    face_width: float, astronaut: NDArray[np.uint8], networks: Networks
) -> None:
    side = max(640, round(face_width * 2))
    photo, scale = pasted(astronaut, face_width, (side, side))
    faces = networks.detector.detect(photo)
    assert len(faces) == 1
    assert min(faces[0].box[2:]) == pytest.approx(91.5 * scale, rel=0.25)


def test_finds_a_face_of_60_px_in_a_photo_of_12_megapixels(astronaut: NDArray[np.uint8], networks: Networks) -> None:
    photo, _ = pasted(astronaut, 75, (4000, 3000))
    (face,) = networks.detector.detect(photo)
    x, y, width, height = face.box
    assert abs(x + width / 2 - 2000) < 100
    assert abs(y + height / 2 - 1500) < 200


def test_boxes_of_a_scaled_photo_are_in_its_own_pixels(astronaut: NDArray[np.uint8], networks: Networks) -> None:
    large: NDArray[np.uint8] = cv2.resize(astronaut, None, fx=5, fy=5, interpolation=cv2.INTER_LINEAR)
    (face,) = networks.detector.detect(large)
    small = face_box(networks, astronaut)
    np.testing.assert_allclose(face.landmarks, np.array(small.landmarks) * 5, atol=5 * 6)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (112, 112, 3), (33, 700, 3)])
def test_photos_without_a_face(shape: tuple[int, ...], networks: Networks) -> None:
    assert networks.detector.detect(np.full(shape, 90, np.uint8)) == []


def test_decoding_is_that_of_a_slow_loop() -> None:
    random = np.random.default_rng(0)
    width, height = 64, 32
    outputs: list[NDArray[np.float32]] = []
    for columns in (1, 1, 4, 10):
        for stride in STRIDES:
            cells = (width // stride) * (height // stride)
            outputs.append(random.random((1, cells, columns)).astype(np.float32))
    slow = []
    for level, stride in enumerate(STRIDES):
        cls, obj, bbox, kps = (outputs[level + 3 * kind][0] for kind in range(4))
        for cell in range(len(cls)):
            row, column = divmod(cell, width // stride)
            score = float(np.sqrt(cls[cell, 0] * obj[cell, 0]))
            if score < 0.5:
                continue
            w, h = np.exp(bbox[cell, 2]) * stride, np.exp(bbox[cell, 3]) * stride
            x, y = (column + bbox[cell, 0]) * stride - w / 2, (row + bbox[cell, 1]) * stride - h / 2
            points = [(kps[cell, 2 * n + axis] + (column, row)[axis]) * stride for n in range(5) for axis in (0, 1)]
            slow.append([x, y, w, h, *points, score])
    slow.sort(key=lambda values: -values[-1])
    np.testing.assert_allclose(decode(outputs, width, 0.5), np.array(slow, np.float32), rtol=1e-5, atol=1e-4)


def same_face(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(across, 0.0) * max(down, 0.0)
    smaller, both = min(a[2] * a[3], b[2] * b[3]), a[2] * a[3] + b[2] * b[3] - shared
    return bool(shared / both > 0.3 or shared / smaller > 0.8)


def test_suppression_keeps_the_better_of_two_for_one_face() -> None:
    random = np.random.default_rng(1)
    rows = np.zeros((60, 15), np.float32)
    rows[:, :2], rows[:, 2:4] = random.random((60, 2)) * 60, 5 + random.random((60, 2)) * 30
    rows[:, 14] = random.random(60)
    kept: list[int] = []
    for row in sorted(range(60), key=lambda index: -rows[index, 14]):
        if not any(same_face(rows[row], rows[other]) for other in kept):
            kept.append(row)
    assert non_maximum_suppression(rows).tolist() == kept


def test_a_box_within_a_better_one_is_a_part_of_it() -> None:
    whole, part = np.zeros(15, np.float32), np.zeros(15, np.float32)
    whole[:4], whole[14] = (0, 0, 900, 1200), 0.9
    part[:4], part[14] = (300, 500, 200, 250), 0.8
    assert non_maximum_suppression(np.stack([part, whole])).tolist() == [1]
