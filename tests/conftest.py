"""Real faces and real networks for every test."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from model.pipeline import Networks, load_networks

pytest_plugins = ["tests.databases"]


@pytest.fixture(scope="session")
def astronaut() -> NDArray[np.uint8]:
    """The portrait of Eileen Collins that scikit-image ships: 512×512, RGB, one face, public domain."""
    pixels: NDArray[np.uint8] = skimage.data.astronaut()
    return pixels


@pytest.fixture(scope="session")
def astronaut_jpeg(astronaut: NDArray[np.uint8]) -> bytes:
    """The portrait as a JPEG file."""
    file = BytesIO()
    Image.fromarray(astronaut).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="session")
def gpu() -> str:
    """Torch's name of a device that is no processor."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return "cuda"


@pytest.fixture(scope="session")
def networks() -> Networks:
    """The shipped networks."""
    return load_networks()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with photos and digits, from FACEGALLERY_TEST_DATA."""
    folder = os.environ.get("FACEGALLERY_TEST_DATA", "")
    if not folder:
        pytest.skip("FACEGALLERY_TEST_DATA names no folder with lfw-sample/ and mnist/")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def lfw_sample(test_data: Path) -> Path:
    """Folder with a folder of photos for each of some people of Labeled Faces in the Wild."""
    folder = test_data / "lfw-sample"
    if not folder.is_dir():
        pytest.skip("FACEGALLERY_TEST_DATA has no lfw-sample/")
    return folder
