import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training.folded_accuracy import best_threshold, folded_accuracy

pairs = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 0.75, 1.0, 1.5, float("inf")]), st.booleans()), min_size=1)


@settings(deadline=None)
@given(pairs)
def test_no_other_threshold_tells_more_pairs_right(pairs: list[tuple[float, bool]]) -> None:
    distances = np.array([distance for distance, _ in pairs], np.float32)
    mated = np.array([is_mated for _, is_mated in pairs])

    threshold = best_threshold(distances, mated)

    def right(threshold: float) -> int:
        return sum((distance <= threshold) == is_mated for distance, is_mated in pairs)

    assert right(threshold) == max(right(other) for other in [-1.0, 0.0, 0.25, 0.6, 0.9, 1.2, 1.7, 2.0])


def test_each_fold_is_judged_at_the_threshold_of_the_others() -> None:
    distances = np.array([0.5, 1.5, 0.5, 1.5, 0.9, 1.0], np.float32)
    mated = np.array([True, False, True, False, False, True])
    folds = np.array([0, 0, 1, 1, 2, 2])

    measured = folded_accuracy(distances, mated, folds)

    assert measured.fold_accuracies == (1.0, 1.0, 0.5)
    assert measured.distances[2] == pytest.approx(1.0)
    assert measured.accuracy == pytest.approx(5 / 6)
    assert measured.deviation == pytest.approx(np.sqrt(((1 / 6) ** 2 * 2 + (1 / 3) ** 2) / 2))
    assert measured.standard_error == pytest.approx(measured.deviation / np.sqrt(3))


def test_a_pair_without_a_face_is_rejected_at_every_threshold() -> None:
    distances = np.array([0.5, np.inf, 0.5, np.inf], np.float32)

    measured = folded_accuracy(distances, np.array([True, True, True, False]), np.array([0, 0, 1, 1]))

    assert measured.fold_accuracies == (0.5, 1.0)
