import json
from pathlib import Path

import numpy as np
import pytest

from model.card import FmrThreshold
from model.photo_folder import DatasetError, Photo
from model.training.embedding_set import EmbeddingSet
from model.training.error_rates import MIN_SUPPORT
from model.training.evaluation import LfwEvaluation, evaluate_lfw, measure, measure_folds
from model.training.lfw import Pair
from model.training.report import Report, as_json, as_markdown, card_figures

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
def evaluation() -> LfwEvaluation:
    crowd = {f"P{number}": 1 + number % 5 for number in range(120)}
    return evaluate_lfw(people({"Ann": 4, "Bob": 2, "Cy": 1, "Carlos_Beltran": 1, "Wang_Nan": 1, **crowd}), PAIRS)


def test_well_separated_people_give_no_errors(evaluation: LfwEvaluation) -> None:
    assert evaluation.folds is not None
    assert evaluation.folds.accuracy == 1.0
    assert [point.tar for point in evaluation.corrected.verification.points] == [1.0] * 9
    assert [gallery.rank_one for gallery in evaluation.corrected.identification] == [1.0, 1.0]


def test_errata_leave_out_duplicates_in_the_corrected_figures_only(evaluation: LfwEvaluation) -> None:
    assert (evaluation.as_published.photos, evaluation.corrected.photos) == (369, 368)
    assert (evaluation.as_published.people, evaluation.corrected.people) == (125, 124)


def test_the_table_goes_down_as_far_as_different_people_support_it(evaluation: LfwEvaluation) -> None:
    points = evaluation.corrected.verification.points
    supported = [point for point in points if point.people_pairs is not None and point.people_pairs >= MIN_SUPPORT]

    assert evaluation.thresholds == tuple(FmrThreshold(point.fmr, point.distance) for point in supported)
    assert 0 < len(evaluation.thresholds) < len(points)


def test_folds_without_all_their_photos_are_not_measured() -> None:
    assert measure_folds(people({"Ann": 2, "Bob": 1}), PAIRS) is None


def test_foreign_photos_are_an_error() -> None:
    with pytest.raises(DatasetError, match="none of the pairs is of photos in this folder"):
        measure_folds(people({"Dora": 3}), PAIRS)


@pytest.mark.parametrize("sizes", [{"Ann": 3}, {"Ann": 1, "Bob": 1}])
def test_photos_that_cannot_be_compared_are_an_error(sizes: dict[str, int]) -> None:
    embedded = people(sizes)
    with pytest.raises(DatasetError, match="expected several people, some of them with several photos"):
        measure(embedded, [photo.subject for photo in embedded.photos])


def test_failures_are_counted_and_missed() -> None:
    embedded = people({"Ann": 2, "Bob": 2, "Cy": 1})
    embedded.embeddings[0] = np.nan

    figures = measure(embedded, [photo.subject for photo in embedded.photos])
    folds = measure_folds(embedded, PAIRS)

    assert figures.failures_to_acquire == 1
    assert figures.verification.mated_pairs == 2
    assert folds is not None
    assert folds.fold_accuracies == (0.5, 1.0)


def test_json_is_strict_and_holds_everything(evaluation: LfwEvaluation) -> None:
    report = Report("sface@1", "yunet@2", ("Ann/Ann_0001.jpg",), evaluation)

    document = json.loads(as_json(report), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    assert document["extractor"] == "sface@1"
    assert document["failures"] == ["Ann/Ann_0001.jpg"]
    assert document["lfw"]["folds"]["accuracy"] == 1.0
    assert len(document["lfw"]["corrected"]["verification"]["points"]) == 9
    assert document["lfw"]["thresholds"][0] == {"fmr": 0.1, "distance": evaluation.thresholds[0].distance}


def test_markdown_names_networks_definitions_and_figures(evaluation: LfwEvaluation) -> None:
    text = as_markdown(Report("sface@1", "yunet@2", (), evaluation))

    assert text.startswith("# sface@1 on Labeled Faces in the Wild\n")
    assert "Accuracy 100.00% ± 0.00%" in text
    assert "| FMR 1e-02 | 100.00% |" in text
    assert "FNIR at rank one" in text
    assert "| corrected | 3 | 49 |" in text


def test_markdown_says_when_there_are_no_folds(evaluation: LfwEvaluation) -> None:
    without = LfwEvaluation(None, evaluation.as_published, evaluation.corrected)

    assert "Not measured: not every fold has pairs" in as_markdown(Report("a", "b", (), without))


def test_the_card_gets_the_decades(evaluation: LfwEvaluation) -> None:
    figures = card_figures(evaluation)

    assert figures["ten_folds"] == {"pairs": 4, "accuracy": 1.0, "deviation": 0.0}
    assert figures["corrected_labels"]["tar_at_fmr"] == {"1e-02": 1.0, "1e-03": 1.0}
    assert figures["corrected_labels"]["open_set"][0]["enrolled_per_subject"] == 3
