import csv
import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import MNIST

from model import cli
from model.photo_folder import DatasetError
from model.training.digits import BATCH, DigitNetwork, Digits, Form, Setting, Trained, train_digits
from model.training.digits_data import load_digits
from model.training.digits_study import (
    Extent,
    Row,
    class_means,
    equal_error_rate,
    frame_steps,
    measure,
    open_settings,
    plane_settings,
    train_all,
)
from model.training.digits_table import as_csv, as_markdown
from model.training.error_rates import verify
from model.training.pair_distances import compare_photos

ALONE = Setting("softmax", 0.0, 2, 10, seed=3, epochs=1)


@pytest.fixture(scope="session")
def mnist(test_data: Path) -> Path:
    folder = test_data / "mnist"
    if not folder.is_dir():
        pytest.skip("FACEGALLERY_TEST_DATA has no mnist/")
    return folder


@pytest.fixture(scope="session")
def digits(mnist: Path) -> Digits:
    return load_digits(mnist, limit=2_000)


@pytest.fixture(autouse=True)
def one_thread() -> object:
    """As in the study, whose processes have a thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def table(trained: Sequence[Trained], digits: Digits) -> str:
    return as_csv([measure(each, digits.test_labels) for each in trained])


def test_packed_and_unpacked_files_are_read_alike(mnist: Path, tmp_path: Path) -> None:
    shutil.copytree(mnist, tmp_path, dirs_exist_ok=True)
    for packed in (tmp_path / "MNIST" / "raw").glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()

    unpacked = load_digits(tmp_path)

    packed_digits, reference = load_digits(mnist), MNIST(tmp_path)
    assert np.array_equal(unpacked.images[:, 0], reference.data.numpy())
    assert np.array_equal(unpacked.labels, reference.targets.numpy())
    assert np.array_equal(packed_digits.images, unpacked.images)
    assert np.array_equal(packed_digits.test_images, unpacked.test_images)
    assert np.bincount(packed_digits.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_without_mnist_and_network_the_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])

    assert run("digits", "--data", tmp_path / "none", "--output", tmp_path / "out") == 2

    said = capsys.readouterr().err
    assert said.startswith(f"facemodel: {tmp_path / 'none'} has no MNIST (MNIST/raw/train-images-idx3-ubyte.gz")
    assert "could not be downloaded" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("content", [gzip.compress(bytes(10_000))[:-9], gzip.compress(b"no digits"), b"", b"raw"])
def test_a_damaged_file_is_named(mnist: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(mnist, tmp_path, dirs_exist_ok=True)
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    labels.unlink()
    labels.write_bytes(content)

    with pytest.raises(DatasetError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
        load_digits(tmp_path)


def test_an_output_that_is_a_file_fails_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").touch()

    assert run("digits", "--data", tmp_path, "--output", tmp_path / "out") == 1

    assert capsys.readouterr().err == f"facemodel: {tmp_path / 'out'}: File exists\n"


def test_the_network_gives_as_many_features_as_asked() -> None:
    assert DigitNetwork(32)(torch.zeros(3, 1, 28, 28)).shape == (3, 32)


def test_the_same_setting_gives_the_same_bytes_twice(digits: Digits) -> None:
    setting = Setting("learned", 0.01, 2, 10, seed=3, epochs=1)

    first, second = (train_digits(digits, setting) for _ in range(2))

    assert first.features.tobytes() == second.features.tobytes()
    assert table([first], digits) == table([second], digits)
    other = train_digits(digits, Setting("learned", 0.01, 2, 10, seed=4, epochs=1))
    assert other.features.tobytes() != first.features.tobytes()


def test_training_leaves_the_callers_random_numbers_alone(digits: Digits) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)

    torch.manual_seed(1)
    train_digits(digits, ALONE)

    assert torch.equal(torch.rand(3), expected)


def test_centers_without_weight_follow_and_change_no_feature(digits: Digits) -> None:
    alone = train_digits(digits, ALONE, moments=[0, 7])

    watched = train_digits(digits, Setting("learned", 0.0, 2, 10, seed=3, epochs=1), moments=[0, 7])

    assert np.array_equal(watched.features, alone.features)
    assert watched.accuracy == alone.accuracy
    assert alone.moments[1].centers is None
    first, last = (moment.centers for moment in watched.moments)
    assert first is not None
    assert last is not None
    assert np.all(np.linalg.norm(last - first, axis=1) > 0.1)


def test_center_loss_draws_classes_together(digits: Digits) -> None:
    losses: list[tuple[Form, float]] = [("softmax", 0.0), ("learned", 0.01), ("paper", 0.1)]

    alone, *drawn = [
        measure(train_digits(digits, Setting(form, weight, 8, 10, seed=0, epochs=8)), digits.test_labels)
        for form, weight in losses
    ]

    for row in drawn:
        assert row.accuracy > alone.accuracy - 0.02 > 0.85
        assert row.own_mean < alone.own_mean / 2
        assert row.ratio > 1.2 * alone.ratio


def test_a_training_without_some_digits_never_sees_them(digits: Digits) -> None:
    setting = Setting("paper", 0.1, 4, 8, seed=0, epochs=1)
    foreign = digits.images.copy()
    foreign[digits.labels > 7] = 0
    changed = Digits(foreign, digits.labels, digits.test_images, digits.test_labels)

    assert np.array_equal(train_digits(changed, setting).features, train_digits(digits, setting).features)
    assert setting.steps(digits) == int((digits.labels < 8).sum()) // BATCH


def test_measures_of_points_known_by_hand() -> None:
    features = np.array([[0, 1], [0, -1], [10, 0], [10, 0], [3, 0], [4, 0], [-5, 0]], np.float32)
    labels = np.array([0, 0, 1, 1, 2, 2, 3])

    row = measure(Trained(Setting("softmax", 0.0, 2, 2, 0, 1), features, 0.75, ()), labels)

    assert (row.accuracy, row.own_mean, row.between, row.ratio) == (0.75, 0.5, 10.0, 20.0)
    assert row.error_raw == 0.0  # 1 within, 8 and 9 between
    assert row.error_normalised == 0.0
    assert np.array_equal(class_means(features, labels, 2), [[0, 0], [10, 0]])


def test_the_equal_error_rate_is_that_of_verification_on_normalised_features() -> None:
    labels = torch.arange(120) % 3
    features = F.normalize(torch.randn(120, 5, generator=torch.Generator().manual_seed(0)) + labels[:, None])

    expected = verify(compare_photos(features.numpy(), labels.numpy())).equal_error_rate

    assert equal_error_rate(features, labels) == pytest.approx(expected, abs=1e-4)
    assert equal_error_rate(3 * features, labels) == pytest.approx(expected, abs=1e-4)
    assert 0.1 < expected < 0.5


def test_frames_are_dense_early_and_end_with_the_last_step() -> None:
    steps = frame_steps(2_340)

    assert (steps[:4], steps[-1]) == ((0, 1, 2, 3), 2_340)
    assert 35 <= len(steps) <= 48
    assert frame_steps(3) == (0, 1, 2, 3)


def test_the_study_has_every_loss_and_several_seeds_for_unseen_digits() -> None:
    plane, unseen = plane_settings(Extent()), open_settings(Extent(seed=5))

    assert [(each.form, each.weight) for each in plane if each.form != "paper"] == [
        ("softmax", 0),
        *(("learned", weight) for weight in (0, 0.001, 0.01, 0.1, 1)),
    ]
    assert {(each.dimension, each.classes) for each in plane} == {(2, 10)}
    assert {(each.dimension, each.classes) for each in unseen} == {(2, 8), (32, 8)}
    assert {each.seed for each in unseen} == {5, 6, 7}
    assert len(set(plane + unseen)) == len(plane + unseen)


def test_tables_of_rows_known_by_hand() -> None:
    seeds = [
        Row(Setting("learned", 0.01, 32, 8, seed, 4), 0.99, 0.5, 2.0 + seed, 0.25 + seed / 100, 0.2)
        for seed in range(2)
    ]
    plane = Row(Setting("softmax", 0.0, 2, 10, 0, 9), 0.98591, 2, 11, None, None)

    assert as_csv([plane, seeds[1]]).splitlines()[1:] == [
        "softmax,0,2,10,0,9,0.9859,2.000,11.000,5.50,,",
        "learned,0.01,32,8,1,4,0.9900,0.500,3.000,6.00,0.2600,0.2000",
    ]
    markdown = as_markdown([plane], seeds)
    assert "| softmax alone |  | 98.59 | 2.00 | 11.00 | 5.5 |" in markdown
    assert "| 32 | learned centers | 0.01 | 99.00 ± 0.00 | 5.0 ± 1.4 | 25.5 ± 0.7 | 20.0 ± 0.0 |" in markdown


def test_the_number_of_processes_changes_no_figure(digits: Digits) -> None:
    settings = [ALONE, Setting("paper", 0.1, 2, 10, seed=3, epochs=1)]
    seen: list[int] = []

    trained = train_all(digits, settings, workers=2, report=seen.append)

    assert table(trained, digits) == table([train_digits(digits, each) for each in settings], digits)
    assert seen[-1] == 14
    assert [each.setting for each in trained] == settings
    assert len(trained[0].moments) == 8


def test_a_failure_in_a_process_is_raised(digits: Digits) -> None:
    with pytest.raises(RuntimeError, match=r"invalid|negative"):
        train_all(digits, [Setting("softmax", 0.0, -1, 10, 0, 1)], workers=1, report=lambda _: None)


def test_the_command_writes_tables_and_figures(mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--limit", 600, "--epochs", 3, "--open-epochs", 1, "--open-seeds", 2, "--workers", 1)

    assert run("digits", "--data", mnist, "--output", tmp_path, *small) == 0

    with (tmp_path / "digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 + 6 * 2
    assert {row["digits_learned"] for row in rows[:10]} == {"10"}
    assert all(0 < float(row["eer_unseen_raw"]) < 1 for row in rows[10:])
    assert rows[0] | {"loss": "", "lambda": ""} == rows[1] | {"loss": "", "lambda": ""}
    assert (tmp_path / "digits.md").read_text().count("\n") == 2 + 10 + 1 + 2 + 6
    shown = capsys.readouterr().out
    assert "Ten digits in the plane" in shown
    assert "paper's centers" in shown
    for name in ("digits-training.png", "digits-lambda.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 1_000
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 20
    with Image.open(tmp_path / "digits-training.gif") as film:
        assert getattr(film, "n_frames", 1) == len(frame_steps(6))
