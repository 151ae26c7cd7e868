"""`facegallery identify`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import Exit, GalleryOption, JsonOption, complain, opened_service
from app.commands.progress import shown_progress
from app.commands.tables import print_table
from app.gallery.photos import Photo, read_photo
from app.gallery.service import DEFAULT_GALLERY, GalleryService
from app.settings import Settings
from model.errors import FacegalleryError


def identify_command(
    files: Annotated[list[Path], typer.Argument(help="Photos.")],
    gallery: GalleryOption = DEFAULT_GALLERY,
    threshold: Annotated[float | None, typer.Option(min=0, max=2, help="Largest distance to accept.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Name the faces of photos, or call them unknown.

    Exit codes: 0 done, 1 failed, 3 done but some photos could not be read.
    """
    rows, unreadable = list[dict[str, object]](), 0
    with opened_service() as service, shown_progress("identifying", len(files)) as advance:
        for file in files:
            try:
                rows += _identified(service, gallery, file, threshold)
            except FacegalleryError as error:
                if error.slug not in {"unsupported-image", "image-too-large"}:
                    raise
                unreadable += 1
                complain(f"{file}: {error}", style="yellow")
            advance(1)
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
    else:
        print_table(
            ("file", "box", "subject", "distance"),
            (
                (
                    row["file"],
                    row["box"],
                    row["subject"] or "unknown",
                    "" if row["distance"] is None else row["distance"],
                )
                for row in rows
            ),
        )
    raise typer.Exit(Exit.PARTLY if unreadable else Exit.DONE)


def _identified(
    service: GalleryService, gallery: str, file: Path, threshold: float | None
) -> Iterator[dict[str, object]]:
    photo = Photo(str(file), read_photo(file, max_bytes=Settings().max_image_bytes))
    found = service.identify(gallery, photo, threshold=threshold)
    for face, match in zip(found.faces, found.matches, strict=True):
        identity = match.identity
        yield {
            "file": str(file),
            "box": [round(side) for side in face.face.box],
            "subject": identity.subject.key if identity else None,
            "distance": round(identity.distance, 4) if identity else None,
            "threshold": round(found.threshold, 4),
        }
