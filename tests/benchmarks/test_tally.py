import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tally")


def probe(counting: Any, person: str, *, mated: bool, nearest: tuple[str, float] | None, found: bool = True) -> Any:
    return counting.Probe(f"{person}.jpg", person, mated, found, counting.Nearest(*nearest) if nearest else None, ())


def test_every_photo_has_one_outcome(counting: Any) -> None:
    probes = [
        probe(counting, "ada", mated=True, nearest=("ada", 0.5)),
        probe(counting, "ada", mated=True, nearest=("ada", 1.1)),
        probe(counting, "ada", mated=True, nearest=("bob", 0.9)),
        probe(counting, "ada", mated=True, nearest=("bob", 1.2)),
        probe(counting, "ada", mated=True, nearest=None, found=False),
        probe(counting, "eve", mated=False, nearest=("ada", 1.0)),
        probe(counting, "eve", mated=False, nearest=("ada", 1.3)),
        probe(counting, "eve", mated=False, nearest=None, found=False),
    ]

    counted = counting.tally(probes, 1.0)

    assert (counted.correct, counted.missed, counted.wrong, counted.mated_without_face) == (1, 2, 1, 1)
    assert (counted.strangers_named, counted.strangers_unknown, counted.strangers_without_face) == (1, 1, 1)
    assert (counted.mated, counted.strangers) == (5, 3)


def test_a_gallery_that_stayed_empty_is_a_miss_and_an_unknown(counting: Any) -> None:
    probes = [
        probe(counting, "ada", mated=True, nearest=None),
        probe(counting, "eve", mated=False, nearest=None),
    ]

    counted = counting.tally(probes, 2.0)

    assert (counted.missed, counted.strangers_unknown) == (1, 1)


def test_other_faces_are_counted_apart(counting: Any) -> None:
    others = (counting.Nearest("ada", 0.4), counting.Nearest("bob", 1.4))

    counted = counting.tally([counting.Probe("eve.jpg", "eve", False, True, None, others)], 1.0)

    assert (counted.other_faces, counted.other_faces_named, counted.strangers_named) == (2, 1, 0)


def test_mistakes_are_the_names_of_others_the_most_certain_first(counting: Any) -> None:
    right = probe(counting, "ada", mated=True, nearest=("ada", 0.1))
    wrong = probe(counting, "ada", mated=True, nearest=("bob", 0.9))
    stranger = probe(counting, "eve", mated=False, nearest=("ada", 0.7))
    unknown = probe(counting, "eve", mated=False, nearest=("ada", 1.2))

    assert counting.mistakes([right, wrong, stranger, unknown], 1.0) == [stranger, wrong]
