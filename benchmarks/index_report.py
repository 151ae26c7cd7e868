"""The figures of `index.py` as CSV, Markdown, plots, and what was to be reached."""

import csv
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from app.gallery.index import COMPRESS_FROM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, float | str]

FLOAT32 = 512  # bytes of an embedding
_LESS = ", less what the machine withheld"
FIELDS = (
    "engine",
    "templates",
    "build_s",
    "build_cores",
    "p50_s",
    "p99_s",
    "mated_agreement",
    "non_mated_agreement",
    "mated_named",
    "non_mated_named",
    "compared",
    "bytes",
    "add_s",
    "remove_s",
    "save_s",
    "restart_s",
    "busy_p50_s",
    "busy_p99_s",
    "busy_p99_given_s",
    "longest_alone_s",
    "longest_busy_s",
    "longest_upkeep_s",
    "rounds",
    "upkeep_searches",
    "upkeep_stops",
    "still_searches",
    "longest_still_s",
    "still_stops",
    "longest_given_s",
    "given_stops",
    "longest_still_given_s",
    "still_given_stops",
    "withheld_share",
    "longest_pause_s",
    "threshold",
)


def _milliseconds(value: float) -> str:
    return f"{1e3 * value:.2f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}"


Column = tuple[str, str, Callable[[float], str]]
_COLUMNS: tuple[Column, ...] = (
    ("p50 ms", "p50_s", _milliseconds),
    ("p99 ms", "p99_s", _milliseconds),
    ("mated agree %", "mated_agreement", _percent),
    ("non-mated %", "non_mated_agreement", _percent),
    ("of so many", "compared", _number),
    ("bytes each", "bytes", _number),
    ("build s", "build_s", lambda value: f"{value:.2f}"),
    ("add 1,000 ms", "add_s", lambda value: f"{1e3 * value:.1f}"),
    ("remove 1,000 ms", "remove_s", lambda value: f"{1e3 * value:.1f}"),
    ("restart s", "restart_s", lambda value: f"{value:.2f}"),
)
_BESIDE: tuple[Column, ...] = (
    ("busy: p50 ms", "busy_p50_s", _milliseconds),
    ("p99 ms", "busy_p99_s", _milliseconds),
    ("given", "busy_p99_given_s", _milliseconds),
    ("changes: searches", "upkeep_searches", _number),
    ("longest ms", "longest_upkeep_s", lambda value: f"{1e3 * value:.1f}"),
    ("given", "longest_given_s", lambda value: f"{1e3 * value:.1f}"),
    ("stops", "upkeep_stops", _number),
    ("given", "given_stops", _number),
    ("nothing: searches", "still_searches", _number),
    ("longest ms", "longest_still_s", lambda value: f"{1e3 * value:.1f}"),
    ("given", "longest_still_given_s", lambda value: f"{1e3 * value:.1f}"),
    ("stops", "still_stops", _number),
    ("given", "still_given_stops", _number),
)


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """All figures; an engine leaves those empty that it does not have."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{row[key]:.6g}" if isinstance(row[key], float) else row[key] for key in row})


def append_csv(columns: Sequence[str], rows: Iterable[Sequence[str]], path: Path) -> None:
    """Rows behind those that are there, or a new file with the columns' names."""
    anew = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows] if anew else rows)


def read_csv(path: Path) -> list[dict[str, float | str]]:
    """What `write_csv` wrote."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: value if key == "engine" else float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def markdown(rows: Sequence[Row]) -> str:
    """For each size a table of all engines, and one of those that were searched beside changes."""
    lines = []
    for size in sorted({int(row["templates"]) for row in rows}):
        own = [row for row in rows if row["templates"] == size]
        lines += [f"**{size:,} templates**\n", *_table(own, _COLUMNS), ""]
        if beside := [row for row in own if "busy_p50_s" in row]:
            lines += [*_table(beside, _BESIDE), ""]
    return "\n".join(lines)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Iterator[str]:
    yield f"| | {' | '.join(name for name, _, _ in columns)} |"
    yield f"| --- | {' | '.join('---:' for _ in columns)} |"
    for row in rows:
        cells = [show(float(row[key])) if key in row else "" for _, key, show in columns]
        yield f"| {row['engine']} | {' | '.join(cells)} |"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sentence, what was measured, and whether that is enough; no value: not measured in this run."""

    sentence: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def line(self) -> str:
        """One line of the list."""
        if self.value is None:
            return f"- not measured: {self.sentence}"
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return f"- {'met' if met else 'NOT MET'}: {self.sentence}: {self.value:.4g}"


def wanted(rows: Sequence[Row]) -> list[Wanted]:
    """What the compressed index must reach, as ratios of one run."""
    table = {(row["engine"], int(row["templates"])): row for row in rows}

    def figure(engine: str, size: int, key: str) -> float | None:
        value = table.get((engine, size), {}).get(key)
        return None if value is None else float(value)

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if above is None or below is None else above / below

    million, hundred = 1_000_000, 100_000
    found = []
    for size, other, least in ((million, "FAISS flat", 15), (hundred, "FAISS flat", 8), (hundred, "pgvector HNSW", 5)):
        value = ratio(figure(other, size, "p50_s"), figure("compressed", size, "p50_s"))
        found.append(Wanted(f"{size:,} templates, {least} × as fast as {other}", value, least, at_least=True))
    for size in sorted({int(row["templates"]) for row in rows}):
        exact_by_default = size < (COMPRESS_FROM["auto"] or 0)
        kinds = ("flat",) * exact_by_default + ("compressed", "compressed, half")
        for engine, (key, less) in product(kinds, (("busy_p99_s", ""), ("busy_p99_given_s", _LESS))):
            value = ratio(figure(engine, size, key), figure(engine, size, "busy_p50_s"))
            sentence = f"{size:,} templates, {engine}: p99 beside writers within 3 × p50{less}"
            found.append(Wanted(sentence, value, 3, at_least=False))
        for engine in ("compressed", "compressed, half"):
            for kind in ("mated", "non_mated"):
                value = figure(engine, size, f"{kind}_agreement")
                sentence = f"{size:,} templates, {engine}: {kind.replace('_', '-')} decisions as exact"
                found.append(Wanted(sentence, value, 0.999, at_least=True))
        for engine, most in (("compressed", 1.25), ("compressed, half", 0.75)):
            if size < (COMPRESS_FROM["compressed"] or 0):
                continue  # exact still, in float32
            value = ratio(figure(engine, size, "bytes"), FLOAT32)
            found.append(Wanted(f"{size:,} templates, {engine}: memory of float32's", value, most, at_least=False))
        for engine, (key, less) in product(kinds, (("longest_upkeep_s", ""), ("longest_given_s", _LESS))):
            longest, median = figure(engine, size, key), figure(engine, size, "p50_s")
            stop = None if longest is None or median is None else 1e3 * (longest - median)
            sentence = f"{size:,} templates, {engine}: ms that a search was stopped at most{less}"
            found.append(Wanted(sentence, stop, 20, at_least=False))
    restart, remove = figure("compressed", million, "restart_s"), figure("compressed", million, "remove_s")
    found.append(Wanted("1,000,000 templates, seconds of a restart", restart, 10, at_least=False))
    found.append(Wanted("1,000,000 templates, seconds of 1,000 removals", remove, 1, at_least=False))
    return found


def write_page(rows: Sequence[Row], folder: Path) -> None:
    """`index.md`: the tables, what was to be reached, and the plots beside it."""
    lines = ["# Indexes compared", "", markdown(rows), *(one.line for one in wanted(rows)), ""]
    lines += [f"![{name}]({name}.png)" for name in ("index-search", "index-memory")]
    (folder / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def plot(rows: Sequence[Row], folder: Path) -> None:
    """`index-search.png`: time by size; `index-memory.png`: bytes by time at the size that most engines have."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    engines = list(dict.fromkeys(str(row["engine"]) for row in rows))
    palette = [*(f"C{number}" for number in range(10)), "black", "navy", "darkgreen"]
    colours = dict(zip(engines, palette, strict=False))
    own = {"compressed", "compressed, half", "flat"}
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for engine in engines:
        points = sorted((float(row["templates"]), 1e3 * float(row["p50_s"])) for row in rows if row["engine"] == engine)
        sizes, times = zip(*points, strict=True)
        style = "-o" if engine in own else "--s"
        axes.plot(sizes, times, style, color=colours[engine], label=engine, markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="templates", ylabel="ms for one probe, median, one core")
    axes.grid(which="major", alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(folder / "index-search.png", dpi=110)
    plt.close(figure)

    figure = memory_figure(rows, colours, own)
    figure.savefig(folder / "index-memory.png", dpi=110)
    plt.close(figure)


def memory_figure(rows: Sequence[Row], colours: Mapping[str, str], own: Collection[str]) -> "Figure":
    """Bytes by time; a label that would leave the frame on the right stands to the left of its mark."""
    from matplotlib import pyplot as plt

    measured = [float(row["templates"]) for row in rows]
    common = max(set(measured), key=lambda size: (measured.count(size), size))
    figure: Figure = plt.figure(figsize=(8, 5), layout="constrained")
    axes, labels = figure.subplots(), []
    for row in rows:
        if row["templates"] == common:
            place = 1e3 * float(row["p50_s"]), float(row["bytes"])
            axes.scatter(*place, color=colours[str(row["engine"])], marker="o" if row["engine"] in own else "s")
            beside = 6, -10 if row["engine"] in own else 4  # marks of one size and speed lie close together
            label = axes.annotate(str(row["engine"]), place, xytext=beside, textcoords="offset points", fontsize=8)
            label.set_in_layout(False)  # it is to fit into the frame, not the frame to it
            labels.append(label)
    axes.axhline(FLOAT32, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="ms for one probe, median, one core", ylabel="bytes for each template")
    axes.set_title(f"{common:,.0f} templates; dotted: the float32 embeddings alone", fontsize=9)
    axes.grid(which="major", alpha=0.3)
    figure.draw_without_rendering()
    for label in labels:
        if label.get_window_extent().x1 > axes.bbox.x1:
            label.set(horizontalalignment="right", position=(-6, label.xyann[1]))
    return figure
