from pathlib import Path

import numpy as np
import pytest

from model.card import FmrThreshold
from model.photo_folder import DatasetError, Photo
from model.training.degradation import KINDS
from model.training.embedding_set import CLEAN, EmbeddingSet
from model.training.error_rates import MIN_SUPPORT
from model.training.evaluation import (
    EQUAL_ERROR_RATE,
    MIXED,
    Evaluation,
    differences,
    evaluate,
    evaluate_lfw,
    fnir_name,
    measure,
    measure_folds,
    rank_one_name,
    tar_name,
)
from model.training.lfw import Pair

PAIRS = (
    Pair("Ann_0001", "Ann_0002", True, 0),
    Pair("Ann_0001", "Bob_0001", False, 0),
    Pair("Bob_0001", "Bob_0002", True, 1),
    Pair("Bob_0002", "Cy_0001", False, 1),
)


def photo(subject: str, number: int) -> Photo:
    return Photo(Path(subject) / f"{subject}_{number:04d}.jpg", subject)


def people(sizes: dict[str, int], spread: float = 0.05, seed: int = 0) -> EmbeddingSet:
    """Photos scattered around a random direction for each person."""
    rng = np.random.default_rng(seed)
    photos, rows = [], []
    for subject, size in sizes.items():
        middle = rng.normal(size=16)
        photos += [photo(subject, number) for number in range(1, size + 1)]
        rows += [middle + spread * rng.normal(size=16) for _ in range(size)]
    embeddings = np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    return EmbeddingSet(tuple(photos), embeddings.astype(np.float32))


@pytest.fixture(scope="module")
def lfw() -> Evaluation:
    crowd = {f"P{number}": 1 + number % 5 for number in range(120)}
    crowd |= {f"Q{number}": 1 for number in range(100)}
    return evaluate_lfw(
        "sface@1", people({"Ann": 4, "Bob": 2, "Cy": 1, "Carlos_Beltran": 1, "Wang_Nan": 1, **crowd}), PAIRS
    )


def subjects(embedded: EmbeddingSet) -> list[str]:
    return [photo.subject for photo in embedded.photos]


def degraded(embedded: EmbeddingSet, noise: float) -> EmbeddingSet:
    """The same photos with copies, each kind further away than the one before."""
    rng = np.random.default_rng(7)
    copies = {}
    for step, kind in enumerate(KINDS, 1):
        rows = embedded.embeddings + noise * step * rng.normal(size=embedded.embeddings.shape)
        copies[kind] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return EmbeddingSet(embedded.photos, embedded.embeddings, copies)


def test_well_separated_people_give_no_errors(lfw: Evaluation) -> None:
    assert lfw.lfw is not None
    assert lfw.lfw.folds is not None
    assert lfw.lfw.folds.accuracy == 1.0
    assert [point.tar for point in lfw.clean.figures.verification.points] == [1.0] * 10
    assert [
        (gallery.enrolled_per_subject, gallery.rule, gallery.divisions, gallery.rank_one)
        for gallery in lfw.clean.figures.identification
    ] == [(1, "best", 1, 1.0), (3, "best", 1, 1.0), (3, "mean", 1, 1.0), (3, "both", 1, 1.0)]


def test_distances_of_one_person_are_short_and_of_two_long(lfw: Evaluation) -> None:
    verification = lfw.clean.figures.verification

    assert verification.mated_distance is not None
    assert verification.non_mated_distance is not None
    assert verification.mated_distance.mean < 0.15
    assert verification.non_mated_distance.mean == pytest.approx(np.sqrt(2), abs=0.05)


def test_errata_leave_out_duplicates_in_the_corrected_figures_only(lfw: Evaluation) -> None:
    assert lfw.lfw is not None
    published, corrected = lfw.lfw.as_published.figures, lfw.clean.figures

    assert (published.photos, corrected.photos) == (469, 468)
    assert (published.people, corrected.people) == (225, 224)


def test_the_table_goes_down_as_far_as_different_people_support_it(lfw: Evaluation) -> None:
    points = lfw.clean.figures.verification.points
    supported = [point for point in points if point.people_pairs is not None and point.people_pairs >= MIN_SUPPORT]

    assert lfw.thresholds == tuple(FmrThreshold(point.fmr, point.distance) for point in supported)
    assert 0 < len(lfw.thresholds) < len(points)


def test_every_figure_that_people_see_has_its_draws(lfw: Evaluation) -> None:
    assert list(lfw.clean.draws) == [
        EQUAL_ERROR_RATE,
        tar_name(1e-2),
        tar_name(1e-3),
        rank_one_name(1, "best"),
        fnir_name(0.01, 1, "best"),
        *(name for rule in ("best", "mean", "both") for name in (rank_one_name(3, rule), fnir_name(0.01, 3, rule))),
    ]
    assert lfw.clean.draws["TAR at FMR 1e-03"].interval == (1.0, 1.0)


def test_degraded_copies_are_probes_and_the_enrolled_photos_stay_clean() -> None:
    embedded = degraded(people({f"P{number}": 4 for number in range(40)}), 0.12)

    evaluation = evaluate("sface@1", embedded, subjects(embedded))

    assert list(evaluation.conditions) == [CLEAN, *KINDS, MIXED]
    rates = [measurement.figures.verification.equal_error_rate for measurement in evaluation.conditions.values()]
    assert rates[0] == 0.0
    assert rates[1] < rates[3] < rates[5]
    assert rates[1] < rates[6] < rates[5]  # mixed
    assert evaluation.conditions[MIXED].figures.verification.mated_pairs == 40 * 4 * 3
    assert evaluation.conditions[CLEAN].figures.verification.mated_pairs == 40 * 4 * 3 // 2


def test_where_everybody_has_many_photos_people_are_divided_ten_times() -> None:
    embedded = people({f"P{number}": 8 for number in range(30)})

    galleries = measure(embedded, subjects(embedded)).figures.identification

    assert {(gallery.divisions, gallery.subjects) for gallery in galleries} == {(10, 15)}
    assert [gallery.mated_probes for gallery in galleries] == [105, 75, 75, 75, 45, 45, 45]
    assert {gallery.non_mated_probes for gallery in galleries} == {120}


def test_an_interval_is_around_its_figure() -> None:
    embedded = people({f"P{number}": 3 for number in range(80)}, spread=0.55)

    measurement = measure(embedded, subjects(embedded))

    for name, draws in measurement.draws.items():
        low, high = draws.interval
        assert low <= draws.estimate <= high, name
        assert 0 < high - low < 0.6, name


def test_differences_are_paired() -> None:
    near, far = (
        people({f"P{number}": 3 for number in range(80)}, 0.4),
        people({f"P{number}": 3 for number in range(80)}, 0.6),
    )
    first, other = (evaluate(name, embedded, subjects(embedded)) for name, embedded in (("a", far), ("b", near)))

    found = {difference.figure: difference for difference in differences(first, other)}

    assert found.keys() == first.clean.draws.keys()
    assert found[EQUAL_ERROR_RATE].difference < 0 < found[tar_name(1e-2)].difference
    assert found[EQUAL_ERROR_RATE].interval[1] < 0 < found[tar_name(1e-2)].interval[0]
    assert (found[EQUAL_ERROR_RATE].extractor, found[EQUAL_ERROR_RATE].against) == ("b", "a")
    assert {difference.difference for difference in differences(first, first)} == {0.0}


def test_folds_without_all_their_photos_are_not_measured() -> None:
    assert measure_folds(people({"Ann": 2, "Bob": 1}), PAIRS) is None


def test_foreign_photos_are_an_error() -> None:
    with pytest.raises(DatasetError, match="none of the pairs is of photos in this folder"):
        measure_folds(people({"Dora": 3}), PAIRS)


@pytest.mark.parametrize("sizes", [{"Ann": 3}, {"Ann": 1, "Bob": 1}])
def test_photos_that_cannot_be_compared_are_an_error(sizes: dict[str, int]) -> None:
    embedded = people(sizes)
    with pytest.raises(DatasetError, match="expected several people, some of them with several photos"):
        measure(embedded, subjects(embedded))


def test_failures_are_counted_and_missed() -> None:
    embedded = people({"Ann": 2, "Bob": 2, "Cy": 1})
    embedded.embeddings[0] = np.nan

    figures = measure(embedded, subjects(embedded)).figures
    folds = measure_folds(embedded, PAIRS)

    assert figures.failures_to_acquire == 1
    assert figures.verification.mated_pairs == 2
    assert folds is not None
    assert folds.fold_accuracies == (0.5, 1.0)
