"""The command line `facemodel`: import networks, look at them, measure them."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from model.card import ModelCard, read_card, write_card
from model.detector import Detector
from model.errors import FacegalleryError
from model.extractor import Extractor
from model.photo_folder import DatasetError, Photo, list_photos
from model.pipeline import WEIGHTS, Networks
from model.training.embedding_set import EmbeddingSet, cache_file, embed_photos
from model.training.evaluation import LfwEvaluation, evaluate_lfw
from model.training.lfw import find_pairs_file, read_pairs
from model.training.report import Report, as_json, as_markdown, card_figures

app = typer.Typer(
    name="facemodel",
    help="The networks behind a face gallery: import them, look at their cards, measure how good they are.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

WeightsOption = Annotated[Path, typer.Option(help="Folder that holds a folder for each network.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for scripts.")]


class _RateColumn(ProgressColumn):
    """Photos a second."""

    def render(self, task: Task) -> Text:
        """Return the rate of the last moments, or of all of a finished task."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} photos/s")


@app.command("evaluate")
def evaluate_command(
    lfw: Annotated[Path, typer.Option(help="Labeled Faces in the Wild: a folder for each person.")],
    pairs: Annotated[
        Path | None, typer.Option(help="The official pairs. [dim]default: pairs.txt in the folder or beside it[/dim]")
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="Name of an extractor in --weights, or a folder with a card.")
    ] = "sface",
    detector: Annotated[str, typer.Option(help="Name of a detector in --weights, or a folder with a card.")] = "yunet",
    weights: WeightsOption = WEIGHTS,
    output: Annotated[
        Path, typer.Option(help="Gets evaluation.json and evaluation.md, and keeps the embeddings for the next run.")
    ] = Path("runs/evaluation"),
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0: all.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many people, for a quick look.")] = None,
    to_card: Annotated[
        bool, typer.Option("--write-card", help="Put figures and thresholds on the extractor's card.")
    ] = False,
    as_json_text: JsonOption = False,
) -> None:
    """Measure an extractor on Labeled Faces in the Wild.

    Accuracy over the ten folds; true accept rate at false match rates from 1e-1 to 1e-6 over all pairs of the photos;
    open-set identification with three photos and with one photo of each subject. A second run on the same photos with
    the same networks takes their embeddings from the output folder.
    """
    if to_card and limit is not None:
        raise typer.BadParameter("a card needs all photos: leave --limit out", param_hint="--write-card")
    photos = list_photos(lfw, limit)
    official_pairs = read_pairs(pairs or find_pairs_file(lfw))
    extractor_folder = _network_folder(weights, extractor)
    networks = Networks(
        Detector.load(_network_folder(weights, detector), threads=threads),
        Extractor.load(extractor_folder, threads=threads),
    )
    output.mkdir(parents=True, exist_ok=True)
    embedded = _embed(photos, networks, threads or os.cpu_count() or 1, output)
    with console.status(f"comparing {len(photos) * (len(photos) - 1) // 2:,} pairs"):
        evaluation = evaluate_lfw(embedded, official_pairs)
    report = Report(networks.extractor.card.identity, networks.detector.card.identity, embedded.failures, evaluation)
    (output / "evaluation.json").write_text(as_json(report) + "\n", encoding="utf-8")
    (output / "evaluation.md").write_text(as_markdown(report), encoding="utf-8")
    if to_card:
        _write_card(networks.extractor.card, extractor_folder, networks.detector.card, evaluation)
    if as_json_text:
        typer.echo(as_json(report))
    else:
        typer.echo(as_markdown(report))
        console.print(f"written: {output / 'evaluation.json'}, {output / 'evaluation.md'}", soft_wrap=True)


@app.command("import")
def import_command(
    files: Annotated[list[Path], typer.Argument(help="Network files of OpenCV Zoo, known by their SHA-256.")],
    weights: WeightsOption = WEIGHTS,
) -> None:
    """Write the project's own network files and cards from those of OpenCV Zoo.

    It is done once; serving needs only what it writes. An import replaces the network and its card, figures included.
    """
    try:
        from model.importing import import_networks  # torch and onnx, which only this command needs
    except ModuleNotFoundError as error:
        raise FacegalleryError(f"importing needs {error.name}: install facegallery[train]") from error
    with console.status("importing"):
        folders = import_networks(files, weights)
    for folder in folders:
        typer.echo(folder)


@app.command("card")
def card_command(
    network: Annotated[str, typer.Argument(help="Name of a network in --weights, or a folder with a card.")],
    weights: WeightsOption = WEIGHTS,
    as_json_text: JsonOption = False,
) -> None:
    """Show what a network is, where it comes from, how good it is, and its thresholds."""
    card = read_card(_network_folder(weights, network))
    if as_json_text:
        typer.echo(json.dumps(dataclasses.asdict(card), indent=2, ensure_ascii=False))
        return
    table = Table(title=card.identity, show_header=False)
    for name in ("task", "architecture", "dimension", "origin", "licence", "data"):
        table.add_row(name, str(getattr(card, name)))
    for name, figure in card.figures.items():
        table.add_row(name.replace("_", " "), figure if isinstance(figure, str) else json.dumps(figure, indent=1))
    for point in card.thresholds:
        table.add_row(f"distance at FMR {point.fmr:.3g}", f"{point.distance:.4f}")
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong arguments or no such data set."""
    try:
        app(args=arguments)
    except DatasetError as error:
        _complain(error.detail, 2)
    except FacegalleryError as error:
        _complain(error.detail, 1)
    except OSError as error:
        _complain(f"{error.filename or 'a file'}: {error.strerror or error}", 1)


def _complain(sentence: str, code: int) -> None:
    typer.echo(f"facemodel: {sentence}", err=True)
    sys.exit(code)


def _network_folder(weights: Path, network: str) -> Path:
    """Return the folder that a name means: one with a card as it is, or one of the weights."""
    return Path(network) if (Path(network) / "card.json").is_file() else weights / network


def _embed(photos: Sequence[Photo], networks: Networks, workers: int, output: Path) -> EmbeddingSet:
    cache = cache_file(output, networks)
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("embedding", total=len(photos))
        return embed_photos(
            photos, networks, workers=workers, cache=cache, advance=lambda count: progress.advance(task, count)
        )


def _write_card(card: ModelCard, folder: Path, detector: ModelCard, evaluation: LfwEvaluation) -> None:
    figures = {"detector": detector.identity, **card_figures(evaluation)}
    path = write_card(dataclasses.replace(card, figures=figures, thresholds=evaluation.thresholds), folder)
    console.print(f"written: {path}", soft_wrap=True)
