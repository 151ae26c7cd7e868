"""`facemodel evaluate`: how good an extractor is."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from model.card import ModelCard, write_card
from model.commands.options import (
    DetectorOption,
    JsonOption,
    ThreadsOption,
    WeightsOption,
    console,
    network_folder,
    progress_bar,
)
from model.detector import Detector
from model.extractor import Extractor
from model.photo_folder import Photo, list_photos
from model.pipeline import WEIGHTS, Networks
from model.training.embedding_set import EmbeddingSet, cache_file, embed_photos
from model.training.evaluation import LfwEvaluation, evaluate_lfw
from model.training.lfw import find_pairs_file, read_pairs
from model.training.report import Report, as_json, as_markdown, card_figures


def evaluate_command(
    lfw: Annotated[Path, typer.Option(help="Labeled Faces in the Wild: a folder for each person.")],
    pairs: Annotated[
        Path | None, typer.Option(help="The official pairs. [dim]default: pairs.txt in the folder or beside it[/dim]")
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="Name of an extractor in --weights, or a folder with a card.")
    ] = "sface",
    detector: DetectorOption = "yunet",
    weights: WeightsOption = WEIGHTS,
    output: Annotated[
        Path, typer.Option(help="Gets evaluation.json and evaluation.md, and keeps the embeddings for the next run.")
    ] = Path("runs/evaluation"),
    threads: ThreadsOption = 0,
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
    extractor_folder = network_folder(weights, extractor)
    networks = Networks(
        Detector.load(network_folder(weights, detector), threads=threads),
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


def _embed(photos: Sequence[Photo], networks: Networks, workers: int, output: Path) -> EmbeddingSet:
    cache = cache_file(output, networks)
    with progress_bar() as progress:
        task = progress.add_task("embedding", total=len(photos))
        return embed_photos(
            photos, networks, workers=workers, cache=cache, advance=lambda count: progress.advance(task, count)
        )


def _write_card(card: ModelCard, folder: Path, detector: ModelCard, evaluation: LfwEvaluation) -> None:
    figures = {"detector": detector.identity, **card_figures(evaluation)}
    path = write_card(dataclasses.replace(card, figures=figures, thresholds=evaluation.thresholds), folder)
    console.print(f"written: {path}", soft_wrap=True)
