import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.alignment import TEMPLATE_LANDMARKS, align_face, similarity_transform
from model.pipeline import Networks

coordinates = st.floats(-2000, 2000)
landmark_sets = st.lists(st.tuples(coordinates, coordinates), min_size=5, max_size=5)


def slow_similarity(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares over the four numbers a, b, x, y of [[a, -b, x], [b, a, y]]."""
    rows, targets = [], []
    for (x, y), (u, v) in zip(landmarks, TEMPLATE_LANDMARKS, strict=True):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        targets += [u, v]
    a, b, dx, dy = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    return np.array([[a, -b, dx], [b, a, dy]])


@given(landmark_sets)
def test_is_the_least_squares_similarity(landmarks: list[tuple[float, float]]) -> None:
    points = np.array(landmarks)
    if np.ptp(points, axis=0).max() < 1:
        return
    np.testing.assert_allclose(similarity_transform(points), slow_similarity(points), rtol=1e-5, atol=1e-5)


@given(st.floats(0.05, 20), st.floats(-math.pi, math.pi), coordinates, coordinates)
def test_undoes_scale_rotation_and_shift(scale: float, angle: float, dx: float, dy: float) -> None:
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = TEMPLATE_LANDMARKS @ turn.T + [dx, dy]
    back = similarity_transform(points)
    np.testing.assert_allclose(points @ back[:, :2].T + back[:, 2], TEMPLATE_LANDMARKS, atol=1e-6)


def test_never_reflects() -> None:
    matrix = similarity_transform(TEMPLATE_LANDMARKS * [-1, 1])
    assert np.linalg.det(matrix[:, :2]) >= 0


def test_one_point_has_no_scale() -> None:
    assert similarity_transform([(5, 5)] * 5)[:, :2].tolist() == [[0, 0], [0, 0]]


def test_landmarks_of_the_crop_lie_on_the_template(astronaut: NDArray[np.uint8], networks: Networks) -> None:
    (face,) = networks.detector.detect(astronaut)
    crop = align_face(astronaut, face.landmarks)
    assert crop.shape == (112, 112, 3)
    assert crop.dtype == np.uint8
    matrix = similarity_transform(face.landmarks)
    moved = np.array(face.landmarks) @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(moved - TEMPLATE_LANDMARKS).mean() < 4


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_photo_gives_the_same_crop(turns: int, astronaut: NDArray[np.uint8], networks: Networks) -> None:
    (face,) = networks.detector.detect(astronaut)
    last = astronaut.shape[0] - 1
    points = [complex(x, y) for x, y in face.landmarks]
    for _ in range(turns):
        points = [complex(point.imag, last - point.real) for point in points]
    turned = np.ascontiguousarray(np.rot90(astronaut, turns))
    crop = align_face(turned, [(point.real, point.imag) for point in points])
    assert np.abs(crop.astype(int) - align_face(astronaut, face.landmarks)).mean() < 1.5


@pytest.mark.parametrize("times", [3, 8])
def test_a_large_photo_gives_the_crop_of_a_small_one_without_its_noise(
    times: int, astronaut: NDArray[np.uint8], networks: Networks
) -> None:
    (face,) = networks.detector.detect(astronaut)
    small = astronaut[:300, 100:350]
    landmarks = np.array(face.landmarks) - (100, 0)
    noise = np.random.default_rng(0).normal(0, 30, (300 * times, 250 * times, 3))
    large = np.clip(np.kron(small, np.ones((times, times, 1))) + noise, 0, 255).astype(np.uint8)

    crops = np.stack([align_face(small, landmarks), align_face(large, (landmarks + 0.5) * times - 0.5)])
    assert np.abs(crops[0].astype(float) - crops[1]).mean() < 30 / times
    first, second = networks.extractor.embed(crops)
    assert np.linalg.norm(first - second) < 0.5


@pytest.mark.parametrize("times", [1, 10])
@pytest.mark.parametrize("at", [(-90.0, 0.0), (0.0, -90.0), (70.0, 70.0), (-500.0, 0.0)])
def test_a_crop_is_black_beyond_the_photo_and_nowhere_else(at: tuple[float, float], times: int) -> None:
    white = np.full((100 * times, 100 * times, 3), 255, np.uint8)
    crop = align_face(white, (TEMPLATE_LANDMARKS + at) * times)
    left, top = (max(0, int(-one)) for one in at)
    right, bottom = (min(112, int(100 - one)) for one in at)
    inside, outside = np.zeros((112, 112), bool), np.ones((112, 112), bool)
    inside[top + 2 : max(0, bottom - 2), left + 2 : max(0, right - 2)] = True
    outside[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = False
    assert crop[inside].min(initial=255) == 255
    assert crop[outside].max(initial=0) == 0


@pytest.mark.parametrize("times", [1, 2.5, 10])
def test_a_crop_within_a_photo_is_black_nowhere(times: float) -> None:
    white = np.full((int(150 * times), int(150 * times), 3), 255, np.uint8)
    assert align_face(white, (TEMPLATE_LANDMARKS + 19) * times).min() == 255
