"""`facegallery reindex`."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.commands.options import JsonOption, opened_service


def reindex_command(
    gallery: Annotated[str | None, typer.Option("--gallery", "-g", help="One gallery; else all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild indexes from SQL; running services do so in the background."""
    rows = []
    with opened_service() as service:
        names = [gallery] if gallery else [one.name for one in service.store.galleries()]
        for name in names:
            revision = service.history.request_rebuild(name).revision
            rows.append(
                {"gallery": name, "revision": revision, "templates": service.replicas.up_to_date(name).templates}
            )
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    table = Table("gallery", "revision", "templates")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
