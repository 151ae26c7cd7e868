import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.photo_folder import Photo
from model.training import evaluation
from model.training.bootstrap import draw_people
from model.training.degradation import KINDS
from model.training.embedding_set import EmbeddingSet
from model.training.evaluation import MIXED, Evaluation, evaluate, evaluate_lfw
from model.training.figures import draw_figures, trade_off
from model.training.lfw import Pair
from model.training.report import Report, as_json, as_markdown, card_figures

PAIRS = (
    Pair("P4_0001", "P4_0002", True, 0),
    Pair("P4_0001", "P9_0001", False, 0),
    Pair("P9_0001", "P9_0002", True, 1),
    Pair("P9_0002", "P14_0001", False, 1),
)


def crowd(spread: float, *, copies: bool) -> EmbeddingSet:
    """Up to five photos of each of 150 people, scattered around a direction; the first of all has no face."""
    rng = np.random.default_rng(0)
    sizes = [1 + number % 5 for number in range(150)]
    photos = tuple(
        Photo(Path(f"P{person}_{number:04d}.jpg"), f"P{person}")
        for person, size in enumerate(sizes)
        for number in range(1, size + 1)
    )
    middles = np.repeat(rng.normal(size=(150, 16)), sizes, axis=0)

    def scattered(spread: float) -> NDArray[np.float32]:
        rows = middles + spread * rng.normal(size=middles.shape)
        embeddings = np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
        embeddings[0] = np.nan
        return embeddings

    degraded = {kind: scattered(spread * 1.5) for kind in KINDS} if copies else {}
    return EmbeddingSet(photos, scattered(spread), degraded)


@pytest.fixture(scope="module")
def lfw() -> Evaluation:
    return evaluate_lfw("sface@1", crowd(0.4, copies=False), PAIRS)


@pytest.fixture(scope="module")
def two() -> tuple[Evaluation, ...]:
    sets = (("sface@1", crowd(0.4, copies=True)), ("base@2", crowd(0.5, copies=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "draw_people", partial(draw_people, replicates=30))
        return tuple(evaluate(name, one, [photo.subject for photo in one.photos]) for name, one in sets)


def strict(text: str) -> dict[str, Any]:
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(document, dict)
    return document


def test_json_is_strict_and_holds_everything(lfw: Evaluation) -> None:
    document = strict(as_json(Report("Labeled Faces in the Wild", "Found.", (lfw,))))

    assert document["data"] == "Labeled Faces in the Wild"
    assert document["differences"] == []
    (measured,) = document["extractors"]
    assert measured["extractor"] == "sface@1"
    assert measured["failures"] == ["P0/P0_0001.jpg"]
    assert measured["lfw"]["folds"]["accuracy"] == 1.0
    assert measured["thresholds"][0] == {"fmr": 0.1, "distance": lfw.thresholds[0].distance}
    clean = measured["conditions"]["clean"]
    low, high = clean["intervals"]["TAR at FMR 1e-03"]
    (point,) = [point for point in clean["verification"]["points"] if point["fmr"] == 1e-3]
    assert low <= point["tar"] <= high
    assert clean["identification"][0]["enrolled_per_subject"] == 1


def test_json_has_the_differences_from_the_first_extractor(two: tuple[Evaluation, ...]) -> None:
    document = strict(as_json(Report("a folder", "Found.", two)))

    rows = document["differences"]
    assert {(row["extractor"], row["against"]) for row in rows} == {("base@2", "sface@1")}
    assert {row["condition"] for row in rows} == {"clean", *KINDS, MIXED}
    (row,) = [row for row in rows if (row["condition"], row["figure"]) == ("clean", "equal error rate")]
    assert row["difference"] > 0
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]


def test_markdown_names_extractor_definitions_and_figures(lfw: Evaluation) -> None:
    text = as_markdown(Report("Labeled Faces in the Wild", "Detector yunet@3.", (lfw,)))

    assert text.startswith("# sface@1 on Labeled Faces in the Wild\n\n450 photos of 150 people. Detector yunet@3.")
    assert "1 photos have no face" in text
    assert "Accuracy 100.00% ± 0.00%" in text
    assert "| clean | 599 |" not in text
    assert "| published |" in text
    assert "FNIR at rank one" in text
    assert "## Side by side" not in text
    assert "**Degraded copies.**" not in text


def test_markdown_puts_several_extractors_side_by_side(two: tuple[Evaluation, ...]) -> None:
    text = as_markdown(Report("a folder", "Found.", two))

    assert text.startswith("# sface@1, base@2 on a folder\n")
    assert "| | sface@1 | base@2 |" in text.replace("|  |", "| |")
    assert "### Mixed" in text
    assert "**Degraded copies.**" in text
    assert "**Labels.**" not in text
    for line in text.splitlines():
        if line.startswith("| equal error rate | "):
            assert line.count("[") == 3  # two intervals and that of the difference


def test_markdown_says_when_there_are_no_folds(lfw: Evaluation) -> None:
    assert lfw.lfw is not None
    without = evaluate_lfw("sface@1", crowd(0.4, copies=False), (*PAIRS[:2], Pair("X_0001", "Y_0001", False, 1)))

    assert "Not measured: not every fold has pairs" in as_markdown(Report("LFW", "Found.", (without,)))


def test_the_card_gets_decades_intervals_and_what_the_service_decides_by(lfw: Evaluation) -> None:
    figures = card_figures(lfw)

    assert figures["ten_folds"] == {"pairs": 4, "accuracy": 1.0, "deviation": 0.0}
    assert list(figures["corrected_labels"]["tar_at_fmr"]) == ["1e-02", "1e-03"]
    low, high = figures["corrected_labels"]["tar_interval_at_fmr"]["1e-02"]
    assert low <= figures["corrected_labels"]["tar_at_fmr"]["1e-02"] <= high
    assert [(row["enrolled_per_subject"], row["rule"]) for row in figures["corrected_labels"]["open_set"]] == [
        (1, "best"),
        (3, "both"),
    ]
    assert figures["published_labels"]["photos"] == 450
    json.dumps(figures, allow_nan=False)


def test_the_card_says_how_degraded_copies_do(two: tuple[Evaluation, ...]) -> None:
    assert list(card_figures(two[0])) == ["data", "corrected_labels", *(f"degraded_{kind}" for kind in (*KINDS, MIXED))]


def test_the_trade_off_goes_through_the_points_of_the_table(lfw: Evaluation) -> None:
    fmr, fnmr = trade_off(lfw.clean)

    assert fmr[-1] == pytest.approx(1, abs=0.01)
    assert fnmr[0] == 1
    for point in lfw.clean.figures.verification.points:
        last = int(np.searchsorted(fmr, point.fmr))
        assert fnmr[last] <= 1 - point.tar + 1e-9 <= fnmr[last - 1] + 1e-9


def test_figures_are_pictures(two: tuple[Evaluation, ...], lfw: Evaluation, tmp_path: Path) -> None:
    assert [path.name for path in draw_figures(two, "a folder", tmp_path)] == [
        "det.png",
        "det-degraded.png",
        "distances.png",
    ]
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 500
            assert len(image.convert("P").getcolors() or []) > 10
    assert [path.name for path in draw_figures([lfw], "LFW", tmp_path)] == ["det.png", "distances.png"]
