"""Photos of people and the embeddings of their faces, computed once."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from model.alignment import CROP_SIZE, align_face
from model.detector import Detector, Face
from model.errors import FacegalleryError
from model.image import decode_image
from model.photo_folder import Photo
from model.pipeline import Networks

_CHUNK = 32
_SAVE_EVERY = 64
_WAY = ("image.py", "detector.py", "alignment.py", "extractor.py", "runtime.py")


@dataclass(frozen=True, slots=True)
class EmbeddingSet:
    """Photos with the embeddings of the faces in their middle.

    ``embeddings`` has shape (N, D), float32, L2-normalised, in the order of the photos; a row of NaN is a failure to
    acquire: the photo cannot be read, or no face was found.
    """

    photos: tuple[Photo, ...]
    embeddings: NDArray[np.float32]

    @property
    def failures(self) -> tuple[str, ...]:
        """The photos without an embedding, as PERSON/FILE."""
        missing = np.flatnonzero(np.isnan(self.embeddings[:, 0]))
        return tuple(f"{photo.subject}/{photo.path.name}" for photo in (self.photos[row] for row in missing))


def cache_file(folder: Path, networks: Networks) -> Path:
    """Return where the embeddings of these networks, and of the code around them, are kept."""
    code = b"".join((Path(__file__).parents[1] / module).read_bytes() for module in _WAY)
    names = (networks.extractor.card.identity, networks.detector.card.identity, hashlib.sha256(code).hexdigest()[:8])
    return folder / f"embeddings-{'-'.join(names)}.npz"


def central_face(faces: Sequence[Face], width: int, height: int) -> Face | None:
    """Return the face that a photo of one person is of: large and near the middle, or None if there are no faces.

    The rule is FaceNet's (Schroff et al., 2015, in its public preparation of LFW): area of the box less twice the
    squared distance of its centre from the photo's.
    """

    def prominence(face: Face) -> float:
        x, y, box_width, box_height = face.box
        aside, down = x + box_width / 2 - width / 2, y + box_height / 2 - height / 2
        return box_width * box_height - 2 * (aside * aside + down * down)

    return max(faces, key=prominence, default=None)


def embed_photos(
    photos: Sequence[Photo],
    networks: Networks,
    *,
    workers: int = 1,
    cache: Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> EmbeddingSet:
    """Embed the central face of every photo.

    Args:
        photos: what to embed.
        networks: detector and extractor.
        workers: threads that decode, detect, align and embed side by side, so that no core waits for another step.
        cache: file of earlier embeddings by the same networks; photos that have not changed since are taken from
            there, and the new ones are added, every now and then and when the work is interrupted.
        advance: told how many more photos are done.
    """
    known = _read_cache(cache)
    stamps = [_stamp(photo) for photo in photos]
    rows = [known.get(stamp) for stamp in stamps]
    todo = [row for row, embedding in enumerate(rows) if embedding is None]
    advance(len(photos) - len(todo))

    def work(chunk: list[int]) -> tuple[list[int], NDArray[np.float32]]:
        return chunk, _embed_chunk([photos[row].path for row in chunk], networks)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, todo[start : start + _CHUNK]) for start in range(0, len(todo), _CHUNK)]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                chunk, embeddings = future.result()
                for row, embedding in zip(chunk, embeddings, strict=True):
                    rows[row] = known[stamps[row]] = embedding
                advance(len(chunk))
                if done % _SAVE_EVERY == 0:
                    _write_cache(cache, known)
        finally:
            pool.shutdown(cancel_futures=True)
            if todo:
                _write_cache(cache, known)
    dimension = networks.extractor.dimension
    complete = [row for row in rows if row is not None]
    return EmbeddingSet(tuple(photos), np.array(complete, np.float32).reshape(len(photos), dimension))


def _embed_chunk(paths: Sequence[Path], networks: Networks) -> NDArray[np.float32]:
    crops = [_central_crop(path, networks.detector) for path in paths]
    embeddings = np.full((len(paths), networks.extractor.dimension), np.nan, np.float32)
    found = [row for row, crop in enumerate(crops) if crop is not None]
    stacked = np.array([crop for crop in crops if crop is not None], np.uint8)
    embeddings[found] = networks.extractor.embed(stacked.reshape(-1, CROP_SIZE, CROP_SIZE, 3))
    return embeddings


def _central_crop(path: Path, detector: Detector) -> NDArray[np.uint8] | None:
    try:
        pixels = decode_image(path.read_bytes())
    except FacegalleryError:
        return None
    face = central_face(detector.detect(pixels), pixels.shape[1], pixels.shape[0])
    return None if face is None else align_face(pixels, face.landmarks)


def _stamp(photo: Photo) -> str:
    status = photo.path.stat()
    return f"{photo.subject}/{photo.path.name} {status.st_size} {status.st_mtime_ns}"


def _read_cache(path: Path | None) -> dict[str, NDArray[np.float32]]:
    if path is None or not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(zip(arrays["stamps"].tolist(), arrays["embeddings"], strict=True))
    except (
        OSError,
        ValueError,
        KeyError,
        BadZipFile,
    ):  # cut off or foreign: the photos are there, so it is computed anew
        return {}


def _write_cache(path: Path | None, known: dict[str, NDArray[np.float32]]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    with draft.open("wb") as file:
        np.savez(file, stamps=np.array(list(known), np.str_), embeddings=np.array(list(known.values()), np.float32))
    draft.replace(path)
