"""Makes the project's own network files out of the two files of OpenCV Zoo, which are known by their digests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from model.alignment import TEMPLATE_LANDMARKS
from model.card import FmrThreshold, ModelCard, file_sha256, write_card
from model.errors import ModelFileError
from model.network_file import write_network
from model.networks import SFace, YuNet

LANDMARKS = ("right eye", "left eye", "nose", "right corner of the mouth", "left corner of the mouth")


@dataclass(frozen=True, slots=True)
class ZooFile:
    """A file of OpenCV Zoo and what becomes of it; ``card`` lacks only the digest of the file that is written."""

    file_name: str
    architecture: Callable[[], nn.Module]
    half: bool
    card: ModelCard


YUNET = ZooFile(
    "face_detection_yunet_2023mar.onnx",
    YuNet,
    False,
    ModelCard(
        name="yunet",
        task="detector",
        file="yunet.onnx",
        sha256="",
        architecture="YuNet",
        dimension=None,
        input={
            "shape": ["batch", 3, "height", "width"],
            "colour": "BGR",
            "range": [0, 255],
            "sides": "multiples of 32, padded with black at the right and at the bottom",
            "landmarks": list(LANDMARKS),
        },
        origin="OpenCV Zoo, face_detection_yunet_2023mar.onnx, by Shiqi Yu and others (libfacedetection); "
        "Wu, Peng, Yu: YuNet, a tiny millisecond-level face detector, Machine Intelligence Research 2023",
        source_sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        licence="MIT",
        data="WIDER FACE",
    ),
)

SFACE = ZooFile(
    "face_recognition_sface_2021dec.onnx",
    SFace,
    True,
    ModelCard(
        name="sface",
        task="extractor",
        file="sface.onnx",
        sha256="",
        architecture="SFace",
        dimension=128,
        input={
            "shape": ["batch", 3, 112, 112],
            "colour": "RGB",
            "range": [0, 255],
            "normalisation": "(x − 127.5) / 128, inside the network",
            "landmarks": list(LANDMARKS),
            "template": TEMPLATE_LANDMARKS.tolist(),
        },
        origin="OpenCV Zoo, face_recognition_sface_2021dec.onnx, by Zhong Yaoyao and others; "
        "Zhong, Deng, Hu, Zhao, Li, Wen: SFace, sigmoid-constrained hypersphere loss for robust face recognition, "
        "IEEE Transactions on Image Processing 2021",
        source_sha256="0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
        licence="Apache-2.0",
        data="not stated by OpenCV Zoo for this file; the paper trains on CASIA-WebFace, VGGFace2 and MS-Celeb-1M",
        figures={
            "note": "provisional thresholds, measured with the original file on LFW; `facemodel evaluate` replaces them"
        },
        # √(2 − 2·cos) of the cosines 0.368, 0.429, 0.494 and 0.600.
        thresholds=(
            FmrThreshold(1e-3, 1.1243),
            FmrThreshold(1e-4, 1.0686),
            FmrThreshold(1e-5, 1.006),
            FmrThreshold(1e-6, 0.8944),
        ),
    ),
)

ZOO_FILES = (YUNET, SFACE)
"""The files that can be imported."""


def import_networks(files: Sequence[Path], weights: Path) -> list[Path]:
    """Write a network file and its card for every file of OpenCV Zoo.

    Args:
        files: the originals, in any order; all are known by their SHA-256 before anything is written.
        weights: folder that gets a folder for each network.

    Returns:
        The folders written, in the order of ``files``.

    Raises:
        ModelFileError: a file is missing or is not one of `ZOO_FILES`.
    """
    recognised = [(_recognise(path), path) for path in files]
    return [_import(zoo, path, weights) for zoo, path in recognised]


def _recognise(path: Path) -> ZooFile:
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); give a file of OpenCV Zoo") from error
    for zoo in ZOO_FILES:
        if zoo.card.source_sha256 == digest:
            return zoo
    names = " and ".join(zoo.file_name for zoo in ZOO_FILES)
    raise ModelFileError(f"{path} is none of the files that can be imported; give OpenCV Zoo's {names}, unchanged")


def _import(zoo: ZooFile, path: Path, weights: Path) -> Path:
    module = zoo.architecture()
    copy_parameters(onnx.load(path), module)
    folder = weights / zoo.card.name
    folder.mkdir(parents=True, exist_ok=True)
    write_network(module.eval(), folder / zoo.card.file, half=zoo.half)
    write_card(replace(zoo.card, sha256=file_sha256(folder / zoo.card.file)), folder)
    return folder


def copy_parameters(proto: onnx.ModelProto, module: nn.Module) -> None:
    """Fill a module with the parameters of a foreign ONNX file whose layers run in the order of the module's.

    Raises:
        ValueError: number or shapes of the parameters differ.
    """
    arrays = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    layers = [node for node in proto.graph.node if node.op_type in {"Conv", "BatchNormalization", "PRelu", "Gemm"}]
    values = [arrays[name] for node in layers for name in node.input if name in arrays]
    state: dict[str, Any] = {
        key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    for (key, target), value in zip(state.items(), values, strict=True):
        source = value.squeeze() if value.ndim == 3 else value  # PReLU slopes: (channels, 1, 1)
        if source.shape != tuple(target.shape):
            raise ValueError(f"{key} has shape {tuple(target.shape)}, the file's {source.shape}")
        target.copy_(torch.from_numpy(source.copy()))
