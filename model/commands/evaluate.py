"""`facemodel evaluate`: how good an extractor is."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from model.card import ModelCard, check_thresholds, write_card
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
from model.photo_folder import DatasetError, Photo
from model.pipeline import WEIGHTS
from model.training.degradation import KINDS
from model.training.dlib_extractor import DlibEmbedder
from model.training.embedder import Embedder, NetworkEmbedder
from model.training.embedding_set import EmbeddingSet, ReadCrop, embed_photos, find_faces, photo_crops
from model.training.evaluation import Evaluation, evaluate, evaluate_lfw
from model.training.figures import draw_figures
from model.training.lfw import Pair, find_pairs_file, read_pairs
from model.training.photo_set import first_people, is_prepared, only_people, photos_of
from model.training.preparation import read_crop
from model.training.report import Report, as_json, as_markdown, card_figures

DLIB = "dlib"
"""The name in --compare that means dlib's network."""


def evaluate_command(
    photos: Annotated[
        Path | None, typer.Argument(help="A folder of photos for each person, or what `facemodel prepare` wrote.")
    ] = None,
    lfw: Annotated[
        Path | None, typer.Option(help="Labeled Faces in the Wild instead, with its official pairs.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="LFW's pairs. [dim]default: pairs.txt in the folder or beside it[/dim]")
    ] = None,
    people: Annotated[
        Path | None, typer.Option(help="Only these people: a file with the names of their folders, one a line.")
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="Name of an extractor in --weights, or a folder with a card.")
    ] = "sface",
    compare: Annotated[
        list[str] | None, typer.Option(help=f"Another extractor on the same photos, or {DLIB}; may be repeated.")
    ] = None,
    degraded: Annotated[
        bool, typer.Option("--degraded", help="Also small, blurred, dark, compressed and covered probes.")
    ] = False,
    detector: DetectorOption = "yunet",
    weights: WeightsOption = WEIGHTS,
    output: Annotated[
        Path, typer.Option(help="Gets JSON, Markdown and figures, and keeps faces and embeddings for the next run.")
    ] = Path("runs/evaluation"),
    threads: ThreadsOption = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many people, for a quick look.")] = None,
    to_card: Annotated[
        bool, typer.Option("--write-card", help="Put LFW's figures and thresholds on the extractor's card.")
    ] = False,
    as_json_text: JsonOption = False,
) -> None:
    """Measure an extractor on a folder of people, or on Labeled Faces in the Wild.

    True accept rate at false match rates from 1e-2 to 1e-6 over all pairs of the photos; open-set identification with
    one, three and five photos of each subject; confidence intervals over people; distances and error trade-off as
    figures. A second run on the same photos takes faces and embeddings from the output folder.
    """
    if (photos is None) == (lfw is None):
        raise typer.BadParameter("give a folder of people, or --lfw", param_hint="PHOTOS")
    if to_card and (lfw is None or limit is not None or people is not None):
        raise typer.BadParameter("a card needs all photos of --lfw", param_hint="--write-card")
    folder = photos or lfw or Path()
    chosen = photos_of(folder)
    if people is not None:
        chosen = only_people(chosen, people)
    if limit is not None:
        chosen = first_people(chosen, limit)
    official_pairs = read_pairs(pairs or find_pairs_file(folder)) if lfw is not None else ()
    if to_card:
        _check_complete(official_pairs, chosen, folder)

    workers = threads or os.cpu_count() or 1
    extractor_folder = network_folder(weights, extractor)
    measured = Extractor.load(extractor_folder, threads=1)
    output.mkdir(parents=True, exist_ok=True)
    prepared = is_prepared(folder)
    evaluations = []
    with _embedders(measured, compare or [], weights, workers, prepared=prepared) as embedders:
        acquired = _Crops(chosen) if prepared else _Photos(chosen, network_folder(weights, detector), workers, output)
        for embedder in embedders:
            embedded = _embed(chosen, acquired, embedder, KINDS if degraded else (), workers, output)
            evaluations.append(_evaluate(embedder.identity, embedded, official_pairs))
    report = Report(
        "Labeled Faces in the Wild" if lfw is not None else folder.resolve().name, acquired.sentence, tuple(evaluations)
    )
    written = _write(report, output)
    typer.echo(as_json(report) if as_json_text else as_markdown(report))
    if to_card:
        written.append(_write_card(measured.card, extractor_folder, acquired.source, evaluations[0]))
    if not as_json_text:
        console.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)


class _Crops:
    """Faces that `facemodel prepare` cut out."""

    source = "crops"
    sentence = "The crops are those of `facemodel prepare`; flagged ones are left out."

    def __init__(self, photos: Sequence[Photo]) -> None:
        self._photos = photos

    def crops_for(self, _embedder: Embedder) -> ReadCrop:
        return lambda row: read_crop(self._photos[row].path)


class _Photos:
    """Faces that the detector finds in photos, once for all extractors."""

    def __init__(self, photos: Sequence[Photo], detector_folder: Path, workers: int, output: Path) -> None:
        detector = Detector.load(detector_folder, threads=1)
        self.source = detector.card.identity
        self._photos = photos
        with progress_bar() as progress:
            task = progress.add_task("finding faces", total=len(photos))
            self._faces = find_faces(
                photos, detector, workers=workers, folder=output, advance=lambda count: progress.advance(task, count)
            )
        found = sum(face is not None for face in self._faces)
        self.sentence = (
            f"Detector {self.source}; of the faces in a photo the one that is large and near the middle is taken. "
            f"{len(photos) - found} photos have none."
        )

    def crops_for(self, embedder: Embedder) -> ReadCrop:
        return photo_crops(self._photos, self._faces, embedder)


@contextmanager
def _embedders(
    measured: Extractor, others: Sequence[str], weights: Path, workers: int, *, prepared: bool
) -> Iterator[list[Embedder]]:
    if DLIB in others and prepared:
        raise DatasetError("dlib aligns faces by itself, so it needs the photos, not the crops of a prepared folder")
    dlib = DlibEmbedder.load(workers) if DLIB in others else None
    loaded: list[Embedder] = [NetworkEmbedder(measured)]
    for name in others:
        if name == DLIB and dlib is not None:
            loaded.append(dlib)
        else:
            loaded.append(NetworkEmbedder(Extractor.load(network_folder(weights, name), threads=1)))
    try:
        yield loaded
    finally:
        if dlib is not None:
            dlib.close()


def _embed(
    photos: Sequence[Photo],
    acquired: _Crops | _Photos,
    embedder: Embedder,
    kinds: Sequence[str],
    workers: int,
    output: Path,
) -> EmbeddingSet:
    with progress_bar() as progress:
        task = progress.add_task(f"embedding, {embedder.identity}", total=len(photos))
        return embed_photos(
            photos,
            acquired.crops_for(embedder),
            embedder,
            source=acquired.source,
            kinds=kinds,
            workers=workers,
            folder=output,
            advance=lambda count: progress.advance(task, count),
        )


def _evaluate(extractor: str, embedded: EmbeddingSet, official_pairs: Sequence[Pair]) -> Evaluation:
    with console.status(f"comparing photos, {extractor}") as status:

        def advance(condition: str) -> None:
            status.update(f"comparing photos, {extractor}: {condition}")

        if official_pairs:
            return evaluate_lfw(extractor, embedded, official_pairs, advance)
        return evaluate(extractor, embedded, [photo.subject for photo in embedded.photos], advance)


def _write(report: Report, output: Path) -> list[Path]:
    written = [output / "evaluation.json", output / "evaluation.md"]
    written[0].write_text(as_json(report) + "\n", encoding="utf-8")
    written[1].write_text(as_markdown(report), encoding="utf-8")
    try:
        written += draw_figures(report.evaluations, report.data, output)
    except ModuleNotFoundError as error:
        console.print(f"no figures: they need {error.name}, install facegallery[train]")
    return written


def _check_complete(official_pairs: Sequence[Pair], photos: Sequence[Photo], folder: Path) -> None:
    there = {photo.name for photo in photos}
    missing = {name for pair in official_pairs for name in (pair.left, pair.right)} - there
    if missing:
        raise DatasetError(
            f"a card needs all photos of LFW: {len(missing)} of the official pairs, such as {min(missing)}, are not in "
            f"{folder}; leave out --write-card"
        )


def _write_card(card: ModelCard, folder: Path, detector: str, evaluation: Evaluation) -> Path:
    check_thresholds(evaluation.thresholds, "so few photos")
    trained = {name: figure for name, figure in card.figures.items() if name == "training"}  # what export wrote
    figures = {**trained, "detector": detector, **card_figures(evaluation)}
    return write_card(dataclasses.replace(card, figures=figures, thresholds=evaluation.thresholds), folder)
