"""`facemodel export`: a training run becomes a network that serves."""

from pathlib import Path
from typing import Annotated

import typer

from model.commands.options import WeightsOption, network_folder
from model.errors import FacegalleryError
from model.pipeline import WEIGHTS


def export_command(
    run: Annotated[Path, typer.Argument(help="Output folder of `facemodel train`.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; its name becomes the network's.")],
    data: Annotated[str, typer.Option(help="For the card: what it was trained on, under what terms.")],
    licence: Annotated[str, typer.Option(help="For the card: terms of the weights.")],
    base: Annotated[str, typer.Option(help="Extractor that the run started from.")] = "",
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the tuned weights; the rest is the base's.")
    ] = 1.0,
    weights: WeightsOption = WEIGHTS,
) -> None:
    """Write the network file and the card of a training run.

    `facemodel evaluate --write-card` then measures it and puts figures and thresholds on the card.
    """
    try:
        from model.training.checkpoint import CHECKPOINT
        from model.training.exporting import export_network
    except ModuleNotFoundError as error:
        raise FacegalleryError(f"exporting needs {error.name}: install facegallery[train]") from error
    folder = network_folder(weights, base) if base else None
    card = export_network(run / CHECKPOINT, output, base=folder, share=share, data=data, licence=licence)
    typer.echo(f"{output}: {card.identity}")
