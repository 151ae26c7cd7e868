"""The command line `facemodel`: import, train and measure networks."""

import sys
from collections.abc import Sequence

import typer

from model.commands.card import card_command
from model.commands.digits import digits_command
from model.commands.evaluate import evaluate_command
from model.commands.export import export_command
from model.commands.import_zoo import import_command
from model.commands.prepare import prepare_command
from model.commands.shares import shares_command
from model.commands.train import train_command
from model.errors import FacegalleryError
from model.photo_folder import DatasetError

app = typer.Typer(
    name="facemodel",
    help="The networks behind a face gallery: import them, train them, measure how good they are.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("prepare")(prepare_command)
app.command("train")(train_command)
app.command("shares")(shares_command)
app.command("evaluate")(evaluate_command)
app.command("digits")(digits_command)
app.command("export")(export_command)
app.command("import")(import_command)
app.command("card")(card_command)


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
