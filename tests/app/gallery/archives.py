"""Galleries with crops, and what is done with archives of them."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from app.gallery.crops import encode_crop
from app.gallery.moving.archive import ArchiveReader, write_archive
from app.gallery.moving.archive_import import import_archive
from app.gallery.moving.archive_manifest import MANIFEST, SUBJECTS, TEMPLATES, Manifest
from app.gallery.moving.exporting import open_snapshot
from app.gallery.moving.portable import Stored
from app.gallery.policy import WantedRates
from app.gallery.records import NewTemplate
from app.gallery.store import GalleryStore
from model.pipeline import Networks
from model.quality import Quality

Templates = Callable[[int], list[NewTemplate]]


def templates_with_crops() -> Templates:
    """Makes templates of 128 dimensions with crops of noise."""
    random = np.random.default_rng(3)

    def make(wanted: int) -> list[NewTemplate]:
        made = []
        for _ in range(wanted):
            vector = random.normal(size=128).astype(np.float32)
            crop = random.integers(0, 256, (112, 112, 3)).astype(np.uint8)
            made.append(
                NewTemplate(
                    vector / np.linalg.norm(vector),
                    Quality(0.9, 80.5, 130.25, yaw=-3.5, pitch=2.0, roll=0.1),
                    hashlib.sha256(crop.tobytes()).hexdigest(),
                    encode_crop(crop),
                )
            )
        return made

    return make


def fill(store: GalleryStore, templates: Templates, extractor: str) -> None:
    """A gallery `people` with three subjects, one of them without templates."""
    store.create_gallery("people", extractor=extractor, dimension=128, policy=WantedRates(fpir=0.02))
    for key, count, metadata in (("anna", 2, {"room": [1, "深"]}), ("nobody", 0, {}), ("bob/é", 3, {"x": 2.5})):
        store.enroll("people", key, templates(count), metadata=metadata, extractor=extractor, dimension=128)


def export(store: GalleryStore, file: Path, subject: str | None = None, *, crops: bool = True) -> Manifest:
    with open_snapshot(store.engine, "people", subject=subject, seals=store.seals) as snapshot:
        return write_archive(file, snapshot, subject=subject, crops=crops)


def read_back(file: Path, store: GalleryStore, networks: Networks, gallery: str = "people", **options: Any) -> Stored:
    with ArchiveReader(file) as archive:
        return import_archive(archive, gallery, store, networks.extractor, **{"keep_crops": True, **options})


def lines(file: Path, member: str) -> list[dict[str, Any]]:
    with zipfile.ZipFile(file) as container:
        return [json.loads(line) for line in container.read(member).splitlines()]


def rewritten(file: Path, change: Callable[[dict[str, bytes]], None], *, honest: bool) -> Path:
    """The archive with other members; `honest`: the manifest knows their lengths and digests."""
    with zipfile.ZipFile(file) as container:
        members = {name: container.read(name) for name in container.namelist()}
    change(members)
    if honest:
        manifest = json.loads(members[MANIFEST])
        for name in manifest["members"]:
            data = members[name]
            manifest["members"][name] = {
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "lines": data.count(b"\n"),
            }
        manifest["counts"] |= {name[:-6]: manifest["members"][name]["lines"] for name in (SUBJECTS, TEMPLATES)}
        members[MANIFEST] = json.dumps(manifest).encode()
    changed = file.with_name("changed.zip")
    with zipfile.ZipFile(changed, "w") as container:
        for name, data in members.items():
            container.writestr(name, data)
    return changed
