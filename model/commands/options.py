"""What several commands share: their options, where they write, how they show progress."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from model.card import CARD_FILE

console = Console(stderr=True)
"""For everything but results, which go to standard output."""

WeightsOption = Annotated[Path, typer.Option(help="Folder that holds a folder for each network.")]
DetectorOption = Annotated[str, typer.Option(help="Name of a detector in --weights, or a folder with a card.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Processor threads; 0: all.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, for scripts.")]


class RateColumn(ProgressColumn):
    """Things done a second."""

    def __init__(self, things: str = "photos") -> None:
        super().__init__()
        self._things = things

    def render(self, task: Task) -> Text:
        """Return the rate of the last moments, or of all of a finished task."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} {self._things}/s")


def progress_bar(things: str = "photos") -> Progress:
    """A bar with the count, the rate and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(things))
    return Progress(*columns, TimeRemainingColumn(), console=console)


def network_folder(weights: Path, network: str) -> Path:
    """Return the folder that a name means: one with a card as it is, or one of the weights."""
    return Path(network) if (Path(network) / CARD_FILE).is_file() else weights / network
