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
    """Have indexes built anew from SQL: by running services in the background, or by the next start.

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
    """What is wanted of a gallery whose index is to be built anew, which an engine's is at once.

    One of this process would be built for nobody, in as much memory as a service has for it.

    Raises:
        GalleryNotFound: there is none.
        ExtractorMismatch: it belongs to another extractor.
    """
    check_extractor(service.store.gallery(name), service.extractor)
    present = service.history.request_rebuild(name)
    if service.indexes.engine is not None:
        service.replicas.up_to_date(name)
    return {"gallery": name, "revision": present.revision, "templates": service.store.size(present).templates}
