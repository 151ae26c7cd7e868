"""`facegallery`: every command by its name."""

import sys

import typer

from app.commands.enroll import enroll_command
from app.commands.forget import forget_command
from app.commands.identify import identify_command
from app.commands.master_key import master_key
from app.commands.migrate import migrate_command
from app.commands.options import Exit, complain
from app.commands.receipt import receipt
from app.commands.reindex import reindex_command
from app.commands.retention import retention
from app.commands.serve import serve_command
from model.errors import FacegalleryError

cli = typer.Typer(
    name="facegallery",
    help="Enroll people from photos, identify them in others, call strangers unknown.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for name, command in (
    ("serve", serve_command),
    ("migrate", migrate_command),
    ("enroll", enroll_command),
    ("identify", identify_command),
    ("reindex", reindex_command),
    ("forget", forget_command),
):
    cli.command(name)(command)
for group in (master_key, receipt, retention):
    cli.add_typer(group)


def main() -> None:
    """Run the command line; a known error is one line and an exit code, not a traceback."""
    try:
        cli()
    except FacegalleryError as error:
        complain(f"error: {error}", style="red")
        sys.exit(Exit.REFUSED)
