from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from model.detector import Face
from model.photo_folder import Photo, list_photos
from model.pipeline import Networks, load_networks
from model.training.embedding_set import central_face, embed_photos


@pytest.fixture(scope="module")
def networks() -> Networks:
    return load_networks()


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Photo, ...]:
    """The astronaut, the astronaut mirrored, a photo without a face, and a file that is no photo."""
    (tmp_path / "Eileen").mkdir()
    (tmp_path / "Nobody").mkdir()
    Image.fromarray(data.astronaut()).save(tmp_path / "Eileen" / "1.png")
    Image.fromarray(data.astronaut()[:, ::-1]).save(tmp_path / "Eileen" / "2.png")
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "Nobody" / "1.png")
    (tmp_path / "Nobody" / "2.png").write_text("no photo")
    return list_photos(tmp_path)


def face(x: float, y: float, size: float) -> Face:
    return Face((x, y, size, size), ((0.0, 0.0),) * 5, 0.9)


def test_the_face_in_the_middle_wins_over_an_equally_large_one_at_the_edge() -> None:
    middle, edge = face(100, 100, 50), face(0, 0, 50)

    assert central_face([edge, middle], 250, 250) is middle


def test_a_large_face_near_the_middle_wins_over_a_tiny_one_in_it() -> None:
    tiny, large = face(120, 120, 10), face(60, 60, 110)

    assert central_face([tiny, large], 250, 250) is large


def test_no_face_is_none() -> None:
    assert central_face([], 250, 250) is None


def test_one_person_is_near_and_failures_are_rows_of_nan(photos: tuple[Photo, ...], networks: Networks) -> None:
    embedded = embed_photos(photos, networks, workers=2)

    assert embedded.embeddings.shape == (4, 128)
    assert np.linalg.norm(embedded.embeddings[:2], axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(embedded.embeddings[0] - embedded.embeddings[1]) < 0.8
    assert np.isnan(embedded.embeddings[2:]).all()
    assert embedded.failures == ("Nobody/1.png", "Nobody/2.png")


def test_a_second_run_takes_unchanged_photos_from_the_cache(
    photos: tuple[Photo, ...], networks: Networks, tmp_path: Path
) -> None:
    cache = tmp_path / "out" / "cache.npz"
    first = embed_photos(photos, networks, cache=cache)
    with np.load(cache) as arrays:
        marked = arrays["embeddings"] * 2
        np.savez(cache, stamps=arrays["stamps"], embeddings=marked)
    photos[1].path.write_bytes(photos[0].path.read_bytes())

    second = embed_photos(photos, networks, cache=cache)

    assert np.array_equal(second.embeddings[0], first.embeddings[0] * 2)
    assert np.allclose(second.embeddings[1], first.embeddings[0], atol=1e-5)


def test_a_damaged_cache_is_computed_anew(photos: tuple[Photo, ...], networks: Networks, tmp_path: Path) -> None:
    cache = tmp_path / "cache.npz"
    cache.write_bytes(b"PK\x03\x04 cut off")

    embedded = embed_photos(photos[:1], networks, cache=cache)

    assert np.isfinite(embedded.embeddings).all()
    with np.load(cache) as arrays:
        assert len(arrays["stamps"]) == 1


def test_progress_counts_every_photo_once(photos: tuple[Photo, ...], networks: Networks, tmp_path: Path) -> None:
    counts: list[int] = []
    embed_photos(photos[:3], networks, cache=tmp_path / "cache.npz")

    embed_photos(photos, networks, cache=tmp_path / "cache.npz", advance=counts.append)

    assert counts == [3, 1]
