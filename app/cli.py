"""`facegallery`: every command by its name."""

import sys

import typer

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


def main() -> None:
    """Run the command line; a known error is one line and an exit code, not a traceback."""
    try:
        cli()
    except FacegalleryError as error:
        complain(f"error: {error}", style="red")
        sys.exit(Exit.REFUSED)
