"""`facegallery reindex`."""

import json
from contextlib import suppress
from typing import Annotated

import typer

from app.commands.options import Exit, JsonOption, complain, opened_service
from app.commands.tables import print_table
from app.gallery.errors import ExtractorMismatch, GalleryNotFound
from app.gallery.extractor_check import check_extractor
from app.gallery.names import normalise_gallery_name
from app.gallery.service import GalleryService


def reindex_command(
    gallery: Annotated[str | None, typer.Option("--gallery", "-g", help="One gallery; else all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild indexes from SQL; running services do so in the background.

    Exit codes: 0 done, 1 failed, 3 done but galleries of another extractor, which only its service can search.
    """
    rows, others = list[dict[str, object]](), list[str]()
    with opened_service() as service:
        if gallery is not None:
            rows.append(_rebuilt(service, normalise_gallery_name(gallery)))
        else:
            for one in service.store.galleries():
                with suppress(GalleryNotFound):  # erased while others were built
                    try:
                        rows.append(_rebuilt(service, one.name))
                    except ExtractorMismatch:
                        others.append(f"{one.name}: belongs to extractor {one.extractor}; nothing was done")
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
    else:
        print_table(("gallery", "revision", "templates"), (list(row.values()) for row in rows))
    for sentence in others:
        complain(sentence, style="yellow")
    raise typer.Exit(Exit.PARTLY if others else Exit.DONE)


def _rebuilt(service: GalleryService, name: str) -> dict[str, object]:
    """What became of a gallery whose index is built anew.

    Raises:
        GalleryNotFound: there is none.
        ExtractorMismatch: it belongs to another extractor.
    """
    check_extractor(service.store.gallery(name), service.extractor)
    revision = service.history.request_rebuild(name).revision
    return {"gallery": name, "revision": revision, "templates": service.replicas.up_to_date(name).templates}
