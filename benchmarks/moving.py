"""How long it takes to move a large gallery: out, in, checked, searched for doubles, served, to another extractor.

    python benchmarks/moving.py [--templates 100000] [--photos DIR] [--only-starts]

Everything but the last part runs as an operator runs it, as `facegallery` commands on a sealed SQLite gallery in a
temporary folder; the start of a command, 1.5 s of the processor, is in its figure. Embeddings are drawn as
`index_data.py` says, three templates for each person; with `--photos`, a folder with a folder of photos for each person
is imported as well. The last part is the exchange of embeddings at the end of `facegallery reembed`: until it is over
nobody else writes to SQLite. A start says how much memory the service has then, and an import of photos how long a kept
crop is. With `--only-starts` the gallery is filled and the service started, and no more.
"""

import argparse
import os
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from drawn_gallery import DIMENSION, Place, fill
from serving import resident_bytes, service_on

from app.commands.options import opened_store
from app.gallery.reembedding.store import ReembeddingStore
from app.gallery.store import GalleryStore

_PROCESSES = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN


def main() -> None:
    """Measure and print one line after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=int, default=100_000)
    parser.add_argument("--photos", type=Path, help="a folder of people, to be imported")
    parser.add_argument("--only-starts", action="store_true", help="measure starts of the service alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="facegallery-") as folder:
        here, there = Place(Path(folder) / "here"), Place(Path(folder) / "there")
        os.environ.update(here.settings)
        here.command("migrate")
        with opened_store() as store:
            _timed("store them by transactions of 1,000 people", lambda: fill(store, arguments.templates))
        stored, sealed = ((here.folder / name).stat().st_size / 1e6 for name in ("gallery.db", "vault.db"))
        print(f"database: {stored:.0f} MB, vault: {sealed:.0f} MB")
        if arguments.only_starts:
            _start_all(here, Path(folder))
            return
        archive, copy = Path(folder) / "gallery.zip", Path(folder) / "copy.db"
        _timed("export", lambda: here.command("export", str(archive)))
        print(f"archive: {archive.stat().st_size / 2**20:.0f} MiB")
        there.command("migrate")
        _timed("import of the archive", lambda: there.command("import", str(archive)))
        _timed("import of the archive again, which adds nothing", lambda: there.command("import", str(archive)))
        _timed("duplicates", lambda: here.command("duplicates"))
        _timed("check", lambda: here.command("check"))
        _timed("backup", lambda: here.command("backup", str(copy)))
        _start_all(here, Path(folder))
        if arguments.photos is not None:
            count = sum(1 for path in arguments.photos.rglob("*") if path.is_file())
            taken = _timed(
                f"import of {count} photos", lambda: there.command("import", str(arguments.photos), "-g", "new")
            )
            print(f"{count / taken:.1f} photos in a second of the processor")
            os.environ["FACEGALLERY_KEEP_CROPS"] = "true"
            _timed(
                "the same again, which adds the crops",
                lambda: there.command("import", str(arguments.photos), "-g", "new"),
            )
            with sqlite3.connect(there.folder / "gallery.db") as database:
                crops, size = database.execute("select count(*), avg(length(image)) from crop").fetchone()
            print(f"{crops} sealed crops of {size:.0f} bytes each")
        with opened_store() as store:
            _exchange(store)


def _start_all(filled: Place, folder: Path) -> None:
    """Start a service on nothing, on a gallery without a snapshot, and on the snapshot that the last one has left."""
    (empty := Place(folder / "empty")).command("migrate")
    _started("with an empty gallery", empty)
    _started("without a snapshot", filled)
    _started("from the sealed snapshot that it wrote at its end", filled)


def _started(name: str, place: Place) -> None:
    """Print how long a start of the service took, until `/readyz` said yes, and the process's resident memory then."""
    start = time.perf_counter()
    with service_on(place.settings) as url:
        taken = time.perf_counter() - start
        print(f"start of the service {name}: {taken:.1f} s, {resident_bytes(url) / 1e6:.0f} MB", flush=True)


def _timed(name: str, work: Callable[[], object]) -> float:
    """Print how long it took, and how long this process and its children computed; answers the latter."""
    start, busy = time.perf_counter(), _processor()
    work()
    taken, busy = time.perf_counter() - start, _processor() - busy
    print(f"{name}: {taken:.1f} s, {busy:.1f} s of them on the processor", flush=True)
    return busy


def _processor() -> float:
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in _PROCESSES)


def _exchange(store: GalleryStore) -> None:
    """Embeddings of another extractor for all templates, and the exchange there and back."""
    gallery, moves, random = (
        store.gallery("default"),
        ReembeddingStore(store.engine, store.seals),
        np.random.default_rng(0),
    )
    last, total = 0, moves.count_missing(gallery, "other@1")

    def beside() -> None:
        nonlocal last
        while last < total:
            ids = range(last + 1, min(last + 128, total) + 1)
            vectors = random.normal(size=(len(ids), DIMENSION)).astype(np.float32)
            moves.add(gallery, "other@1", ids, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
            last = ids[-1]

    _timed("reembed: store the new embeddings beside the old", beside)
    for name, to in (("there", "other@1"), ("back", gallery.extractor)):
        now_at = store.gallery("default")
        _timed(
            f"reembed: the exchange, {name}",
            lambda to=to, now_at=now_at: moves.switch(now_at, to, dimension=DIMENSION, unusable=(), with_crops=False),  # type: ignore[misc]
        )
        assert store.gallery("default").extractor == to


if __name__ == "__main__":
    main()
