"""`facegallery reindex`."""

import json
from typing import Annotated

import typer

from app.commands.options import JsonOption, opened_service
from app.commands.tables import print_table
from app.gallery.names import normalise_gallery_name


def reindex_command(
    gallery: Annotated[str | None, typer.Option("--gallery", "-g", help="One gallery; else all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild indexes from SQL; running services do so in the background."""
    rows = []
    with opened_service() as service:
        names = (
            [normalise_gallery_name(gallery)]
            if gallery is not None
            else [one.name for one in service.store.galleries()]
        )
        for name in names:
            revision = service.history.request_rebuild(name).revision
            rows.append(
                {"gallery": name, "revision": revision, "templates": service.replicas.up_to_date(name).templates}
            )
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    print_table(("gallery", "revision", "templates"), (list(row.values()) for row in rows))
