"""Made-up people of the soak: their embeddings are a function of their names."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.gallery.index_source import IndexSource

GALLERY, EXTRACTOR, DIMENSION = "soak", "net@0123456789ab", 32
QUALITY = {"detection_score": 0.9, "face_size": 80.0, "sharpness": 100.0, "yaw": 0.0, "pitch": 0.0, "roll": 0.0}


def embedding_of(name: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).normal(size=DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def index_source(folder: Path) -> IndexSource:
    """Snapshots at every look, so that a kill often falls into one."""
    return IndexSource(kind="auto", folder=folder, snapshot_interval=0.01, erase_interval=1.0)
