from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from model.training.degradation import (
    BLUR,
    COVERED,
    DARK,
    JPEG,
    KINDS,
    LOW_RESOLUTION,
    degrade,
    degrade_mixed,
    kind_of,
)


@pytest.fixture(scope="module")
def crops(astronaut: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two pieces of the portrait: the face, and the face further to the right."""
    return np.stack([astronaut[60:172, 160:272], astronaut[60:172, 180:292]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_another_picture_of_the_same_form_and_the_crop_stays(crops: NDArray[np.uint8], kind: str) -> None:
    before = crops.copy()

    copies = degrade(crops, kind)

    assert copies.shape == crops.shape
    assert copies.dtype == np.uint8
    assert np.array_equal(crops, before)
    assert not np.array_equal(copies, crops)
    assert np.array_equal(degrade(crops, kind), copies)
    assert np.array_equal(degrade(crops[1:], kind)[0], copies[1])


def test_nothing_gives_nothing() -> None:
    none = np.empty((0, 112, 112, 3), np.uint8)

    assert degrade(none, BLUR).shape == none.shape
    assert degrade_mixed(none, []).shape == none.shape


def test_low_resolution_leaves_no_more_than_24_pixels_hold() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), np.uint8)

    copy = degrade(noise, LOW_RESOLUTION)[0, :, :, 0].astype(float)

    directions = np.linalg.svd(copy)[2][:24]
    beyond = copy - copy @ directions.T @ directions  # 24 columns make all others but for rounding
    assert np.abs(beyond).max() < 2.5
    assert copy.std() > 5


def test_blur_spreads_a_point_evenly() -> None:
    point = np.zeros((1, 112, 112, 3), np.uint8)
    point[:, 56, 56] = 255

    copy = degrade(point, BLUR)[0].astype(int)

    assert copy[56, 56, 0] == round(255 / (2 * np.pi * 2.5**2))
    assert np.array_equal(copy, copy[:, ::-1][:, [111, *range(111)]])


def test_dark_is_a_fifth_of_the_values(crops: NDArray[np.uint8]) -> None:
    assert np.array_equal(degrade(crops, DARK), np.rint(crops / 5).astype(np.uint8))


def test_jpeg_changes_a_little_and_keeps_the_order_of_the_colours(crops: NDArray[np.uint8]) -> None:
    red = np.zeros((1, 112, 112, 3), np.uint8)
    red[..., 0] = 200

    assert degrade(red, JPEG)[0].mean(axis=(0, 1)) == pytest.approx([200, 0, 0], abs=4)
    assert 1 < np.abs(degrade(crops, JPEG).astype(int) - crops).mean() < 12


def test_covered_keeps_the_upper_half(crops: NDArray[np.uint8]) -> None:
    copies = degrade(crops, COVERED)

    assert np.array_equal(copies[:, :56], crops[:, :56])
    assert (copies[:, 56:] == 128).all()


def test_the_name_decides_the_kind_and_all_kinds_are_alike_often(crops: NDArray[np.uint8]) -> None:
    names = [f"Ann/{number}.jpg" for number in range(1000)]

    counts = Counter(map(kind_of, names))
    mixed = degrade_mixed(crops, ["Ann/1.jpg", "Bob/7.jpg"])

    assert set(counts) == set(KINDS)
    assert all(150 < count < 250 for count in counts.values())
    assert kind_of("Ann/1.jpg") == "dark"
    assert np.array_equal(mixed[0], degrade(crops, kind_of("Ann/1.jpg"))[0])
    assert np.array_equal(mixed[1], degrade(crops, kind_of("Bob/7.jpg"))[1])


def test_an_unknown_kind_is_refused(crops: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="no degradation 'rain'; choose of 24px, blur, dark, jpeg20, covered"):
        degrade(crops, "rain")
