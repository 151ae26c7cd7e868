"""What stops searches beside all changes to an index, and beside none: the index, or the machine.

    taskset -c 1 python benchmarks/stops.py [--sizes 100000,1000000] [--kinds compressed] [--csv FILE] [--plot PICTURE]

The same changes as in `index.py`, on one core. The kernel's own account says of each search how long threads of this
process had the core meanwhile, the search's own and others, whether the search's thread gave it away by itself (it
waited for a lock, or for the disk), and whether pages had to be read from a file. A search that took 20 ms more than
the median alone was stopped by

- the host: the search's own thread worked for so long, while or within a second after the machine told its host of
  memory that it does not use (`host_reports.py`; empty, and counted as the process, where the kernel does not tell);
- the process: its threads, the search's own among them, had the core for so long;
- the disk: pages had to be read;
- waiting: it gave the core away by itself at least once, as for a lock; for how long is not told, and the machine may
  have held it up then;
- the machine: the search could have gone on all the time, and the core was with the host, or with other programs.

A core that a host slows down looks like work of the process; searches beside nothing, where no other thread runs, show
how often.
"""

import argparse
import gc
import os
import resource
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from host_reports import Moments, host_reports
from index_changes import REST_SECONDS, beside_all_changes
from index_engines import OURS, Vectors
from index_measure import COUNT, STOP, Gallery, draw
from index_report import append_csv
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from app.gallery.index import use_no_huge_pages

_ALONE_SECONDS = 5.0
_REPORTED_SECONDS = 1.0  # after a report in which all memory may have to be found anew
_CAUSES = "host", "process", "disk", "waiting", "machine"


@dataclass(frozen=True, slots=True)
class Searches:
    """What the kernel tells of searches one after the other.

    Args:
        began: moment at which each began, in seconds of `time.perf_counter`, (S,).
        wall: seconds of each by the clock, (S,).
        process: seconds for which threads of this process had a core, (S,).
        own: seconds for which the search's own thread had it, (S,).
        waits: times that the search's thread gave the core away by itself, (S,).
        reads: pages that were read from files for it, (S,).
    """

    began: NDArray[np.float64]
    wall: NDArray[np.float64]
    process: NDArray[np.float64]
    own: NDArray[np.float64]
    waits: NDArray[np.float64]
    reads: NDArray[np.float64]

    def stopped(self, limit: float) -> NDArray[np.bool_]:
        """Which took longer than a limit in seconds, (S,)."""
        return self.wall > limit

    def reported(self, reports: Moments | None) -> NDArray[np.bool_]:
        """During, or within a second before, which the machine is known to have begun a report to its host, (S,)."""
        if reports is None:
            return np.zeros(len(self.wall), np.bool_)
        first = np.searchsorted(reports, self.began - _REPORTED_SECONDS)
        return np.append(reports, np.inf)[first] <= self.began + self.wall

    def by_host(self, limit: float, reports: Moments | None) -> NDArray[np.bool_]:
        """Which the host stopped, (S,)."""
        return self.stopped(limit) & (self.own > limit) & self.reported(reports)

    def causes(self, limit: float, reports: Moments | None) -> dict[str, int]:
        """How many were stopped by what, with the moments at which the machine told its host of memory."""
        left, counted = self.stopped(limit), list[int]()
        for met in (
            self.by_host(limit, reports),
            self.process > limit,
            self.reads > 0,
            self.waits > 0,
            np.ones_like(left),
        ):
            counted.append(int((left & met).sum()))
            left = left & ~met
        return dict(zip(_CAUSES, counted, strict=True))


def main() -> None:
    """Print a line for each index beside changes and beside nothing, and write the CSV and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100000,1000000", help="numbers of templates, with commas between")
    parser.add_argument("--kinds", nargs="+", choices=list(OURS), default=list(OURS)[:2])
    parser.add_argument("--probes", type=int, default=1000, help="mated ones, and as many non-mated ones")
    parser.add_argument("--scratch", type=Path, help="folder for the drawn templates, 0.5 GB for each million")
    parser.add_argument("--huge-pages", action="store_true", help="let the system make them, as the service does not")
    parser.add_argument("--csv", type=Path, help="gets the rows, too, behind those that are there")
    parser.add_argument("--plot", type=Path, help="gets a picture of the last size and kind")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) > 1:
        parser.error("name one core, as with taskset -c 1: a second one would hide what the index takes of it")
    faiss.omp_set_num_threads(1)
    if not arguments.huge_pages:
        use_no_huge_pages()
    for size in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            gallery = Gallery(Path(folder), size)
            draw(gallery, arguments.probes)
            for kind in arguments.kinds:
                with host_reports() as told:
                    limit, found = _measure(kind, gallery)
                    reports = told() if told else None
                for name, searches in found.items():
                    _tell(_row(kind, size, name, searches, limit, reports), arguments.csv)
    if arguments.plot:
        _plot(found, limit, reports, arguments.plot, f"{kind}, {size:,} templates")


def _measure(kind: str, gallery: Gallery) -> tuple[float, dict[str, Searches]]:
    """Seconds from which a search is stopped, and the searches beside all changes and beside nothing."""
    templates, probes = gallery.array("templates"), np.random.default_rng(0).permutation(gallery.array("probes"))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{gallery.size:,}, {kind}", total=3)
        engine = OURS[kind]()
        engine.build(np.arange(len(templates)), templates)
        index = engine.index

        def search(probe: Vectors) -> object:
            return index.search(probe, COUNT)

        gc.freeze()  # as the service does
        _watched(search, probes, _for(1.0))
        limit = float(np.median(_watched(search, probes, _for(_ALONE_SECONDS)).wall)) + STOP
        progress.advance(bar)
        changes = beside_all_changes(index, templates, gallery.array("fresh"), partial(_watched, search, probes))
        progress.advance(bar)
        time.sleep(REST_SECONDS)
        _watched(search, probes, _for(1.0))  # what the host gave to others in the rest is found anew
        nothing = _watched(search, probes, _for(float(sum(one.wall.sum() for one in changes))))
        progress.advance(bar)
    columns = zip(*(astuple(one) for one in changes), strict=True)
    return limit, {"changes": Searches(*map(np.concatenate, columns)), "nothing": nothing}


def _for(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end


def _watched(search: Callable[[Vectors], object], probes: Vectors, going: Callable[[], bool]) -> Searches:
    """Search one probe after the other as long as it is going on, at least once."""
    seen, done = array("d", _look()), 0  # of numbers: a list of tuples would be garbage to be looked through
    while not done or going():
        search(probes[done % len(probes)][None])
        seen.extend(_look())
        done += 1
    looks = np.array(seen).reshape(done + 1, -1)
    return Searches(looks[:-1, 0], *np.diff(looks, axis=0).T)


def _look() -> tuple[float, float, float, int, int]:
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return time.perf_counter(), time.process_time(), time.thread_time(), used.ru_nvcsw, used.ru_majflt


def _row(kind: str, size: int, name: str, searches: Searches, limit: float, reports: Moments | None) -> dict[str, str]:
    near, causes = (
        searches.wall[searches.reported(reports)].sum() / searches.wall.sum(),
        searches.causes(limit, reports),
    )
    unknown = {"close to a report %": "", "by host": ""} if reports is None else {}
    return {
        "engine": kind,
        "templates": str(size),
        "beside": name,
        "searches": str(len(searches.wall)),
        "p50 ms": f"{1e3 * np.median(searches.wall):.2f}",
        "p99 ms": f"{1e3 * np.quantile(searches.wall, 0.99):.2f}",
        "longest ms": f"{1e3 * searches.wall.max():.1f}",
        "longest else ms": f"{1e3 * searches.wall[~searches.by_host(limit, reports)].max():.1f}",
        "close to a report %": f"{100 * near:.1f}",
        "stops": str(int(searches.stopped(limit).sum())),
        **{f"by {cause}": str(count) for cause, count in causes.items()},
        **unknown,
    }


def _tell(row: Mapping[str, str], file: Path | None) -> None:
    print("; ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if file is not None:
        append_csv(list(row), [list(row.values())], file)


def _plot(found: Mapping[str, Searches], limit: float, reports: Moments | None, path: Path, title: str) -> None:
    """Which share of the searches took longer than a time."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for (name, searches), colour in zip(found.items(), ("tab:blue", "tab:gray"), strict=True):
        for label, times, style in (
            ("by the clock", searches.wall, "-"),
            ("but for the host's stops", searches.wall[~searches.by_host(limit, reports)], ":"),
        ):
            share = 1 - np.arange(len(times)) / len(times)
            axes.plot(1e3 * np.sort(times), share, style, color=colour, label=f"beside {name}, {label}")
    axes.axvline(1e3 * limit, color="tab:red", linewidth=0.9, label="stopped: 20 ms more than the median alone")
    axes.set(xscale="log", yscale="log", xlabel="a search, ms", ylabel="share that took longer", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
