"""Figures of an evaluation: error trade-off curves and histograms of distances."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.training.bootstrap import CONFIDENCE
from model.training.embedding_set import CLEAN
from model.training.evaluation import DECADES, MIXED, Evaluation, Measurement, tar_name
from model.training.pair_distances import BINS

_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind readers can tell apart."""

_STYLES = ("-", "--", "-.", ":")
_MATED, _NON_MATED = "#0072B2", "#D55E00"
_BARS = 128
_LINES = f"vertical lines: {CONFIDENCE:.0%} intervals over people"


def draw_figures(evaluations: Sequence[Evaluation], data: str, folder: Path) -> list[Path]:
    """Draw det.png, distances.png and, where there are degraded copies, det-degraded.png.

    Args:
        evaluations: of several extractors on the same photos.
        data: what the photos are.
        folder: gets the files.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # only the extra `train` brings it

    conditions = [condition for condition in (CLEAN, MIXED) if condition in evaluations[0].conditions]
    figure = Figure(figsize=(6.4 * len(conditions), 5.2), layout="constrained")
    panels = figure.subplots(1, len(conditions), squeeze=False, sharey=True)[0]
    for panel, condition in zip(panels, conditions, strict=True):
        curves = [(one.extractor, one.conditions[condition]) for one in evaluations]
        _draw_trade_off(panel, condition if len(conditions) > 1 else "", curves)
    figure.suptitle(f"Detection error trade-off, {data}\n{_LINES}", fontsize=11)
    paths = [_save(figure, folder / "det.png")]

    if len(evaluations[0].conditions) > 1:
        figure = Figure(figsize=(6.4 * len(evaluations), 5.2), layout="constrained")
        panels = figure.subplots(1, len(evaluations), squeeze=False, sharey=True)[0]
        for panel, evaluation in zip(panels, evaluations, strict=True):
            _draw_trade_off(panel, evaluation.extractor, list(evaluation.conditions.items()))
        figure.suptitle(f"Detection error trade-off by degradation of the probe, {data}\n{_LINES}", fontsize=11)
        paths.append(_save(figure, folder / "det-degraded.png"))

    size = (5.4 * len(conditions), 0.8 + 2.6 * len(evaluations))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(evaluations), len(conditions), squeeze=False, sharex=True)
    for row, evaluation in zip(grid, evaluations, strict=True):
        for panel, condition in zip(row, conditions, strict=True):
            title = evaluation.extractor if len(conditions) == 1 else f"{evaluation.extractor}, {condition}"
            _draw_distances(panel, title, evaluation.conditions[condition])
    for panel in grid[-1]:
        panel.set_xlabel("distance")
    figure.suptitle(f"Distances of photos, {data}")
    return [*paths, _save(figure, folder / "distances.png")]


def trade_off(measurement: Measurement) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false match and false non-match rates at the upper edges of the bins of distance, (BINS,) each."""
    verification = measurement.figures.verification
    fmr = np.cumsum(measurement.non_mated_histogram) / max(1, verification.non_mated_pairs)
    fnmr = 1 - np.cumsum(measurement.mated_histogram) / max(1, verification.mated_pairs)
    return fmr, fnmr


def _draw_trade_off(panel: Any, title: str, curves: Sequence[tuple[str, Measurement]]) -> None:
    """Draw curves with the confidence intervals of their decades."""
    least = 1.0
    for place, (label, measurement) in enumerate(curves):
        fmr, fnmr = trade_off(measurement)
        pairs = measurement.figures.verification
        shown = (fmr > 0) & (fnmr * pairs.mated_pairs > 0.5)
        colour = _COLOURS[place % len(_COLOURS)]
        style = _STYLES[place // len(_COLOURS) % len(_STYLES)]
        panel.plot(fmr[shown], fnmr[shown], style, color=colour, label=label, linewidth=1.8)
        if shown.any():
            least = min(least, float(fnmr[shown & (fmr < 0.1)].min(initial=least)))
        for rate in DECADES:
            draws = measurement.draws.get(tar_name(rate))
            if draws is not None and draws.estimate < 1:
                at = rate * 1.06 ** (place - (len(curves) - 1) / 2)  # side by side
                low, high = draws.interval
                panel.plot([at, at], [max(1 - high, 1e-9), 1 - low], color=colour, linewidth=1.2, alpha=0.6)
    panel.set(xscale="log", yscale="log", title=title, xlabel="false match rate (FMR)")
    panel.set_xlim(5e-7, 0.3)
    panel.set_ylim(max(least * 0.7, 1e-5), 1)
    panel.set_ylabel("false non-match rate (FNMR)")
    panel.grid(which="major", color="#cccccc", linewidth=0.7)
    panel.grid(which="minor", color="#eeeeee", linewidth=0.4)
    panel.legend(fontsize=9, loc="lower left")


def _draw_distances(panel: Any, title: str, measurement: Measurement) -> None:
    edges = np.linspace(0, 2, _BARS + 1)
    highest = 0.0
    for label, colour, histogram, moments in (
        (
            "one person (mated)",
            _MATED,
            measurement.mated_histogram,
            measurement.figures.verification.mated_distance,
        ),
        (
            "two people (non-mated)",
            _NON_MATED,
            measurement.non_mated_histogram,
            measurement.figures.verification.non_mated_distance,
        ),
    ):
        counts = histogram.reshape(_BARS, BINS // _BARS).sum(axis=1)
        density = counts / max(1, counts.sum()) / (edges[1] - edges[0])
        spread = "" if moments is None else f", {moments.mean:.2f} ± {moments.deviation:.2f}"
        highest = max(highest, float(density.max()))
        panel.stairs(density, edges, fill=True, color=colour, alpha=0.35)
        panel.stairs(density, edges, color=colour, label=f"{label}{spread}", linewidth=1.4)
    panel.set(title=title, ylabel="density", xlim=(0, 1.8), ylim=(0, 1.4 * highest or 1))  # room for the legend
    panel.grid(color="#e5e5e5", linewidth=0.6)
    panel.legend(fontsize=9, loc="upper left")


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
