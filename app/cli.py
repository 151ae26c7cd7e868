"""`facegallery`: every command by its name."""

import io
import os
import signal
import sys
from importlib.metadata import version
from types import FrameType
from typing import Annotated

import typer
from alembic.util.exc import CommandError
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from sqlalchemy.exc import ArgumentError

from app.commands.audit import audit_cli
from app.commands.backup import backup_command, restore_command
from app.commands.check import check_command
from app.commands.duplicates import duplicates_command
from app.commands.export_gallery import export_command
from app.commands.forget import forget_command
from app.commands.identify import identify_command
from app.commands.import_people import import_command
from app.commands.keys import keys_cli
from app.commands.master_key import master_key
from app.commands.migrate import migrate_command
from app.commands.options import Exit, complain
from app.commands.receipt import receipt
from app.commands.reembed import reembed_command
from app.commands.reindex import reindex_command
from app.commands.retention import retention
from app.commands.serve import serve_command
from app.gallery.sql.failures import in_full
from app.settings import Settings, unknown_settings
from app.telemetry import set_up_logging
from model.errors import FacegalleryError

cli = typer.Typer(
    name="facegallery",
    help="Enroll people from photos, identify them in others, call strangers unknown.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"facegallery {version('facegallery')}")
        raise typer.Exit


@cli.callback()
def _warn(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand != "serve":  # which has a log, and ends in its own way
        signal.signal(signal.SIGTERM, _leave)
        set_up_logging(form="console", level="warning", repeats=False)  # answers alone go to standard output
        for sentence in unknown_settings():
            complain(f"warning: {sentence}", style="yellow")


for name, command in (
    ("serve", serve_command),
    ("migrate", migrate_command),
    ("import", import_command),
    ("export", export_command),
    ("backup", backup_command),
    ("restore", restore_command),
    ("identify", identify_command),
    ("reindex", reindex_command),
    ("check", check_command),
    ("reembed", reembed_command),
    ("duplicates", duplicates_command),
    ("forget", forget_command),
):
    cli.command(name)(command)
cli.add_typer(keys_cli, name="keys")
cli.add_typer(audit_cli, name="audit")
for group in (master_key, receipt, retention):
    cli.add_typer(group)


def _leave(number: int, _frame: FrameType | None) -> None:
    """End as after an error, so that no draft is left behind; a second signal does not wait for that."""
    signal.signal(number, signal.SIG_DFL)
    sys.exit(Exit.TERMINATED)


def main() -> None:
    """Run the command line; what the user can put right is one line and an exit code, a bug is a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    try:
        cli()
    except (FacegalleryError, OSError, ValidationError, ArgumentError, CommandError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        complain(f"error: {sentence}", style="red")
        sys.exit(Exit.REFUSED)


def _sentence(error: Exception) -> str | None:
    """What is wrong, in one line; None where it is a bug."""
    if isinstance(error, ValidationError):
        return "; ".join(map(_setting, error.errors())) if error.title == Settings.__name__ else None
    if isinstance(error, ArgumentError):
        return f"FACEGALLERY_DATABASE_URL or FACEGALLERY_VAULT_URL: {error}"
    if isinstance(error, OSError) and error.strerror is not None and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if not isinstance(error, FacegalleryError):
        return " ".join(str(error).split())
    return in_full(error)


def _setting(flaw: ErrorDetails) -> str:
    """A setting's variable and what is wrong with it; never its value, which may be a secret."""
    what = flaw["msg"].removeprefix("Value error, ")
    return f"FACEGALLERY_{str(flaw['loc'][0]).upper()}: {what}" if flaw["loc"] else what
