"""Compare indexes of templates: search times, decisions, memory, building, changing, restarting.

    taskset -c 1 python benchmarks/index.py [--sizes 10000,100000,1000000] [--only ENGINE …] [--output DIR]

One core: give it one, and nothing else to do. Each engine is measured in a process of its own, on the same templates of
people drawn as `index_data.py` says, three for each. Writes `index.csv`, two plots and a page, `index.md`; a run goes
on where one with the same output stopped. All figures of a table that are compared should come from one run.
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

P = ParamSpec("P")
Result = TypeVar("Result")

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Measure what is not in the table yet, and write table and plots after each engine."""
    for variable in _ONE_THREAD:  # read when the libraries are loaded, here and in the processes below
        os.environ[variable] = "1"
    from index_engines import ENGINES
    from index_measure import Gallery, draw, measure
    from index_report import markdown, plot, read_csv, wanted, write_csv, write_page

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="numbers of templates, with commas between")
    parser.add_argument("--only", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--output", type=Path, default=Path("runs/index"), help="gets the CSV, the plots and the page")
    parser.add_argument("--probes", type=int, default=4000, help="mated ones, and as many non-mated ones")
    parser.add_argument("--scratch", type=Path, help="folder for the drawn templates, 0.5 GB for each million")
    parser.add_argument("--build-cores", type=int, default=1, help="to build FAISS, pgvector, Milvus on")
    parser.add_argument("--device", default="", help="torch's name of one that finds the exact decisions, as cuda")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = arguments.output / "index.csv"
    rows = read_csv(table)
    done = {(row["engine"], row["templates"]) for row in rows}
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("")
        for size in map(int, arguments.sizes.split(",")):
            names = [name for name in arguments.only if size <= ENGINES[name].largest and (name, size) not in done]
            progress.reset(bar, total=len(names), description=f"{size:,}: drawing")
            if not names:
                continue
            with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
                gallery = Gallery(Path(folder), size)
                _apart(draw, gallery, arguments.probes, arguments.device)
                for name in names:
                    progress.update(bar, description=f"{size:,}: {name}")
                    figures = _apart(measure, name, gallery, arguments.build_cores)
                    rows.append({"engine": name, "templates": size, "threshold": gallery.threshold, **figures})
                    rows.sort(key=lambda row: (row["templates"], list(ENGINES).index(str(row["engine"]))))
                    write_csv(rows, table)
                    progress.advance(bar)
    plot(rows, arguments.output)
    write_page(rows, arguments.output)
    print(markdown(rows))
    print("\n".join(one.line for one in wanted(rows)))


def _apart(work: Callable[P, Result], *arguments: P.args, **options: P.kwargs) -> Result:
    """Call a function in a new process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments, **options).result()


if __name__ == "__main__":
    main()
