"""`facegallery enroll`."""

import json
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import Exit, GalleryOption, JsonOption, complain, opened_service, progress_bar
from app.gallery.errors import PhotosRefused
from app.gallery.photos import Photo
from app.gallery.service import DEFAULT_GALLERY
from model.photo_folder import DatasetError, list_photos


def enroll_command(
    folder: Annotated[
        Path, typer.Argument(help="A folder with a folder of photos for each person.", exists=True, file_okay=False)
    ],
    gallery: GalleryOption = DEFAULT_GALLERY,
    largest: Annotated[bool, typer.Option("--largest", help="Take the largest of several faces.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Enroll the people of a folder; the folders' names are the subjects. Running it again adds nothing.

    Exit codes: 0 done, 1 failed, 3 done but some photos were refused.
    """
    try:
        listed = list_photos(folder)
    except DatasetError as error:
        raise typer.BadParameter(str(error), param_hint="FOLDER") from error
    added, known, refused = 0, 0, list[dict[str, str]]()
    with opened_service() as service, progress_bar() as progress:
        task = progress.add_task("enrolling", total=len(listed))
        for subject, photos_of in groupby(listed, key=lambda photo: photo.subject):
            files_of = [photo.path for photo in photos_of]
            for first in range(0, len(files_of), 20):
                files = files_of[first : first + 20]
                photos = [Photo(str(file.relative_to(folder)), file.read_bytes()) for file in files]
                try:
                    report = service.enroll(gallery, subject, photos, face="largest" if largest else "single")
                    failures = report.refused
                    added += len(report.enrolment.added)
                    known += len(report.enrolment.known)
                except PhotosRefused as error:
                    failures = error.refused
                refused += [{"photo": one.photo, "reason": one.slug, "detail": one.detail} for one in failures]
                progress.advance(task, len(files))
    if as_json:
        print(json.dumps({"gallery": gallery, "added": added, "known": known, "refused": refused}, ensure_ascii=False))
    else:
        for one in refused:
            complain(f"refused {one['photo']}: {one['detail']}", style="yellow")
        print(f"{added} templates added, {known} known, {len(refused)} photos refused")
    raise typer.Exit(Exit.PARTLY if refused else Exit.DONE)
