"""The networks that come with the package."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.alignment import align_face
from model.card import file_sha256, read_card
from model.errors import ModelFileError, RuntimeMissing
from model.pipeline import WEIGHTS, Networks, check_networks, load_networks


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in WEIGHTS.glob("*/card.json")), ids=lambda path: path.name
)
def test_every_file_is_the_one_of_its_card_and_small_enough(folder: Path) -> None:
    card = read_card(folder)
    assert card.name == folder.name
    assert card.sha256 == file_sha256(folder / card.file)
    assert (folder / card.file).stat().st_size <= 40e6
    assert card.licence
    assert card.origin


@pytest.fixture(scope="module")
def tuned() -> Networks:
    return load_networks(extractor="sface-center")


def test_the_tuned_extractor_knows_a_person_again_better_when_the_photo_is_poor(
    tuned: Networks, networks: Networks, astronaut: NDArray[np.uint8]
) -> None:
    (face,) = networks.detector.detect(astronaut)
    crop = align_face(astronaut, face.landmarks)
    dark = (crop * 0.12).astype(np.uint8)

    def distance(which: Networks) -> float:
        clean, poor = which.extractor.embed(np.stack([crop, dark]))
        return float(np.linalg.norm(clean - poor))

    assert distance(tuned) < distance(networks)
    assert tuned.extractor.card.figures["corrected_labels"] != networks.extractor.card.figures["corrected_labels"]


def test_the_tuned_extractor_has_thresholds_of_its_own(tuned: Networks, networks: Networks) -> None:
    assert tuned.extractor.card.thresholds != networks.extractor.card.thresholds


def test_what_keeps_networks_from_being_loaded_is_found_without_loading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = shutil.copytree(WEIGHTS, tmp_path / "weights")
    check_networks(weights=weights)
    check_networks(weights=weights, runtime="torch")
    with pytest.raises(ModelFileError, match="choose a detector"):
        check_networks(weights=weights, detector="sface")
    with pytest.raises(ModelFileError, match="choose an extractor"):
        check_networks(weights=weights, extractor="yunet")
    (weights / "sface" / "sface.onnx").write_bytes(b"cut off")
    with pytest.raises(ModelFileError, match="is not the one of its card"):
        check_networks(weights=weights)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeMissing, match="needs the package torch"):
        check_networks(weights=weights, runtime="torch")
