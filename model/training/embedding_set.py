"""Photos of people, the faces in their middle, and the embeddings of these, each computed once."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.detector import Detector, Face
from model.errors import FacegalleryError
from model.image import decode_image
from model.photo_folder import Photo
from model.training.degradation import degrade, kind_of
from model.training.embedder import Embedder
from model.training.row_cache import Rows, read_rows, write_rows

CLEAN = "clean"
"""The photos as they are, beside the kinds of degradation."""

ReadCrop = Callable[[int], NDArray[np.uint8] | None]
"""Returns the crop of a photo by its row, or None where there is none."""

_CHUNK = 32
_SAVE_EVERY = 64
_FINDING = ("image.py", "detector.py", "runtime.py")
_EMBEDDING = ("image.py", "alignment.py", "extractor.py", "runtime.py", "training/degradation.py")


@dataclass(frozen=True, slots=True)
class EmbeddingSet:
    """Photos with the embeddings of the faces in their middle.

    ``embeddings`` has shape (N, D), float32, L2-normalised, in the order of the photos; a row of NaN is a failure to
    acquire: the photo cannot be read, or no face was found. ``degraded`` has those of the degraded copies, by kind.
    """

    photos: tuple[Photo, ...]
    embeddings: NDArray[np.float32]
    degraded: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[str, ...]:
        """The photos without an embedding, as PERSON/FILE."""
        missing = np.flatnonzero(np.isnan(self.embeddings[:, 0]))
        return tuple(photo_name(self.photos[row]) for row in missing)

    @property
    def mixed(self) -> NDArray[np.float32]:
        """Embeddings of copies degraded in the way that each photo's name decides, shape (N, D)."""
        rows = [self.degraded[kind_of(photo_name(photo))][row] for row, photo in enumerate(self.photos)]
        return np.array(rows, np.float32)

    def only(self, rows: Sequence[int]) -> "EmbeddingSet":
        """Those of some photos."""
        degraded = {kind: embeddings[rows] for kind, embeddings in self.degraded.items()}
        return EmbeddingSet(tuple(self.photos[row] for row in rows), self.embeddings[rows], degraded)


def photo_name(photo: Photo) -> str:
    """PERSON/FILE."""
    return f"{photo.subject}/{photo.path.name}"


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


def find_faces(
    photos: Sequence[Photo],
    detector: Detector,
    *,
    workers: int = 1,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Face | None]:
    """Find the central face of every photo; None where the photo cannot be read or shows no face.

    Args:
        photos: where to look.
        detector: that looks.
        workers: threads.
        folder: keeps what was found; photos that have not changed since are not searched again, and an interrupted run
            goes on where it stopped.
        advance: told how many more photos are done.
    """
    kept = folder and folder / f"faces-{detector.card.identity}-{_code_digest(_FINDING)}.npz"
    rows = _compute(
        photos,
        {CLEAN: kept},
        lambda chunk, _: {CLEAN: np.array([_to_row(_central_face(photos[row].path, detector)) for row in chunk])},
        workers,
        advance,
    )
    return [_to_face(row) for row in rows[CLEAN]]


def photo_crops(photos: Sequence[Photo], faces: Sequence[Face | None], embedder: Embedder) -> ReadCrop:
    """Return what cuts the faces out of photos as an embedder wants them."""

    def read(row: int) -> NDArray[np.uint8] | None:
        face = faces[row]
        return None if face is None else embedder.align(decode_image(photos[row].path.read_bytes()), face)

    return read


def embed_photos(
    photos: Sequence[Photo],
    read_crop: ReadCrop,
    embedder: Embedder,
    *,
    source: str,
    kinds: Sequence[str] = (),
    workers: int = 1,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> EmbeddingSet:
    """Embed every photo, and degraded copies of it.

    Args:
        photos: what to embed.
        read_crop: returns the crop of a photo.
        embedder: that embeds.
        source: where the crops come from, for example the detector's identity; part of the names of kept files.
        kinds: of degradation.
        workers: threads that decode, align and embed side by side, so that no core waits for another step.
        folder: keeps the embeddings, as for `find_faces`.
        advance: told how many more photos are done.
    """
    stem = f"{embedder.identity}-{source}-{_code_digest(_EMBEDDING)}"
    kept = {kind: folder and folder / f"embeddings-{stem}-{kind}.npz" for kind in (CLEAN, *kinds)}

    def embed(chunk: Sequence[int], wanted: Sequence[str]) -> Rows:
        crops = [read_crop(row) for row in chunk]
        found = [place for place, crop in enumerate(crops) if crop is not None]
        stacked = np.array([crop for crop in crops if crop is not None], np.uint8)
        embeddings = {kind: np.full((len(chunk), embedder.dimension), np.nan, np.float32) for kind in wanted}
        if found:
            for kind, rows in embeddings.items():
                rows[found] = embedder.embed(stacked if kind == CLEAN else degrade(stacked, kind))
        return embeddings

    rows = _compute(photos, kept, embed, workers, advance)
    return EmbeddingSet(tuple(photos), rows[CLEAN], {kind: rows[kind] for kind in kinds})


def _compute(
    photos: Sequence[Photo],
    kept: Mapping[str, Path | None],
    compute: Callable[[Sequence[int], Sequence[str]], Rows],
    workers: int,
    advance: Callable[[int], None],
) -> Rows:
    """Return a row for each photo under each name, from what is kept or computed, chunk by chunk, in threads.

    ``compute`` is given rows of photos, and the names under which some of them are not known.
    """
    known = {name: read_rows(path) for name, path in kept.items()}
    stamps = [_stamp(photo) for photo in photos]
    todo = [row for row, stamp in enumerate(stamps) if any(stamp not in rows for rows in known.values())]
    advance(len(photos) - len(todo))

    def save() -> None:
        for name, path in kept.items():
            write_rows(path, known[name])

    def work(chunk: list[int]) -> tuple[list[int], Rows]:
        wanted = [name for name, rows in known.items() if any(stamps[row] not in rows for row in chunk)]
        return chunk, compute(chunk, wanted)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, todo[start : start + _CHUNK]) for start in range(0, len(todo), _CHUNK)]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                chunk, computed = future.result()
                for name, rows in computed.items():
                    known[name].update(zip((stamps[row] for row in chunk), rows, strict=True))
                advance(len(chunk))
                if done % _SAVE_EVERY == 0:
                    save()
        finally:
            pool.shutdown(cancel_futures=True)
            if todo:
                save()
    return {name: np.stack([rows[stamp] for stamp in stamps]) for name, rows in known.items()}


def _central_face(path: Path, detector: Detector) -> Face | None:
    try:
        pixels = decode_image(path.read_bytes())
    except FacegalleryError:
        return None
    return central_face(detector.detect(pixels), pixels.shape[1], pixels.shape[0])


def _to_row(face: Face | None) -> NDArray[np.float32]:
    values = [np.nan] * 15 if face is None else [*face.box, *np.ravel(face.landmarks), face.score]
    return np.array(values, np.float32)  # the detector's own precision


def _to_face(row: NDArray[np.float32]) -> Face | None:
    if np.isnan(row[0]):
        return None
    x, y, width, height, *points, score = row.tolist()
    return Face((x, y, width, height), tuple(zip(points[::2], points[1::2], strict=True)), score)


def _stamp(photo: Photo) -> str:
    status = photo.path.stat()
    return f"{photo_name(photo)} {status.st_size} {status.st_mtime_ns}"


def _code_digest(modules: Sequence[str]) -> str:
    """Digest of the code that a result comes from, so that another version computes anew."""
    code = b"".join((Path(__file__).parents[1] / module).read_bytes() for module in modules)
    return hashlib.sha256(code).hexdigest()[:8]
