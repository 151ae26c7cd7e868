"""`facemodel card`: what a network is."""

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from model.card import read_card
from model.commands.options import JsonOption, WeightsOption, network_folder
from model.pipeline import WEIGHTS


def card_command(
    network: Annotated[str, typer.Argument(help="Name of a network in --weights, or a folder with a card.")],
    weights: WeightsOption = WEIGHTS,
    as_json_text: JsonOption = False,
) -> None:
    """Show what a network is, where it comes from, how good it is, and its thresholds."""
    card = read_card(network_folder(weights, network))
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
