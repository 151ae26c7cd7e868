"""`facemodel import`: the project's own network files, made from OpenCV Zoo's."""

from pathlib import Path
from typing import Annotated

import typer

from model.commands.options import WeightsOption, console
from model.errors import FacegalleryError
from model.pipeline import WEIGHTS


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
