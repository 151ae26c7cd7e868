"""How often a graph finds whom the exact index names, by its links and by the templates that a search keeps.

    python benchmarks/graphs.py [--size 100000] [--probes 2000] [--links 16 32] [--kept 144 300] [--milvus]

The templates of `index.py`, in pgvector out of a wheel or in the server of the package `milvus`. Each row is a search
of all probes, half of them mated, one after the other. A million templates take pgvector most of an hour to build.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from index_measure import COUNT, Gallery, decide, draw
from index_servers import Ids, MilvusServer, Postgresql, Vectors
from rich.progress import track

_EF_CONSTRUCTION = 128


class Pgvector(Postgresql):
    """A table with a graph of so many links."""

    def __init__(self, links: int) -> None:
        super().__init__(hnsw=False)
        self._links = links

    def build(self, ids: Ids, vectors: Vectors) -> None:
        """Copy all rows, and build the graph as the service does."""
        super().build(ids, vectors)
        self._connection.execute("SET enable_seqscan = off")
        self._connection.execute(
            "CREATE INDEX ON template USING hnsw (embedding vector_l2_ops) "
            f"WITH (m = {self._links}, ef_construction = {_EF_CONSTRUCTION})"
        )

    def keep(self, templates: int) -> None:
        """Have searches keep so many templates."""
        self._connection.execute(f"SET hnsw.ef_search = {templates}")


class Milvus(MilvusServer):
    """A collection with a graph of so many links."""

    def __init__(self, links: int) -> None:
        self._index: Mapping[str, Any] = {
            "index_type": "HNSW",
            "params": {"M": links, "efConstruction": _EF_CONSTRUCTION},
        }
        super().__init__()

    def keep(self, templates: int) -> None:
        """Have searches keep so many templates."""
        self._search: Mapping[str, Any] = {"ef": templates}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000, help="templates")
    parser.add_argument("--probes", type=int, default=2000, help="mated ones, and as many others")
    parser.add_argument("--links", type=int, nargs="+", default=[16, 32], help="of each template in the graph")
    parser.add_argument("--kept", type=int, nargs="+", default=[144, 300], help="templates that a search keeps")
    parser.add_argument("--milvus", action="store_true", help="Milvus instead of pgvector")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery(Path(folder), arguments.size)
        draw(gallery, arguments.probes)
        print("| links | built in s | bytes each | kept | p50 ms | p99 ms | mated agree % | non-mated % |")
        print("|" + " ---: |" * 8)
        for links in arguments.links:
            engine = Milvus(links) if arguments.milvus else Pgvector(links)
            try:
                templates, start = gallery.array("templates"), time.perf_counter()
                engine.build(np.arange(len(templates)), templates)
                cells = [links, f"{time.perf_counter() - start:.0f}", (engine.bytes_held() or 0) // len(templates)]
                for kept in arguments.kept:
                    engine.keep(kept)
                    print("|", " | ".join(map(str, [*cells, kept, *_measured(engine, gallery)])), "|", flush=True)
            finally:
                engine.close()


def _measured(engine: Pgvector | Milvus, gallery: Gallery) -> list[str]:
    """Cells: median and 99 % of the search times, and the shares of decisions that are the exact index's."""
    probes, decided = gallery.array("probes"), gallery.decided
    walls, same = [], []
    for number in track(range(len(probes)), "searching", transient=True):
        start = time.perf_counter()
        nearest = engine.search(np.ascontiguousarray(probes[number][None]), COUNT)
        walls.append(time.perf_counter() - start)
        same.append(bool(decide(gallery, np.array([number]), nearest)[0] == decided[number]))
    half = len(probes) // 2
    shares = [f"{100 * np.mean(part):.2f}" for part in (same[:half], same[half:])]
    return [*(f"{1000 * np.quantile(walls, share):.2f}" for share in (0.5, 0.99)), *shares]


if __name__ == "__main__":
    main()
