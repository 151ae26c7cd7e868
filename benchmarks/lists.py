"""How many of a segment's lists a search should scan: time and decisions by their number, beside codes without lists.

    taskset -c 1 python benchmarks/lists.py [--templates 1000000] [--probes 2000]

Templates, probes and threshold as in `index.py`; exact distances rank what the codes propose, as in a search.
"""

import argparse
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
from index_measure import COUNT, Gallery, decide, draw
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from app.gallery.index.codebook import MOST_TRAINING, Codebook, Codes
from app.gallery.index.rows import Rows
from app.gallery.index.search import rank

_SHARES = 3 / 32, 3 / 16, 1 / 4, 5 / 16, 3 / 8, 1 / 2
_TIMED, _CHUNK, _TOGETHER = 500, 1024, 64


def main() -> None:
    """Print a row of a Markdown table for each number."""
    faiss.omp_set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=int, default=1_000_000)
    parser.add_argument("--probes", type=int, default=2000, help="mated ones, and as many non-mated ones")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery(Path(folder), arguments.templates)
        draw(gallery, arguments.probes)
        templates = gallery.array("templates")
        chosen = np.sort(np.random.default_rng(0).choice(len(templates), MOST_TRAINING, replace=False))
        codebook = Codebook.train(templates[chosen])
        print("| lists scanned | coded in s | p50 ms | p99 ms | mated agree % | non-mated % |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        codes, seconds = _coded(codebook.no_codes(), templates)
        _print("no lists", gallery, codes, seconds)
        codes, seconds = _coded(codebook.no_listed_codes(templates[chosen], len(templates)), templates)
        for share in _SHARES:
            codes.nprobe = round(share * codes.nlist)
            _print(f"{codes.nprobe} of {codes.nlist}", gallery, codes, seconds)


def _coded(codes: Codes, templates: NDArray[np.float32]) -> tuple[Codes, float]:
    start = time.perf_counter()
    for first in range(0, len(templates), _CHUNK):
        codes.add(np.ascontiguousarray(templates[first : first + _CHUNK]))
    return codes, time.perf_counter() - start


def _print(name: str, gallery: Gallery, codes: Codes, seconds: float) -> None:
    templates, probes, decided = gallery.array("templates"), gallery.array("probes"), gallery.decided
    size, half = len(templates), len(probes) // 2
    rows = Rows(templates, np.arange(size), np.ones(size, np.bool_), codes, size)
    same, times = [], []
    for first in track(range(0, len(probes), _TOGETHER), name, console=Console(stderr=True), transient=True):
        numbers = np.arange(first, min(first + _TOGETHER, len(probes)))
        found = rank([rows], np.ascontiguousarray(probes[numbers]), COUNT)
        same.append(decide(gallery, numbers, np.array([one.ids for one in found])) == decided[numbers])
    for probe in np.random.default_rng(0).permutation(probes)[:_TIMED]:
        start = time.perf_counter()
        rank([rows], probe[None], COUNT)
        times.append(time.perf_counter() - start)
    agreed = np.concatenate(same)
    p50, p99 = 1e3 * np.quantile(times, (0.5, 0.99))
    shares = f"{100 * agreed[:half].mean():.2f} | {100 * agreed[half:].mean():.2f}"
    print(f"| {name} | {seconds:.1f} | {p50:.2f} | {p99:.2f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
