import numpy as np
from numpy.typing import NDArray

from model.training.label_checks import flag_photos

PEOPLE = ["ada"] * 8 + ["bob"] * 8
SIZES = [50.0 + number for number in range(16)]
DIGESTS = [f"{number:064d}" for number in range(16)]


def embeddings_of(directions: list[int]) -> NDArray[np.float32]:
    """Photos near the axes of a space of 16 dimensions."""
    random = np.random.default_rng(1)
    rows = np.eye(16)[directions] + random.normal(0, 0.1, (len(directions), 16))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def noise(row: int) -> NDArray[np.uint8]:
    """A picture of its own for each row."""
    return np.random.default_rng(row).integers(0, 256, (112, 112, 3)).astype(np.uint8)


def smooth(row: int) -> NDArray[np.uint8]:
    """The same picture for all rows, up to noise that a second compression would make."""
    ramp = np.broadcast_to(np.linspace(0, 255, 112)[:, None, None], (112, 112, 3))
    return np.clip(ramp + np.random.default_rng(row).normal(0, 4, ramp.shape), 0, 255).astype(np.uint8)


def test_clean_photos_have_no_flag() -> None:
    assert flag_photos(PEOPLE, SIZES, embeddings_of([0] * 8 + [1] * 8), noise, DIGESTS) == [""] * 16


def test_a_wrong_label_names_the_person_that_it_looks_like() -> None:
    flags = flag_photos(PEOPLE, SIZES, embeddings_of([0] * 7 + [1] + [1] * 8), noise, DIGESTS)

    assert flags == [""] * 7 + ["looks like bob"] + [""] * 8


def test_a_face_like_nobody_here_is_far_from_its_own_center() -> None:
    flags = flag_photos(PEOPLE, SIZES, embeddings_of([0] * 7 + [5] + [1] * 8), noise, DIGESTS)

    assert flags == [""] * 7 + ["far from own center"] + [""] * 8


def test_of_the_same_picture_the_larger_face_stays() -> None:
    rows = embeddings_of([0] * 8 + [1] * 8)
    rows[1] = rows[0]

    flags = flag_photos(PEOPLE, SIZES, rows, lambda row: smooth(row) if row < 2 else noise(row), DIGESTS)

    assert flags == [f"duplicate of {DIGESTS[1][:12]}"] + [""] * 15


def test_the_same_file_under_two_names_is_flagged_under_both() -> None:
    digests = [*DIGESTS[:15], DIGESTS[0]]
    rows = embeddings_of([0] * 8 + [1] * 8)
    rows[15] = rows[0]

    flags = flag_photos(PEOPLE, SIZES, rows, noise, digests)

    assert (flags[0], flags[15]) == ("shared with bob", "looks like ada")


def test_a_photo_without_a_face_has_no_flag() -> None:
    rows = embeddings_of([0] * 8 + [1] * 8)
    rows[3] = np.nan

    assert flag_photos(PEOPLE, SIZES, rows, noise, DIGESTS) == [""] * 16


def test_alike_faces_in_two_pictures_are_no_duplicates() -> None:
    rows = embeddings_of([0] * 8 + [1] * 8)
    rows[1] = rows[0]

    assert flag_photos(PEOPLE, SIZES, rows, noise, DIGESTS) == [""] * 16
