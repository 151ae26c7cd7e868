"""Figures of the study on digits: the plane during training, over λ, and as an animation."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from model.training.digits import DRAWN, Trained
from model.training.digits_study import Row, class_means
from model.training.digits_table import NAMES

COLOURS = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
    "#777777",
)
"""Paul Tol's muted scheme, which colour-blind readers can tell apart; the digits stand at their means as well."""

_COLUMNS = (0.005, 0.02, 0.06, 0.25, 1.0)
"""When the training is drawn, as parts of its steps."""
_FRAME_MS, _LAST_MS = 120, 4000
_GIF_COLOURS = 64


def training_figure(runs: Sequence[Trained], labels: NDArray[np.int64]) -> bytes:
    """Return a PNG: the plane at moments of each training, a row for a run, early to late."""
    figure, axes = _panels(len(runs), len(_COLUMNS))
    for panels, run in zip(axes, runs, strict=True):
        steps = run.moments[-1].step
        for panel, part in zip(panels, _COLUMNS, strict=True):
            moment = min(run.moments, key=lambda each, part=part: abs(each.step - part * steps))  # type: ignore[misc]
            _draw(panel, moment.features, labels, moment.centers)
            panel.set_title(f"step {moment.step:,}")
        panels[0].set_ylabel(_name(run), fontsize=12)
    _legend(figure, centers=True)
    return _png(figure)


def weights_figure(runs: Mapping[Row, Trained], labels: NDArray[np.int64]) -> bytes:
    """Return a PNG: the plane at the end of each training, a row for each form of center loss, λ rising.

    Where a form has no row for λ = 0, softmax alone stands there.
    """
    alone = [row for row in runs if row.setting.form == "softmax"]
    forms = {
        form: sorted((row for row in runs if row.setting.form == form), key=lambda row: row.setting.weight)
        for form in ("learned", "paper")
    }
    rows = {form: chosen if chosen[0].setting.weight == 0 else alone + chosen for form, chosen in forms.items()}
    figure, axes = _panels(len(rows), max(map(len, rows.values())))
    for panels, (form, chosen) in zip(axes, rows.items(), strict=True):
        for panel, row in zip(panels, chosen, strict=True):
            _draw(panel, runs[row].features[:DRAWN], labels, None)
            panel.set_title(f"λ = {row.setting.weight:g}\n{100 * row.accuracy:.2f} %, ratio {row.ratio:.1f}")
        panels[0].set_ylabel(NAMES[form], fontsize=12)
    _legend(figure, centers=False)
    return _png(figure)


def animation(runs: Sequence[Trained], labels: NDArray[np.int64]) -> bytes:
    """Return a GIF of the trainings side by side, with the centers, or the means of the classes without any."""
    frames = []
    for moments in zip(*(run.moments for run in runs), strict=True):
        figure = Figure(figsize=(7.2, 4.2), dpi=90, layout="constrained")
        panels = figure.subplots(1, len(runs))
        for panel, run, moment in zip(panels, runs, moments, strict=True):
            _draw(panel, moment.features[: DRAWN // 2], labels, moment.centers, size=5)
            panel.set_title(_name(run))
        figure.suptitle(f"step {moments[0].step:,} of {runs[0].moments[-1].step:,}")
        _legend(figure, centers=True)
        frames.append(_pixels(figure))
    # One palette, that of the last frame, so that nothing flickers.
    palette = frames[-1].quantize(_GIF_COLOURS)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_FRAME_MS] * len(rest) + [_LAST_MS]
    file = BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    return file.getvalue()


def write_figures(output: Path, runs: Mapping[Row, Trained], labels: NDArray[np.int64]) -> tuple[Path, ...]:
    """Write the three figures of the rows of the plane and return their paths."""
    shown = [run for run in runs.values() if run.moments]
    contents = {
        "digits-training.png": training_figure(shown, labels),
        "digits-lambda.png": weights_figure(runs, labels),
        "digits-training.gif": animation(shown, labels),
    }
    for name, content in contents.items():
        (output / name).write_bytes(content)
    return tuple(output / name for name in contents)


def _panels(rows: int, columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(2.5 * columns, 2.75 * rows + 0.5), dpi=100, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _name(run: Trained) -> str:
    name = NAMES[run.setting.form]
    return name if run.setting.form == "softmax" else f"{name}, λ = {run.setting.weight:g}"


def _draw(
    panel: Any,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    centers: NDArray[np.float32] | None,
    size: float = 3,
) -> None:
    """Draw points in the colours of their digits, each digit at the mean of its class, and the centers."""
    labels = labels[: len(features)]
    panel.scatter(*features.T, s=size, c=[COLOURS[label] for label in labels], linewidths=0, rasterized=True)
    if centers is not None:
        panel.scatter(*centers.T, s=36, marker="X", c="white", edgecolors="black", linewidths=1, zorder=3)
    # Beside the mean, not on it, where a label would hide a small cluster.
    box = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
    style = {"ha": "center", "va": "center", "fontsize": 9, "fontweight": "bold", "zorder": 4, "bbox": box}
    for digit, mean in enumerate(class_means(features, labels, len(COLOURS))):
        panel.annotate(str(digit), mean, xytext=(9, 9), textcoords="offset points", color="black", **style)
    drawn = features if centers is None else np.concatenate([features, centers])
    middle, half = (drawn.max(0) + drawn.min(0)) / 2, 0.55 * float((drawn.max(0) - drawn.min(0)).max())
    panel.set_xlim(middle[0] - half, middle[0] + half)
    panel.set_ylim(middle[1] - half, middle[1] + half)
    panel.set_aspect("equal")
    panel.tick_params(labelsize=7)


def _legend(figure: Figure, *, centers: bool) -> None:
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=str(digit)) for digit, colour in enumerate(COLOURS)
    ]
    if centers:
        white = Line2D(
            [], [], marker="X", linestyle="", markerfacecolor="white", markeredgecolor="black", label="center"
        )
        handles.append(white)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)


def _png(figure: Figure) -> bytes:
    """Return a PNG of few colours, a third of the size."""
    file = BytesIO()
    _pixels(figure).quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _pixels(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
