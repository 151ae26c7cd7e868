"""`facegallery export`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import GalleryOption, JsonOption, opened_database
from app.gallery.archive import write_archive
from app.gallery.names import normalise_gallery_name, normalise_name
from app.gallery.service import DEFAULT_GALLERY
from app.gallery.transfer_store import TransferStore


def export_command(
    file: Annotated[Path, typer.Argument(help="The archive to write, a .zip file.", dir_okay=False)],
    gallery: GalleryOption = DEFAULT_GALLERY,
    subject: Annotated[
        str | None, typer.Option("--subject", help="All that is held about one person, instead of everybody.")
    ] = None,
    without_crops: Annotated[bool, typer.Option("--without-crops", help="Leave kept crops out.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an archive that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a gallery, as it is at one moment, as one archive that `import` reads back."""
    if file.exists() and not replace:
        raise typer.BadParameter(f"{file} is there already; choose another name, or --replace", param_hint="FILE")
    key = None if subject is None else normalise_name(subject, part="subject")
    name = normalise_gallery_name(gallery)
    with opened_database() as engine, TransferStore(engine).snapshot(name, subject=key) as snapshot:
        manifest = write_archive(file, snapshot, subject=key, crops=not without_crops)
    counts = {"subjects": manifest.subjects, "templates": manifest.templates, "crops": manifest.crops}
    if as_json:
        print(json.dumps({"file": str(file), "gallery": manifest.gallery, "extractor": manifest.extractor, **counts}))
    else:
        print(f"{file}: {', '.join(f'{count} {what}' for what, count in counts.items())} of {manifest.extractor}")
