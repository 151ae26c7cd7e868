import numpy as np
import pytest
from numpy.typing import NDArray

from model.photo_folder import DatasetError
from model.training.preparation import PreparedFolder
from model.training.steering import can_steer, some_photos, steer
from model.training.training_set import split_identities

LABELS = np.repeat(np.arange(8), 10)


def people(noise: float, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows = np.random.default_rng(7).normal(size=(8, 32))[LABELS] + random.normal(0, noise, (80, 32))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def test_people_far_apart_are_never_missed() -> None:
    figures = steer(people(0.05), people(0.05, 1), LABELS)

    assert (figures.clean.fnir, figures.clean.tar, figures.clean.eer) == (0, 1, 0)
    assert (figures.degraded.fnir, figures.degraded.tar, figures.degraded.eer) == (0, 1, 0)


def test_noise_on_the_probes_alone_leaves_the_clean_figures() -> None:
    quiet, loud = steer(people(0.05), people(0.05, 1), LABELS), steer(people(0.05), people(1.5, 1), LABELS)

    assert loud.clean == quiet.clean
    assert loud.degraded.fnir > 0.3
    assert loud.degraded.tar < 0.7
    assert loud.fnir == pytest.approx(loud.degraded.fnir / 2)


def test_probes_without_anything_in_common_with_the_gallery_are_missed() -> None:
    random = np.random.default_rng(3).normal(size=(80, 32))

    figures = steer(people(0.05), (random / np.linalg.norm(random, axis=1)[:, None]).astype(np.float32), LABELS)

    assert figures.degraded.fnir > 0.9
    assert figures.degraded.eer == pytest.approx(0.5, abs=0.1)


def test_the_equal_error_rate_is_where_misses_and_false_matches_meet() -> None:
    # Seven of the eight people lie apart, the eighth lies on the first: 100 of 2,800 pairs of two people are false.
    rows = np.eye(8, dtype=np.float32)[LABELS % 7]
    rows[np.arange(0, 80, 10)] = np.eye(8, dtype=np.float32)[7]  # one photo of each person is of somebody else

    figures = steer(rows, rows, LABELS)

    mated, missed = 8 * 90, 8 * 18
    non_mated, false = 80 * 70, 2 * 81 + 8 * 7
    assert figures.clean.eer == pytest.approx((missed / mated + false / non_mated) / 2)


def test_a_division_without_mated_probes_does_not_count() -> None:
    """Of eight people one has more than the three photos that are enrolled: strangers alone are left if he is none."""
    kept = np.concatenate([np.arange(10), *(np.arange(10 * person, 10 * person + 3) for person in range(1, 8))])

    figures = steer(people(0.05)[kept], people(0.05, 1)[kept], LABELS[kept])

    assert (figures.clean.fnir, figures.degraded.fnir) == (0, 0)


@pytest.mark.parametrize(
    "labels", [np.arange(8).repeat(3), np.zeros(9, np.int64), np.zeros(0, np.int64)], ids=["poor", "one", "none"]
)
def test_photos_that_cannot_give_the_figures_are_refused(labels: NDArray[np.int64]) -> None:
    rows = people(0.05)[: len(labels)]

    assert not can_steer(labels)
    with pytest.raises(DatasetError, match="more than 3 photos"):
        steer(rows, rows, labels)


def test_a_tie_for_rank_one_is_a_miss() -> None:
    twins = np.eye(8, dtype=np.float32)[np.where(LABELS == 1, 0, LABELS)]

    figures = steer(twins, twins, LABELS)

    # Neither is enrolled; one is, and the other is a stranger at distance 0, so that nothing is accepted; both tie.
    missed = {0: 0.0, 1: 1.0, 2: 0.5}
    enrolled = [set(np.random.default_rng(split).permutation(8)[:4].tolist()) for split in range(20)]
    assert figures.clean.fnir == pytest.approx(np.mean([missed[len({0, 1} & people)] for people in enrolled]))


def test_some_photos_are_so_many_of_each_person(colours: PreparedFolder) -> None:
    crops = split_identities([colours], validation_people=0, test_people=0, seed=0).train

    few = some_photos(crops, 4)

    assert np.bincount(few.labels).tolist() == [4] * 12
    assert set(few.paths) < set(crops.paths)
