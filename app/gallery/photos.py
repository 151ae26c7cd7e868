"""The way of a photo up to its embeddings: decode → detect → align → measure → embed, under a limit of workers."""

import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.gallery.deadline import check_deadline, seconds_left
from app.gallery.errors import Busy
from app.telemetry import FACES_TOTAL, QUEUE_SECONDS, stage
from model.alignment import align_face
from model.detector import Face
from model.errors import LowQuality, NoFace, SeveralFaces, UnsupportedImage
from model.image import ImageLimits, decode_image
from model.pipeline import Networks
from model.quality import Quality, QualityLimits, complaints, measure_quality

FaceChoice = Literal["single", "largest"]
_asked_at: ContextVar[float | None] = ContextVar("asked for a worker at", default=None)


@contextmanager
def waiting_for_worker() -> Iterator[None]:
    """Count what is waited inside, before a worker is even asked for, as a wait for one."""
    token = _asked_at.set(time.perf_counter())
    try:
        yield
    finally:
        _asked_at.reset(token)


@dataclass(frozen=True, slots=True)
class Photo:
    """An uploaded file: its bytes, and a name to speak of it."""

    name: str
    data: bytes


def read_photo(path: Path, *, max_bytes: int) -> bytes:
    """The bytes of a photo's file; of one that is too long one byte more than it may have, so that it is refused.

    Raises:
        UnsupportedImage: it cannot be read, or is no regular file.
    """
    try:
        # A pipe is opened without waiting for who writes into it, and not read.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is no regular file")
            return file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # a name that holds what no name can, such as NUL, is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise UnsupportedImage(f"the file cannot be read: {reason}") from error


@dataclass(frozen=True, slots=True)
class AlignedFace:
    """A face with its quality and its crop of shape (112, 112, 3), uint8, RGB."""

    face: Face
    quality: Quality
    crop: NDArray[np.uint8]

    @property
    def crop_sha256(self) -> str:
        """Digest of the crop's pixels: the same photo gives the same crop."""
        return hashlib.sha256(self.crop.tobytes()).hexdigest()


class PhotoReader:
    """Reads faces out of photos with the networks, so many photos at a time as there are workers."""

    def __init__(
        self,
        networks: Networks,
        *,
        image_limits: ImageLimits,
        quality_limits: QualityLimits,
        workers: int,
        queue_timeout: float,
    ) -> None:
        self.networks = networks
        self._image_limits = image_limits
        self._quality_limits = quality_limits
        self._slots = threading.BoundedSemaphore(workers)
        self._queue_timeout = queue_timeout

    @property
    def extractor(self) -> str:
        """Identity of the extractor: its name and the digest of its file."""
        return self.networks.extractor.card.identity

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.networks.extractor.dimension

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Hold one worker.

        Raises:
            Busy: none became free in time.
            TimedOut: the request's own time is over.
        """
        asked = _asked_at.get()
        start = time.perf_counter() if asked is None else asked
        patience = max(0.0, start + self._queue_timeout - time.perf_counter())
        free = self._slots.acquire(timeout=min(patience, seconds_left()))
        QUEUE_SECONDS.observe(time.perf_counter() - start)
        if not free:
            check_deadline()
            raise Busy("all workers are taken; try again in a moment")
        try:
            yield
        finally:
            self._slots.release()

    def faces(self, photo: Photo, *, at_most: int | None = None) -> list[AlignedFace]:
        """Decode → detect → align → measure; largest face first.

        Raises:
            UnsupportedImage, ImageTooLarge: the photo cannot be read.
            TimedOut: the request's time is over.
        """
        check_deadline()
        with stage("decode"):
            pixels = decode_image(photo.data, self._image_limits)
        with stage("detect"):
            faces = self.networks.detector.detect(pixels)
        FACES_TOTAL.inc(len(faces))
        faces = sorted(faces, key=lambda face: face.box[2] * face.box[3], reverse=True)[:at_most]
        with stage("align"):
            crops = [align_face(pixels, face.landmarks) for face in faces]
            return [
                AlignedFace(face, measure_quality(face, pixels, crop), crop)
                for face, crop in zip(faces, crops, strict=True)
            ]

    def one_face(self, photo: Photo, choice: FaceChoice, *, part: str) -> AlignedFace:
        """The only face of a photo, or its largest.

        Raises:
            NoFace, SeveralFaces: as named; and as `faces`.
        """
        found = self.faces(photo)
        if not found:
            raise NoFace("no face was found; send a photo that shows one face clearly", part=part)
        if len(found) > 1 and choice == "single":
            raise SeveralFaces(
                f"{len(found)} faces were found; send a photo of one person, or ask for the largest (face=largest; "
                "of `facegallery import`: --largest)",
                part=part,
            )
        return found[0]

    def require_quality(self, face: AlignedFace, *, part: str) -> None:
        """Refuse a face that is too poor to be enrolled.

        Raises:
            LowQuality: with a sentence for each limit that it misses.
        """
        if found := complaints(face.quality, self._quality_limits):
            raise LowQuality(found, part=part)

    def embed(self, faces: Sequence[AlignedFace]) -> NDArray[np.float32]:
        """Embeddings (N, D) of the faces' crops.

        Raises:
            ModelFileError: the network gives none.
        """
        if not faces:
            return np.empty((0, self.dimension), np.float32)
        with stage("embed"):
            return self.networks.extractor.embed(np.stack([face.crop for face in faces]))
