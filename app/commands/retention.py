"""`facegallery retention`."""

import json
from typing import Annotated

import typer

from app.commands.options import JsonOption, opened_service

retention = typer.Typer(name="retention", help="Erase people whose time is over.", no_args_is_help=True)


@retention.command("sweep")
def sweep_command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many are due, and erase nobody.")] = False,
    clock_is_right: Annotated[
        bool,
        typer.Option("--clock-is-right", help="I have looked at the clocks: do not doubt them after a long pause."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase now what a running service erases every FACEGALLERY_SWEEP_INTERVAL seconds."""
    with opened_service() as service:
        if dry_run:
            expired, came_back = service.retention.due(), 0
        else:
            try:
                sweep = service.retention.sweep(clock_is_right=clock_is_right)
            finally:
                service.replicas.settle_engine()
            expired, came_back = sweep.expired, sweep.came_back
    if as_json:
        print(json.dumps({"expired": expired, "came_back": came_back}, ensure_ascii=False))
        return
    for gallery, count in expired.items():
        print(f"{gallery}: {count} {'due' if dry_run else 'erased'}")
    if came_back:
        print(f"{came_back} that a backup had brought back erased again")
    if not expired and not came_back:
        print("nobody is due")
