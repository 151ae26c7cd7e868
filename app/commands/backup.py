"""`facegallery backup` and `facegallery restore`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import opened_database, tell_plain_subjects
from app.commands.places import check_place
from app.commands.progress import shown_progress
from app.gallery.moving import backup
from app.gallery.sql.epochs import begin_epoch
from app.gallery.sql.in_use import refuse_in_use
from app.settings import Settings


def backup_command(
    file: Annotated[Path, typer.Argument(help="The copy to write.", dir_okay=False)],
    vault: Annotated[
        bool, typer.Option("--vault", help="Copy the vault of keys instead; keep both copies apart.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a copy that is there.")] = False,
) -> None:
    """Copy the SQLite database, or its vault, while services use it; for PostgreSQL there is pg_dump."""
    settings = Settings()
    place = check_place(file)
    there = [path for path in backup.files_of(place) if path.exists()]
    if there and not replace:
        raise typer.BadParameter(f"{there[0]} is there already; choose another name, or --replace", param_hint="FILE")
    address, tables = settings.sqlalchemy_url, backup.GALLERY_TABLES
    if vault:
        address, tables = settings.sqlalchemy_vault_url, backup.VAULT_TABLES
    print(f"{file}: {backup.back_up(address, place, tables=tables, shown=shown_progress)} bytes")


def restore_command(
    file: Annotated[
        Path | None, typer.Argument(help="A copy of an SQLite database.", exists=True, dir_okay=False)
    ] = None,
    while_running: Annotated[
        bool, typer.Option("--while-running", help="Go on though a service uses the database.")
    ] = False,
) -> None:
    """Put a copy in the SQLite database's place; stop the services first.

    Without a file: the database was restored by other means, such as pg_restore, and indexes must be built anew.
    """
    settings = Settings()
    if not while_running:
        refuse_in_use(settings.sqlalchemy_url, timeout=settings.database_timeout, waiting=_tell_of_waiting)
    if file is not None:
        galleries = backup.restore(
            file, settings.sqlalchemy_url, timeout=settings.database_timeout, shown=shown_progress
        )
    with opened_database() as engine:
        if file is None:
            galleries = begin_epoch(engine)
        tell_plain_subjects(engine)
    print(f"restored {galleries} galleries; every index is built anew on its next use")


def _tell_of_waiting() -> None:
    print("a service has reported within the last minute; waiting to see whether it still does", file=sys.stderr)
