"""`facemodel prepare`: raw photos become training data."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from model.commands.options import (
    DetectorOption,
    ThreadsOption,
    WeightsOption,
    network_folder,
    progress_bar,
)
from model.detector import Detector
from model.extractor import Extractor
from model.photo_folder import DatasetError
from model.pipeline import WEIGHTS, Networks
from model.training.preparation import MANIFEST, PreparedFolder, prepare


def prepare_command(
    photos: Annotated[Path, typer.Argument(help="A folder of photos for each person.")],
    output: Annotated[Path, typer.Argument(help="Gets the crops and manifest.csv.")],
    without: Annotated[
        Path | None,
        typer.Option(help="People to leave out: a file with a name a line, or a folder with a folder for each."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Taken off the front of the folders' names.")] = "",
    extractor: Annotated[str, typer.Option(help="Finds doubles and wrong labels; a name or a folder.")] = "sface",
    detector: DetectorOption = "yunet",
    weights: WeightsOption = WEIGHTS,
    threads: ThreadsOption = 0,
) -> None:
    """Detect, align and embed every face once, and flag doubles and probable wrong labels.

    An interrupted run goes on where it stopped. Flagged photos keep their crops; training and evaluation leave them
    out. Nothing is deleted.
    """
    workers = threads or os.cpu_count() or 1
    networks = Networks(
        Detector.load(network_folder(weights, detector), threads=1),
        Extractor.load(network_folder(weights, extractor), threads=1),
    )
    left_out = _names(without) if without else []
    with progress_bar() as progress:
        task = progress.add_task("preparing", total=None)
        prepared = prepare(
            photos,
            output,
            networks,
            left_out=left_out,
            prefix=prefix,
            workers=workers,
            start=lambda total: progress.update(task, total=total),
            advance=lambda count: progress.advance(task, count),
        )
    typer.echo(_summary(prepared))
    typer.echo(output / MANIFEST)


def _names(source: Path) -> list[str]:
    if source.is_dir():
        return [path.name for path in source.iterdir() if path.is_dir()]
    if source.is_file():
        return [line.strip() for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    raise DatasetError(f"{source} is neither a file nor a folder")


def _summary(prepared: PreparedFolder) -> str:
    people = {photo.person for photo in prepared.photos}
    refused = Counter(photo.refused for photo in prepared.photos if photo.refused)
    flags = Counter(_kind(photo.flag) for photo in prepared.photos if photo.flag)
    lines = [f"{len(people)} people, {len(prepared.photos)} photos, {len(prepared.usable)} of them fit for training"]
    lines += [f"  refused: {count}, {reason}" for reason, count in refused.most_common()]
    lines += [f"  flagged: {count}, {flag}" for flag, count in flags.most_common()]
    return "\n".join(lines)


def _kind(flag: str) -> str:
    return next(kind for kind in ("duplicate", "shared", "looks like", "far") if flag.startswith(kind))
