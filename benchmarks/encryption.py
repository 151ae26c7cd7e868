"""What encryption at rest costs: start-up and enrolment with many templates, rotation, and opening sealed files.

    python benchmarks/encryption.py [--templates 100000] [--file-megabytes 512]

Everything is done on SQLite in a temporary folder, once sealed and once plain. Reading, sealing and opening are given
in processor seconds, the least of three; storing in elapsed time, most of which a disk takes.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import insert

from app.gallery.index import INDEX_KINDS
from app.gallery.records import NewTemplate
from app.gallery.sealing.encryption import PlainRows, RowIdentity, RowSeals, SealedRows, seal_value
from app.gallery.sealing.master_keys import MasterKey
from app.gallery.sealing.sealed_files import open_file, seal_file
from app.gallery.sealing.vault import Vault, open_vault
from app.gallery.sql.database import open_engine
from app.gallery.sql.history import GalleryHistory
from app.gallery.sql.migrations import migrate
from app.gallery.sql.rows import EMBEDDING, Sessions
from app.gallery.store import GalleryStore
from app.gallery.tables import Base, now
from app.gallery.views.replica import GalleryReplica
from model.quality import Quality

_DIMENSION, _EACH, _BATCH = 128, 3, 1000
_QUALITY = Quality(detection_score=0.9, face_size=80, sharpness=100, yaw=0, pitch=0, roll=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=int, default=100_000)
    parser.add_argument("--file-megabytes", type=int, default=512)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory(prefix="facegallery-") as folder:
        for sealed in (False, True):
            measure_gallery(Path(folder), arguments.templates, sealed=sealed)
    with tempfile.TemporaryDirectory(prefix="facegallery-", dir="/dev/shm") as memory:
        measure_files(Path(memory), arguments.file_megabytes * 2**20)


def measure_gallery(folder: Path, templates: int, *, sealed: bool) -> None:
    """Fill a gallery, load its index, enroll people, and where it is sealed rotate the master key."""
    name = "sealed" if sealed else "plain"
    vault = open_vault(
        open_engine(f"sqlite:///{folder}/{name}-vault.db", timeout=30),
        master_key=None,
        master_key_file=folder / "master.key",
        expected=False,
    )
    engine = open_engine(f"sqlite:///{folder}/{name}.db", timeout=30)
    migrate(engine)
    seals: RowSeals = SealedRows(vault) if sealed else PlainRows()
    store, history = GalleryStore(engine, seals=seals), GalleryHistory(engine, seals)
    store.create_gallery("people", extractor="net@1", dimension=_DIMENSION, policy=None)
    fill(store, vault if sealed else None, templates)
    gallery = store.gallery("people")

    index = partial(INDEX_KINDS["flat"], _DIMENSION)
    parts: dict[str, Callable[[], object]] = {
        "read": lambda: sum(len(block.ids) for block in history.template_blocks(gallery.id)),
        "read and indexed": lambda: GalleryReplica(gallery, history, index).catch_up(gallery.revision),
    }
    for part, work in parts.items():
        times = []
        for _ in range(3):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        print(f"{name}: {templates} templates of {templates // _EACH} people {part} in {min(times):.2f} s")

    for kind in ("new person", "known person"):
        times, busy = [], time.process_time()
        for number in range(50):
            key = f"new {number}" if kind == "new person" else "new 0"
            one = [new_template(os.urandom(32).hex())]
            start = time.perf_counter()
            store.enroll("people", key, one, metadata=None, extractor="net@1", dimension=_DIMENSION)
            times.append(time.perf_counter() - start)
        busy = (time.process_time() - busy) / len(times)
        print(
            f"{name}: a {kind} stored in {statistics.median(times) * 1000:.1f} ms, {busy * 1000:.1f} of them computing"
        )

    if sealed:
        start = time.process_time()
        vault.masters.replace([MasterKey.make(), *vault.masters.keys])
        vault.use_master(vault.masters.first)
        while vault.rewrap(500):
            pass
        taken = time.process_time() - start
        print(f"sealed: master key changed for {vault.wrapped_by()[vault.master]} keys in {taken:.1f} s")
    engine.dispose()
    vault.close()


def fill(store: GalleryStore, vault: Vault | None, templates: int) -> None:
    """Store people with some templates each, in large transactions."""
    gallery = store.gallery("people")
    for first in range(0, templates // _EACH, _BATCH):
        count = min(_BATCH, templates // _EACH - first)
        vectors = np.random.default_rng(first).normal(size=(count, _EACH, _DIMENSION)).astype(EMBEDDING)
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        keys = vault.new_keys("subject", count) if vault else [None] * count
        ids = range(first + 1, first + count + 1)
        moment = now()
        rows = []
        for subject_id, key, own in zip(ids, keys, vectors, strict=True):
            cipher = AESGCM(key.secret) if key else None
            for vector in own:
                place = RowIdentity("template", gallery.id, subject_id, os.urandom(32).hex())
                value = vector.tobytes()
                rows.append(
                    {
                        "gallery_id": gallery.id,
                        "subject_id": subject_id,
                        "embedding": seal_value(cipher, place, value) if cipher else value,
                        "detection_score": 0.9,
                        "face_size": 80.0,
                        "sharpness": 100.0,
                        "pose": {"yaw": 0.0, "pitch": 0.0, "roll": 0.0},
                        "crop_sha256": place.crop_sha256,
                        "created_at": moment,
                    }
                )
        people: list[dict[str, object]] = [
            {
                "id": subject_id,
                "gallery_id": gallery.id,
                "key": f"person {subject_id}",
                "metadata": {},
                "key_id": key.id if key else None,
                "created_at": moment,
                "updated_at": moment,
            }
            for subject_id, key in zip(ids, keys, strict=True)
        ]
        with Sessions(store.engine).writing() as session:
            session.connection().execute(insert(Base.metadata.tables["subject"]), people)
            session.connection().execute(insert(Base.metadata.tables["template"]), rows)


def new_template(digest: str) -> NewTemplate:
    """A random template of unit length."""
    vector = np.random.default_rng(int(digest[:12], 16)).normal(size=_DIMENSION).astype(np.float32)
    return NewTemplate(vector / np.linalg.norm(vector), _QUALITY, digest)


def measure_files(folder: Path, size: int) -> None:
    """Seal a file and open it, both in memory."""
    key, place = os.urandom(32), b"benchmark"
    block = os.urandom(2**20)
    with (folder / "plain").open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    steps: dict[str, Callable[[], None]] = {
        "sealed": lambda: seal_file(folder / "plain", folder / "sealed", key, place),
        "opened": lambda: open_file(folder / "sealed", folder / "opened", key, place),
    }
    for name, work in steps.items():
        times = []
        for _ in range(3):
            (folder / "opened").unlink(missing_ok=True)
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        print(f"a file of {size / 1e6:.0f} MB {name} at {size / min(times) / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
