"""`facegallery`: serve, migrate, enroll, identify, reindex."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from app.gallery.database import open_engine
from app.gallery.errors import PhotosRefused
from app.gallery.migrations import migrate as migrate_database
from app.gallery.photos import Photo
from app.gallery.service import DEFAULT_GALLERY, GalleryService
from app.settings import Settings
from app.telemetry import set_up_logging
from model.errors import FacegalleryError
from model.photo_folder import DatasetError, list_photos

cli = typer.Typer(
    name="facegallery",
    help="Enroll people from photos, identify them in others, call strangers unknown.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True)
GalleryOption = Annotated[str, typer.Option("--gallery", "-g", help="Name of the gallery.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class Exit(IntEnum):
    """Exit codes."""

    DONE = 0
    REFUSED = 1  # something could not be done; the message says what
    USAGE = 2  # the command's words are off
    PARTLY = 3  # done, but some photos were refused


@contextmanager
def _service() -> Iterator[GalleryService]:
    from app.main import open_service  # brings the networks' runtime, which `migrate` and `--help` need not wait for

    settings = Settings()
    set_up_logging(form=settings.log_format, level="warning")
    service = open_service(settings)
    try:
        yield service  # an index is built when a command first searches its gallery
    finally:
        service.store.close()


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [FACEGALLERY_HOST].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [FACEGALLERY_PORT].")] = None,
    migrate_first: Annotated[bool, typer.Option("--migrate", help="Bring the tables up to date first.")] = False,
) -> None:
    """Serve the REST API."""
    import uvicorn

    from app.main import create_app

    settings = Settings()
    if migrate_first:
        migrate()
    uvicorn.run(
        create_app(settings),
        host=host or settings.host,
        port=settings.port if port is None else port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )


@cli.command()
def migrate(
    target: Annotated[str, typer.Argument(help="Version to go to: `head`, `base`, or a version's id.")] = "head",
) -> None:
    """Bring the database's tables up to date."""
    settings = Settings()
    migrate_database(open_engine(settings.sqlalchemy_url, timeout=settings.database_timeout), target)


@cli.command()
def enroll(
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
    with _service() as service, _progress() as progress:
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
            _complain(f"refused {one['photo']}: {one['detail']}", style="yellow")
        print(f"{added} templates added, {known} known, {len(refused)} photos refused")
    raise typer.Exit(Exit.PARTLY if refused else Exit.DONE)


@cli.command()
def identify(
    files: Annotated[list[Path], typer.Argument(help="Photos.", exists=True, dir_okay=False)],
    gallery: GalleryOption = DEFAULT_GALLERY,
    threshold: Annotated[float | None, typer.Option(min=0, max=2, help="Largest distance to accept.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Name the faces of photos, or call them unknown.

    Exit codes: 0 done, 1 failed, 3 done but some photos could not be read.
    """
    rows, unreadable = list[dict[str, object]](), 0
    with _service() as service, _progress() as progress:
        for file in progress.track(files, description="identifying"):
            try:
                found = service.identify(gallery, Photo(str(file), file.read_bytes()), threshold=threshold)
            except FacegalleryError as error:
                if error.slug not in {"unsupported-image", "image-too-large"}:
                    raise
                unreadable += 1
                _complain(f"{file}: {error}", style="yellow")
                continue
            for face, match in zip(found.faces, found.matches, strict=True):
                identity = match.identity
                rows.append(
                    {
                        "file": str(file),
                        "box": [round(side) for side in face.face.box],
                        "subject": identity.subject.key if identity else None,
                        "distance": round(identity.distance, 4) if identity else None,
                        "threshold": round(found.threshold, 4),
                    }
                )
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
    else:
        table = Table("file", "box", "subject", "distance")
        for row in rows:
            distance = "" if row["distance"] is None else str(row["distance"])
            table.add_row(str(row["file"]), str(row["box"]), str(row["subject"] or "unknown"), distance)
        Console().print(table)
    raise typer.Exit(Exit.PARTLY if unreadable else Exit.DONE)


@cli.command()
def reindex(
    gallery: Annotated[str | None, typer.Option("--gallery", "-g", help="One gallery; else all.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild indexes from SQL; running services do so on their next call."""
    rows = []
    with _service() as service:
        names = [gallery] if gallery else [one.name for one in service.store.galleries()]
        for name in names:
            revision = service.store.request_rebuild(name).revision
            rows.append({"gallery": name, "revision": revision, "templates": service.rebuild(name)})
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    table = Table("gallery", "revision", "templates")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def _complain(sentence: str, *, style: str) -> None:
    """One line on standard error, as it is: names and paths are no markup and are not wrapped."""
    _errors.print(sentence, style=style, markup=False, highlight=False, soft_wrap=True)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_errors,
        disable=not sys.stderr.isatty(),
    )


def main() -> None:
    """Run the command line; a known error is one line and an exit code, not a traceback."""
    try:
        cli()
    except FacegalleryError as error:
        _complain(f"error: {error}", style="red")
        sys.exit(Exit.REFUSED)
