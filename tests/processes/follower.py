"""A process of its own that searches a gallery: a line with an embedding in, a line with the nearest subject out."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from app.gallery.index import IndexKind, SegmentedIndex
from app.gallery.views.index_source import IndexSource
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.upkeep import Upkeep
from app.telemetry import set_up_logging
from tests.deployed import Deployed, deployed


def main(url: str, folder: str, name: str, kind: IndexKind) -> None:
    set_up_logging(form="console", level="warning")  # to standard error; the other end reads standard output
    with deployed(url, Path(folder), partial(IndexSource, kind=kind, snapshot_interval=0.5)) as parts:
        _answer(parts, name)


def _answer(parts: Deployed, name: str) -> None:
    store, history, source = parts.store, parts.history, parts.source
    gallery = store.gallery(name)
    replica = GalleryReplica(gallery, history, partial(source.make, gallery), source.snapshots_of(gallery), tended=True)
    replica.follow(*gallery.point)
    upkeep = Upkeep(lambda: [replica], history, source)
    upkeep.start()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "compressed":
            index = replica.view.index
            print(json.dumps(isinstance(index, SegmentedIndex) and index.compressed), flush=True)
            continue
        replica.catch_up(*store.gallery(name).point)
        probe = np.array([asked], np.float32)
        (found,) = replica.search(probe, top_k=1, rule="best")
        print(json.dumps([found[0].subject_id, found[0].distance] if found else None), flush=True)
    upkeep.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], cast(IndexKind, sys.argv[4]))
