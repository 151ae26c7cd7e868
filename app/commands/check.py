"""`facegallery check`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from app.commands.options import Exit, JsonOption, complain, opened_service
from app.commands.tables import print_table
from app.gallery.consistency import Consistency, check_gallery, repair_gallery

_NAMED = 20  # templates of a gallery


def check_command(
    gallery: Annotated[str | None, typer.Option("--gallery", "-g", help="One gallery; else all.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what differs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare rows, index and snapshots; the service may go on meanwhile.

    Exit codes: 0 all the same, or mended; 1 something differs, or does not open.
    """
    rows: list[Consistency] = []
    with opened_service() as service:
        for found in service.store.galleries():
            if gallery not in {None, found.name} or found.extractor != service.extractor:
                continue
            row = check_gallery(found, service.history, service.indexes)
            rows.append(row)
            if repair and row.mendable:
                repair_gallery(found, service.history, service.indexes)
    if as_json:
        print(json.dumps([asdict(row) | {"whole": row.whole} for row in rows], ensure_ascii=False))
    else:
        print_table(
            ("gallery", "templates", "missing", "surplus", "moved", "changed", "unreadable", "snapshots"),
            map(_cells, rows),
        )
    for row in rows:
        for reason in row.damaged_snapshots:
            complain(f"{row.gallery}: {reason}", style="red")
        if row.unreadable:
            named = ", ".join(map(str, row.unreadable[:_NAMED])) + (" …" if len(row.unreadable) > _NAMED else "")
            complain(
                f"{row.gallery}: templates that do not open: {named}; erase them, or restore the vault", style="red"
            )
    mendable, closed = any(row.mendable for row in rows), any(row.unreadable for row in rows)
    if mendable:
        complain("mended: every process builds its index anew" if repair else "add --repair to mend it", style="yellow")
    raise typer.Exit(Exit.REFUSED if closed or (mendable and not repair) else Exit.DONE)


def _cells(row: Consistency) -> tuple[object, ...]:
    counts = (row.templates, row.missing, row.surplus, row.moved, row.changed, len(row.unreadable))
    return (row.gallery, *counts, f"{len(row.damaged_snapshots)} damaged" if row.damaged_snapshots else "whole")
