"""A process under mixed load, made to be killed: it enrolls, searches, deletes subjects and templates, merges.

Every line of its journal is one write, whole or not there. Before a call it names the templates that the subjects
which the call is about have before and after it (none: no such subject); `done` says that the call was acknowledged,
and what it was. `broken` says what must not be, as that a call failed.

It says when it `starts` and when it has `loaded`, and works once it is told to: one that was not has acknowledged
nothing.
"""

import itertools
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.gallery.matching import Candidate
from app.gallery.views.replica import GalleryReplica
from app.gallery.views.upkeep import Upkeep
from app.telemetry import set_up_logging
from tests.deployed import Deployed, deployed
from tests.soak.people import DIMENSION, EXTRACTOR, GALLERY, SAME, SOURCE, embedding_of, templates_of


def _sorted(state: dict[str, set[str] | None]) -> dict[str, list[str] | None]:
    return {key: None if names is None else sorted(names) for key, names in state.items()}


def main(url: str, folder: str, journal: str, turn: int) -> None:
    set_up_logging(form="console", level="warning")  # to standard error; the other end reads standard output
    print("starts", flush=True)
    with deployed(url, Path(folder), SOURCE) as parts:
        _work(parts, journal, turn)


def _work(parts: Deployed, journal: str, turn: int) -> None:
    store, history, source = parts.store, parts.history, parts.source
    gallery = store.gallery(GALLERY)
    replica = GalleryReplica(gallery, history, partial(source.make, gallery), source.snapshots_of(gallery), tended=True)
    replica.follow(*gallery.point)
    upkeep = Upkeep(lambda: [replica], history, source, pause=0.02)
    upkeep.start()
    print("loaded", flush=True)
    sys.stdin.readline()
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(**entry: Any) -> None:
        os.write(file, json.dumps(entry).encode() + b"\n")

    def nearest(name: str) -> Candidate:
        """Who is nearest to a template, whether it is there or not."""
        replica.catch_up(*store.gallery(GALLERY).point)
        ((found,),) = replica.search(embedding_of(name)[None], top_k=1, rule="best")
        return found

    def work(thread: int) -> None:
        chance = np.random.default_rng([turn, thread])
        mine: dict[str, dict[str, int]] = {}  # ids of templates by their names, by subject

        @contextmanager
        def written(what: str, before: dict[str, set[str] | None], after: dict[str, set[str] | None]) -> Iterator[None]:
            note(thread=thread, before=_sorted(before), after=_sorted(after))
            yield
            note(thread=thread, done=what)

        def enroll(key: str) -> None:
            templates = templates_of(key, int(chance.integers(1, 4)))
            with written("enrolment", {key: None}, {key: {one.crop_sha256 for one in templates}}):
                made = store.enroll(GALLERY, key, templates, metadata=None, extractor=EXTRACTOR, dimension=DIMENSION)
            mine[key] = {one.crop_sha256: one.id for one in made.added}
            if nearest(f"{key}-0").distance > SAME:
                note(broken=f"{key} was acknowledged and is not found")

        def delete(key: str) -> None:
            with written("erasure", {key: set(mine[key])}, {key: None}):
                store.delete_subject(GALLERY, key)
            for name in mine.pop(key):
                if nearest(name).distance < SAME:
                    note(broken=f"{key} was erased and is found")

        def delete_template(key: str) -> None:
            name = str(chance.choice(list(mine[key])))
            with written("erasure of a template", {key: set(mine[key])}, {key: mine[key].keys() - {name}}):
                store.delete_template(GALLERY, mine[key].pop(name))
            if nearest(name).distance < SAME:
                note(broken=f"{name} was erased and is found")

        def merge(key: str, into: str) -> None:
            gone, kept = set(mine[key]), set(mine[into])
            with written("merge", {key: gone, into: kept}, {key: None, into: gone | kept}):
                subject = store.merge_subjects(GALLERY, key, into)
            moved = mine.pop(key)
            mine[into] |= moved
            for name in moved:
                found = nearest(name)
                if found.distance > SAME or found.subject_id != subject.id:
                    note(broken=f"{name} is {into}'s now and is not found as such")

        for number in itertools.count():
            enroll(f"{turn}-{thread}-{number}")
            key, *others = chance.permutation(list(mine)).tolist()
            step = chance.random()
            if step < 0.25:
                delete(key)
            elif step < 0.45 and mine[key]:
                delete_template(key)
            elif step < 0.6 and others:
                merge(key, others[0])

    def worked(thread: int) -> None:
        try:
            work(thread)
        except BaseException as error:
            note(broken=f"a call failed: {error!r}")
            raise

    threads = [threading.Thread(target=worked, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
