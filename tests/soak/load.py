"""A process under mixed load, made to be killed: enrolls, searches, deletes, and writes down what was acknowledged.

Every line of its journal is one write, whole or not there: `begin` before the call, `done` after it.
"""

import itertools
import json
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.gallery.database import open_engine
from app.gallery.history import GalleryHistory
from app.gallery.index_source import IndexSource
from app.gallery.records import NewTemplate
from app.gallery.replica import GalleryReplica
from app.gallery.store import GalleryStore
from app.gallery.upkeep import Upkeep
from app.telemetry import set_up_logging
from model.quality import Quality
from tests.soak.people import DIMENSION, EXTRACTOR, GALLERY, QUALITY, embedding_of, index_source


def main(url: str, folder: str, journal: str, turn: int) -> None:
    set_up_logging(form="console", level="warning")  # to standard error; the other end reads standard output
    engine = open_engine(url, timeout=30)
    store, history = GalleryStore(engine), GalleryHistory(engine)
    source: IndexSource = index_source(Path(folder))
    gallery = store.gallery(GALLERY)
    replica = GalleryReplica(gallery, history, partial(source.make, gallery), source.snapshots_of(gallery), tended=True)
    replica.follow(gallery.revision)
    upkeep = Upkeep(lambda: [replica], history, source, pause=0.02)
    upkeep.start()
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(**entry: Any) -> None:
        os.write(file, json.dumps(entry).encode() + b"\n")

    def work(thread: int) -> None:
        chance = np.random.default_rng([turn, thread])
        mine: list[str] = []
        for number in itertools.count():
            key = f"{turn}-{thread}-{number}"
            templates = [
                NewTemplate(embedding_of(f"{key}-{one}"), Quality(**QUALITY), f"{key}-{one}")
                for one in range(chance.integers(1, 4))
            ]
            note(begin="enroll", key=key, templates=len(templates))
            store.enroll(GALLERY, key, templates, metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
            note(done="enroll", key=key)
            mine.append(key)
            replica.catch_up(store.gallery(GALLERY).revision)
            ((nearest,),) = replica.search(templates[0].embedding[None], top_k=1, rule="best")
            if nearest.distance > 1e-3:
                note(broken=f"{key} was acknowledged and is not found")
            if chance.random() < 0.4:
                gone = mine.pop(int(chance.integers(len(mine))))
                note(begin="delete", key=gone)
                store.delete_subject(GALLERY, gone)
                note(done="delete", key=gone)
                replica.catch_up(store.gallery(GALLERY).revision)
                ((nearest,),) = replica.search(embedding_of(f"{gone}-0")[None], top_k=1, rule="best")
                if nearest.distance < 1e-3:
                    note(broken=f"{gone} was erased and is found")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    print("loaded", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
