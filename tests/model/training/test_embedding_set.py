from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from model.detector import Face
from model.photo_folder import Photo, list_photos
from model.pipeline import Networks, load_networks
from model.training.degradation import KINDS, degrade, kind_of
from model.training.embedder import Embedder, NetworkEmbedder
from model.training.embedding_set import EmbeddingSet, central_face, embed_photos, find_faces, photo_crops
from model.training.row_cache import read_rows, write_rows


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


@pytest.fixture(scope="module")
def embedder(networks: Networks) -> NetworkEmbedder:
    return NetworkEmbedder(networks.extractor)


def embed(
    photos: Sequence[Photo],
    networks: Networks,
    embedder: Embedder,
    folder: Path | None = None,
    kinds: Sequence[str] = (),
) -> EmbeddingSet:
    faces = find_faces(photos, networks.detector, workers=2, folder=folder)
    crops = photo_crops(photos, faces, embedder)
    return embed_photos(photos, crops, embedder, source="yunet", kinds=kinds, workers=2, folder=folder)


def test_one_person_is_near_and_failures_are_rows_of_nan(
    photos: tuple[Photo, ...], networks: Networks, embedder: Embedder
) -> None:
    embedded = embed(photos, networks, embedder)

    assert embedded.embeddings.shape == (4, 128)
    assert np.linalg.norm(embedded.embeddings[:2], axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(embedded.embeddings[0] - embedded.embeddings[1]) < 0.8
    assert np.isnan(embedded.embeddings[2:]).all()
    assert embedded.failures == ("Nobody/1.png", "Nobody/2.png")


def test_degraded_copies_are_those_of_the_crops(
    photos: tuple[Photo, ...], networks: Networks, embedder: Embedder
) -> None:
    embedded = embed(photos, networks, embedder, kinds=KINDS)

    crop = photo_crops(photos, find_faces(photos, networks.detector), embedder)(0)
    assert crop is not None
    assert list(embedded.degraded) == list(KINDS)
    for kind, embeddings in embedded.degraded.items():
        assert np.allclose(embeddings[0], embedder.embed(degrade(crop[None], kind))[0], atol=1e-5)
        assert np.isnan(embeddings[2:]).all()
    mixed = [embedded.degraded[kind_of(f"Eileen/{number}.png")][number - 1] for number in (1, 2)]
    assert np.array_equal(embedded.mixed[:2], np.array(mixed))


def test_some_photos_keep_their_rows(photos: tuple[Photo, ...], networks: Networks, embedder: Embedder) -> None:
    embedded = embed(photos, networks, embedder, kinds=["blur"])

    some = embedded.only([1, 3])

    assert some.photos == (photos[1], photos[3])
    assert np.array_equal(some.embeddings[0], embedded.embeddings[1])
    assert np.array_equal(some.degraded["blur"][0], embedded.degraded["blur"][1])


def test_a_second_run_takes_unchanged_photos_from_what_is_kept(
    photos: tuple[Photo, ...], networks: Networks, embedder: Embedder, tmp_path: Path
) -> None:
    kept = tmp_path / "out"
    first = embed(photos, networks, embedder, kept)
    (file,) = kept.glob("embeddings-*-clean.npz")
    write_rows(file, {stamp: row * 2 for stamp, row in read_rows(file).items()})
    photos[1].path.write_bytes(photos[0].path.read_bytes())

    second = embed(photos, networks, embedder, kept)

    assert np.array_equal(second.embeddings[0], first.embeddings[0] * 2)
    assert np.allclose(second.embeddings[1], first.embeddings[0], atol=1e-5)


def test_faces_that_are_kept_are_the_faces_that_were_found(
    photos: tuple[Photo, ...], networks: Networks, tmp_path: Path
) -> None:
    first = find_faces(photos, networks.detector, folder=tmp_path / "out")
    counts: list[int] = []

    second = find_faces(photos, networks.detector, folder=tmp_path / "out", advance=counts.append)

    assert second == first
    assert first[0] == networks.detector.detect(data.astronaut())[0]
    assert first[2:] == [None, None]
    assert counts == [4]


def test_degraded_copies_are_added_to_what_is_kept(
    photos: tuple[Photo, ...], networks: Networks, embedder: Embedder, tmp_path: Path
) -> None:
    embed(photos, networks, embedder, tmp_path / "out")

    embedded = embed(photos, networks, embedder, tmp_path / "out", ["dark"])

    assert np.allclose(
        embedded.degraded["dark"], embed(photos, networks, embedder, None, ["dark"]).degraded["dark"], equal_nan=True
    )


def test_progress_counts_every_photo_once(
    photos: tuple[Photo, ...], networks: Networks, embedder: Embedder, tmp_path: Path
) -> None:
    counts: list[int] = []
    embed(photos[:3], networks, embedder, tmp_path / "out")

    crops = photo_crops(photos, find_faces(photos, networks.detector), embedder)
    embed_photos(photos, crops, embedder, source="yunet", folder=tmp_path / "out", advance=counts.append)

    assert counts == [3, 1]
