"""The shipped files and the torch modules give the same numbers, whatever they run in."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.alignment import align_face
from model.card import FmrThreshold, ModelCard, read_card, write_card
from model.errors import ModelFileError
from model.extractor import Extractor
from model.importing import import_networks
from model.network_file import read_network, write_network
from model.pipeline import WEIGHTS, Networks, load_networks
from model.runtime import Precision, open_network

FILES = {"yunet": WEIGHTS / "yunet" / "yunet.onnx", "sface": WEIGHTS / "sface" / "sface.onnx"}
SOURCES = {
    "yunet": "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    "sface": "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
}
SHAPES = {"yunet": (2, 3, 96, 160), "sface": (3, 3, 112, 112)}


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    similar: NDArray[np.float32] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return similar


@pytest.fixture(scope="module")
def crops(astronaut: NDArray[np.uint8], networks: Networks) -> NDArray[np.uint8]:
    (face,) = networks.detector.detect(astronaut)
    crop = align_face(astronaut, face.landmarks)
    return np.stack([crop, crop[:, ::-1], (crop * 0.5).astype(np.uint8), 255 - crop])


@pytest.mark.parametrize("name", ["yunet", "sface"])
def test_openvino_and_the_torch_module_agree(name: str) -> None:
    batch = np.random.default_rng(0).integers(0, 256, SHAPES[name]).astype(np.float32)
    served = open_network(FILES[name])(batch)
    with torch.inference_mode():
        outputs = read_network(FILES[name])(torch.from_numpy(batch))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(served) == len(outputs)
    for mine, reference in zip(served, outputs, strict=True):
        scale = float(reference.abs().max())
        np.testing.assert_allclose(mine, reference.numpy(), atol=2e-3 * scale + 1e-5)


def test_embeddings_of_both_runtimes_agree_on_faces(crops: NDArray[np.uint8], networks: Networks) -> None:
    torch_embeddings = Extractor.load(WEIGHTS / "sface", runtime="torch").embed(crops)
    assert cosines(networks.extractor.embed(crops), torch_embeddings).min() > 0.999


@pytest.mark.parametrize("name", ["yunet", "sface"])
@pytest.mark.parametrize(("precision", "error"), [("f32", 2e-4), ("bf16", 0.1)])
def test_a_gpu_gives_what_the_processor_gives(name: str, precision: Precision, error: float, gpu: str) -> None:
    batch = np.random.default_rng(0).integers(0, 256, SHAPES[name]).astype(np.float32)
    outputs, references = (
        open_network(FILES[name], runtime="torch", device=device, precision=of_device)(batch)
        for device, of_device in ((gpu, precision), ("cpu", "f32"))
    )
    for mine, reference in zip(outputs, references, strict=True):
        scale = float(np.abs(reference).max())
        np.testing.assert_allclose(mine, reference, atol=error * scale + 1e-5)


@pytest.mark.parametrize("count", [0, 1, 5, 33, 70])
def test_batches_of_any_size_give_each_crop_its_embedding(
    count: int, crops: NDArray[np.uint8], networks: Networks
) -> None:
    batch = np.resize(crops, (count, *crops.shape[1:]))
    embeddings = networks.extractor.embed(batch)
    assert embeddings.shape == (count, 128)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    single = networks.extractor.embed(crops)
    np.testing.assert_allclose(embeddings, np.resize(single, embeddings.shape), atol=1e-4)


@pytest.mark.parametrize("crop", [np.zeros((1, 3, 112, 112), np.uint8), np.zeros((1, 112, 112, 3), np.float32)])
def test_other_shapes_and_types_are_refused(crop: NDArray[np.uint8], networks: Networks) -> None:
    with pytest.raises(ValueError, match="crops must be uint8"):
        networks.extractor.embed(crop)


@pytest.mark.parametrize("answer", [0, 1e-30, 1e30, np.inf, np.nan])
def test_a_network_that_gives_no_direction_is_refused(
    answer: float, crops: NDArray[np.uint8], networks: Networks
) -> None:
    """As one whose weights are damaged, or that leaves the range of a lower precision."""

    def network(batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        answers = np.ones((len(batch), 128), np.float32)
        answers[1] = answer
        return (answers,)

    broken = Extractor(network, networks.extractor.card)
    with pytest.raises(ModelFileError, match="'sface' gives no embedding of a face"):
        broken.embed(crops)


@pytest.mark.parametrize("name", ["yunet", "sface"])
def test_a_network_written_again_has_the_same_bytes(name: str, tmp_path: Path) -> None:
    write_network(read_network(FILES[name]), tmp_path / "again.onnx", half=name == "sface")
    assert (tmp_path / "again.onnx").read_bytes() == FILES[name].read_bytes()


def test_extractor_weighs_at_most_40_mb() -> None:
    assert FILES["sface"].stat().st_size <= 40_000_000


@pytest.mark.parametrize("name", ["yunet", "sface"])
def test_cards_name_origin_and_licence(name: str) -> None:
    card = read_card(WEIGHTS / name)
    assert card.source_sha256 == SOURCES[name]
    assert "OpenCV Zoo" in card.origin
    assert card.licence == {"yunet": "MIT", "sface": "Apache-2.0"}[name]
    assert card.identity == f"{name}@{card.sha256[:12]}"


def test_notice_names_both_networks() -> None:
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    assert all(word in notice for word in ("YuNet", "MIT", "SFace", "Apache"))


def copied(name: str, folder: Path) -> ModelCard:
    card = read_card(WEIGHTS / name)
    (folder / card.file).write_bytes(FILES[name].read_bytes())
    write_card(card, folder)
    return card


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert copied("yunet", tmp_path) == read_card(tmp_path)


def test_a_damaged_network_is_refused(tmp_path: Path) -> None:
    card = copied("yunet", tmp_path)
    data = bytearray((tmp_path / card.file).read_bytes())
    data[1000] ^= 1
    (tmp_path / card.file).write_bytes(data)
    with pytest.raises(ModelFileError):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "thresholds",
    [
        (),
        (FmrThreshold(0.1, 1.2),),
        (FmrThreshold(0.1, 1.2), FmrThreshold(0.1, 1.1)),
        (FmrThreshold(0.1, 1.1), FmrThreshold(0.01, 1.2)),
        (FmrThreshold(0.1, 1.1), FmrThreshold(0.0, 1.0)),
        (FmrThreshold(0.1, float("nan")), FmrThreshold(0.01, 1.0)),
    ],
    ids=["none", "one", "twice", "growing", "zero", "no number"],
)
def test_an_extractor_without_thresholds_to_decide_by_is_refused(
    thresholds: tuple[FmrThreshold, ...], tmp_path: Path
) -> None:
    card = copied("sface", tmp_path)
    write_card(dataclasses.replace(card, thresholds=thresholds), tmp_path)

    with pytest.raises(ModelFileError, match=r"the thresholds of the model card .* cannot be used"):
        read_card(tmp_path)


@pytest.mark.parametrize("names", [{"extractor": "nobody"}, {"extractor": "yunet"}, {"detector": "sface"}])
def test_a_missing_network_or_one_of_the_other_kind_is_refused(names: dict[str, str]) -> None:
    with pytest.raises(ModelFileError):
        load_networks(**names)  # type: ignore[arg-type]


def test_import_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(FILES["yunet"].read_bytes())
    with pytest.raises(ModelFileError):
        import_networks([tmp_path / "other.onnx"], tmp_path / "weights")
    assert not (tmp_path / "weights").exists() or not any((tmp_path / "weights").iterdir())
