"""Made-up people of the soak: their embeddings are a function of their names."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.gallery.index import SegmentedIndex, TemplateIndex
from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.upkeep import Limits
from app.gallery.records import Gallery, NewTemplate
from app.gallery.views.index_source import IndexSource
from model.quality import Quality

GALLERY, EXTRACTOR, DIMENSION = "soak", "net@0123456789ab", 32
QUALITY = {"detection_score": 0.9, "face_size": 80.0, "sharpness": 100.0, "yaw": 0.0, "pitch": 0.0, "roll": 0.0}


_LIMITS = Limits(block=256, tail=32, merged=4, dead_share=0.05, least_dead=8)
SAME = 1e-3  # distance within which a template is found as itself
BASE = 11  # subjects of a hundred templates that are there from the start, so that there are codes


def embedding_of(name: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).normal(size=DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def templates_of(key: str, count: int) -> list[NewTemplate]:
    """A person's templates; each has its name in place of its crop's digest."""
    names = [f"{key}-{number}" for number in range(count)]
    return [NewTemplate(embedding_of(name), Quality(**QUALITY), name) for name in names]


class SmallIndexSource(IndexSource):
    """Indexes that compress, merge and compact at every turn, so that a kill often falls into that."""

    def make(self, gallery: Gallery) -> TemplateIndex:
        return SegmentedIndex(gallery.dimension, compress_from=LEAST_TRAINING, limits=_LIMITS)

    def _open(self, dimension: int, folder: Path) -> SegmentedIndex:
        return SegmentedIndex.load(folder, dimension, compress_from=LEAST_TRAINING, limits=_LIMITS)


SOURCE = partial(SmallIndexSource, snapshot_interval=0.01)  # at every look, so that a kill often falls into a snapshot
