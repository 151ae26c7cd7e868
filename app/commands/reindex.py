"""`facegallery reindex`."""

import json
from typing import Annotated

import typer

from app.commands.options import Exit, JsonOption, complain, opened_service
from app.commands.tables import print_table
from app.gallery.extractor_check import check_extractor
from app.gallery.names import normalise_gallery_name


def reindex_command(
    gallery: Annotated[str | None, typer.Option("--gallery", "-g", help="One gallery; else all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild indexes from SQL; running services do so in the background.

    Exit codes: 0 done, 1 failed, 3 done but galleries of another extractor, which only its service can search.
    """
    rows, others = [], []
    with opened_service() as service:
        if gallery is not None:
            wanted = [service.store.gallery(normalise_gallery_name(gallery))]
            check_extractor(wanted[0], service.extractor)
        else:
            wanted = list(service.store.galleries())
        for one in wanted:
            if one.extractor != service.extractor:
                others.append(one)
                continue
            revision = service.history.request_rebuild(one.name).revision
            templates = service.replicas.up_to_date(one.name).templates
            rows.append({"gallery": one.name, "revision": revision, "templates": templates})
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
    else:
        print_table(("gallery", "revision", "templates"), (list(row.values()) for row in rows))
    for one in others:
        complain(f"{one.name}: belongs to extractor {one.extractor}; nothing was done", style="yellow")
    raise typer.Exit(Exit.PARTLY if others else Exit.DONE)
