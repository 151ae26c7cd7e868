"""MNIST in memory, read from its own files or downloaded with torchvision."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import MNIST

from model.photo_folder import DatasetError
from model.training.digits import Digits

_MAGIC = {"images": 2051, "labels": 2049}


def load_digits(folder: Path, limit: int | None = None) -> Digits:
    """Return MNIST from MNIST/raw below a folder, packed or not; it is downloaded there if it is absent.

    Args:
        folder: what torchvision calls the root.
        limit: only so many digits for training and so many for testing, the first ones.

    Raises:
        DatasetError: there is no MNIST and it cannot be downloaded, or a file is damaged.
    """
    if any(_find(folder, part, kind) is None for part in ("train", "t10k") for kind in _MAGIC):
        try:
            MNIST(folder, download=True)
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise DatasetError(
                f"{folder} has no MNIST (MNIST/raw/train-images-idx3-ubyte.gz and the other three files), "
                f"and it could not be downloaded: {reason}"
            ) from error
    images, labels = _read(folder, "train", limit)
    test_images, test_labels = _read(folder, "t10k", limit)
    return Digits(images, labels, test_images, test_labels)


def _read(folder: Path, part: str, limit: int | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images = _content(folder, part, "images")
    labels = _content(folder, part, "labels").astype(np.int64)
    if len(images) != 28 * 28 * len(labels):
        raise DatasetError(f"{folder}: the images and the labels of {part} are not equally many")
    return images.reshape(-1, 1, 28, 28)[:limit], labels[:limit]


def _content(folder: Path, part: str, kind: str) -> NDArray[np.uint8]:
    """Return the values of a file in the idx form: magic number, lengths of the axes, unsigned bytes."""
    path = _find(folder, part, kind)
    if path is None:
        raise DatasetError(f"{folder} has no {part} {kind} of MNIST")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path} is damaged: {error}") from error
    axes = 3 if kind == "images" else 1
    start = 4 + 4 * axes
    header = np.frombuffer(content[: start - start % 4], ">u4")
    if len(header) != 1 + axes or header[0] != _MAGIC[kind] or len(content) - start != int(np.prod(header[1:])):
        raise DatasetError(f"{path} is damaged: not a file of MNIST's form")
    return np.frombuffer(content, np.uint8, offset=start).copy()  # torch wants to be able to write


def _find(folder: Path, part: str, kind: str) -> Path | None:
    name = f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    places = (folder / "MNIST" / "raw" / name, folder / "MNIST" / "raw" / f"{name}.gz")
    return next((path for path in places if path.is_file()), None)
