"""What a thorough search is for: decisions at looser thresholds, and the nearest people whoever they are.

    taskset -c 1 python benchmarks/looser.py [--templates 100000] [--probes 2000] [--csv FILE]

Templates and probes as in `index.py`; candidates as an identify finds them, by the quick and by the thorough search of
compressed codes, beside those by all distances. The time is the processor's, of an index's search for one probe.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
from index_data import TEMPLATES
from index_engines import OURS, Ids, Vectors
from index_measure import COUNT, Gallery, compared, draw
from index_report import append_csv
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from app.gallery.policy import DEFAULT_POLICY, WantedRates, threshold_for
from model.card import read_card
from model.pipeline import WEIGHTS

_NEAREST = 5
_TIMED, _TOGETHER = 500, 16

_RATES = {
    "default": DEFAULT_POLICY,
    "FPIR 10 %": WantedRates(fpir=0.1),
    "FMR 1e-5": WantedRates(fmr=1e-5),
    "FMR 1e-4": WantedRates(fmr=1e-4),
}

People = list[tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Of each probe the subjects (S,), nearest first, and their distances (S,)."""


def main() -> None:
    """Print a Markdown table, and write it as CSV."""
    faiss.omp_set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=int, default=100_000)
    parser.add_argument("--probes", type=int, default=2000, help="mated ones, and as many non-mated ones")
    parser.add_argument("--scratch", type=Path, help="folder for the drawn templates, 0.5 GB for each million")
    parser.add_argument("--csv", type=Path, help="gets the rows, too, behind those that are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        gallery = Gallery(Path(folder), arguments.templates)
        draw(gallery, arguments.probes)
        templates, probes = gallery.array("templates"), gallery.array("probes")
        wanted = _people(gallery, lambda some: np.asarray(faiss.knn(some, templates, COUNT)[1]), "all distances")
        engine = OURS["compressed"]()
        engine.build(np.arange(len(templates)), templates)
        rows = list[list[str]]()
        for name, thorough in (("quick", False), ("thorough", True)):

            def search(some: Vectors, *, how: bool = thorough) -> Ids:
                return np.stack([one.ids for one in engine.index.search(some, COUNT, thorough=how)])

            found = _people(gallery, search, name)
            mixed = np.random.default_rng(0).permutation(probes)[:_TIMED]
            rows += _rows(gallery, name, _median(search, mixed), found, wanted)
    _show(rows, arguments.csv)


def _people(gallery: Gallery, search: Callable[[Vectors], Ids], name: str) -> People:
    templates, probes = gallery.array("templates"), gallery.array("probes")
    found: People = []
    for first in track(range(0, len(probes), _TOGETHER), name, console=Console(stderr=True), transient=True):
        some = np.ascontiguousarray(probes[first : first + _TOGETHER])
        found += [compared(probe, templates, ids) for probe, ids in zip(some, search(some), strict=True)]
    return found


def _median(search: Callable[[Vectors], Ids], probes: Vectors) -> float:
    """Seconds of the processor for one probe."""
    times = []
    for probe in probes:
        start = time.thread_time()
        search(probe[None])
        times.append(time.thread_time() - start)
    return float(np.median(times))


def _rows(gallery: Gallery, name: str, seconds: float, found: People, wanted: People) -> list[list[str]]:
    table, half = read_card(WEIGHTS / "sface").thresholds, len(found) // 2
    rows = []
    for policy, rates in _RATES.items():
        threshold = threshold_for(rates, table, gallery.size // TEMPLATES)
        decided, exact = _decided(found, threshold), _decided(wanted, threshold)
        same = decided == exact
        cells = [100 * same[:half].mean(), 100 * same[half:].mean(), 100 * (exact[half:] >= 0).mean()]
        near = [100 * _recall(found[part], wanted[part]) for part in (slice(half), slice(half, None))]
        numbers = [f"{number:.2f}" for number in (1e3 * seconds, *cells)] + [f"{share:.1f}" for share in near]
        rows.append([str(gallery.size), name, policy, f"{threshold:.4f}", *numbers])
    return rows


def _decided(people: People, threshold: float) -> NDArray[np.int64]:
    """The subject that is named for each probe, or -1."""
    return np.array([subjects[0] if distances[0] <= threshold else -1 for subjects, distances in people])


def _recall(found: People, wanted: People) -> float:
    """Share of the nearest people of each probe who are among the nearest that were found."""
    pairs = zip(found, wanted, strict=True)
    return float(np.mean([len(np.intersect1d(a[0][:_NEAREST], b[0][:_NEAREST])) / _NEAREST for a, b in pairs]))


_COLUMNS = (
    "templates",
    "search",
    "policy",
    "threshold",
    "p50 ms",
    "mated agree %",
    "non-mated %",
    "strangers named %",
    "nearest five, mated %",
    "non-mated five %",
)


def _show(rows: Sequence[Sequence[str]], file: Path | None) -> None:
    print("|", " | ".join(_COLUMNS), "|")
    print("|" + " ---: |" * len(_COLUMNS))
    for row in rows:
        print("|", " | ".join(row), "|")
    if file is not None:
        append_csv(_COLUMNS, rows, file)


if __name__ == "__main__":
    main()
