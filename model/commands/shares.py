"""`facemodel shares`: how good averages of a run's weights with its base's are, to choose the share to export."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from model.commands.options import WeightsOption, console, network_folder, progress_bar
from model.errors import FacegalleryError
from model.pipeline import WEIGHTS

if TYPE_CHECKING:
    from model.training.steering import Steering


def shares_command(
    run: Annotated[Path, typer.Argument(help="Output folder of `facemodel train`.")],
    share: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Share of the tuned weights; may be repeated. [dim]default: 0, 0.25 … 1[/dim]"),
    ] = None,
    people: Annotated[
        Literal["validation", "test"], typer.Option(help="Who: those kept out to steer by, or for the end.")
    ] = "validation",
    photos: Annotated[int, typer.Option(min=4, help="Of each person at most.")] = 20,
    weights: WeightsOption = WEIGHTS,
) -> None:
    """Measure averages of the weights that a run ended with and of its base's; from scratch, the weights alone.

    On the people whom the run kept out: all of them, and those of each folder alone. FNIR at FPIR 1 %, TAR at FMR 1e-4,
    equal error rate, in %, on clean probes and on degraded ones. The folders are those of the run's config.
    """
    try:
        from model.training.checkpoint import CHECKPOINT, read_checkpoint
        from model.training.exporting import serving_extractor, trained_network
    except ModuleNotFoundError as error:
        raise FacegalleryError(f"this needs {error.name}: install facegallery[train]") from error
    from model.training.config import TrainingConfig
    from model.training.degradation import degrade_mixed
    from model.training.preparation import read_prepared
    from model.training.steering import ENROLLED, can_steer, read_crops, some_photos, steer
    from model.training.training_set import split_by

    state = read_checkpoint(run / CHECKPOINT)
    config = TrainingConfig.model_validate(state["config"])
    base = network_folder(weights, config.network.base) if config.network.base else None
    if base is None and share:
        raise FacegalleryError(f"{run} started from scratch: there is no base to average with")
    data = config.data
    split = split_by(data, [read_prepared(folder) for folder in data.folders])
    kept = some_photos(getattr(split, people), photos)
    if not len(kept.paths):
        raise FacegalleryError(f"the run kept nobody for {people}")
    groups = {"all": np.ones(len(kept.paths), np.bool_)}
    if len(data.folders) > 1:
        groups |= {one.name: np.array([one in path.parents for path in kept.paths]) for one in data.folders}
    needed = f"the figures need two people, one of them with more than {ENROLLED} photos"
    few = [name for name, rows in groups.items() if not can_steer(kept.labels[rows])]
    if "all" in few:
        raise FacegalleryError(f"too few photos were kept for {people}: {needed}")
    for name in few:
        console.print(f"{name} alone has no columns: {needed}")
        del groups[name]
    clean = read_crops(kept)
    degraded = degrade_mixed(clean, [path.name for path in kept.paths])
    chosen = share or ([0, 0.25, 0.5, 0.75, 1] if base else [1])
    typer.echo(f"| share | {' | '.join(f'{name}, clean | {name}, degraded' for name in groups)} |")
    typer.echo(f"| --- |{' --- |' * 2 * len(groups)}")
    with progress_bar() as bar, TemporaryDirectory() as folder:
        task = bar.add_task("embedding", total=len(chosen))
        for one in chosen:
            extractor = serving_extractor(trained_network(state, base, one), Path(folder), half=True)
            found = extractor.embed(clean), extractor.embed(degraded)
            cells = [_cells(steer(found[0][rows], found[1][rows], kept.labels[rows])) for rows in groups.values()]
            bar.advance(task)
            typer.echo(f"| {one:.0%} | {' | '.join(cells)} |")


def _cells(figures: "Steering") -> str:
    return " | ".join(
        f"{100 * one.fnir:.2f}, {100 * one.tar:.1f}, {100 * one.eer:.2f}" for one in (figures.clean, figures.degraded)
    )
