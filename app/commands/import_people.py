"""`facegallery import`."""

import csv
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import Exit, JsonOption, complain, opened_service
from app.commands.places import check_place
from app.commands.progress import shown_progress
from app.gallery.errors import Busy, DatabaseUnavailable, RefusedPhoto, StorageUnwritable
from app.gallery.moving.archive import ArchiveReader
from app.gallery.moving.archive_import import import_archive
from app.gallery.moving.import_sources import people_of_folder, people_of_table
from app.gallery.moving.importing import ImportReport, PeopleImport
from app.gallery.names import normalise_gallery_name
from app.gallery.policy import FixedDistance
from app.gallery.service import DEFAULT_GALLERY
from app.settings import Settings
from model.replaced_file import replaced_file


def import_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder with a folder of photos for each person; a CSV table with the columns `subject` and "
            "`file`; or an archive that `export` made.",
            exists=True,
        ),
    ],
    gallery: Annotated[
        str | None, typer.Option("--gallery", "-g", help="Name of the gallery; of an archive: else its own.")
    ] = None,
    largest: Annotated[bool, typer.Option("--largest", help="Take the largest of several faces.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write what was refused and why here, as .json or .csv.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import people. Running it again adds nothing, and after a break it goes on.

    Exit codes: 0 done, 1 failed, 3 done but some photos, or subjects of an archive, were refused, 130 stopped.
    """
    if report is not None and report.suffix not in {".json", ".csv"}:
        raise typer.BadParameter("name a file that ends in .json or .csv", param_hint="--report")
    place = None if report is None else check_place(report)
    if place == source.resolve():
        raise typer.BadParameter("that is what is to be imported; choose another name", param_hint="--report")
    is_archive = source.is_file() and (zipfile.is_zipfile(source) or source.suffix.lower() == ".zip")
    try:
        done = _import_archive(source, gallery) if is_archive else _import_photos(source, gallery, largest)
    except KeyboardInterrupt as stop:
        complain("stopped; what was stored stays, and running it again goes on from there", style="yellow")
        raise typer.Exit(Exit.STOPPED) from stop
    except (Busy, DatabaseUnavailable, StorageUnwritable):  # of the one transaction that failed
        complain("people stored until now stay; running it again goes on from there", style="yellow")
        raise
    name, outcome = done
    if as_json:
        print(json.dumps(_document(name, outcome), ensure_ascii=False))
    else:
        for one in outcome.refused:
            complain(f"refused {one.photo}: {one.detail}", style="yellow")
        what = "subjects" if is_archive else "photos"
        print(
            f"{outcome.added} templates added, {outcome.known} known, {outcome.passed_over} photos imported before, "
            f"{len(outcome.refused)} {what} refused"
        )
    if place is not None:  # last: what was done is told even where the disk is full by now
        sys.stdout.flush()
        _write_report(place, name, outcome)
    raise typer.Exit(Exit.PARTLY if outcome.refused else Exit.DONE)


def _import_photos(source: Path, gallery: str | None, largest: bool) -> tuple[str, ImportReport]:
    people = people_of_folder(source) if source.is_dir() else people_of_table(source)
    name = normalise_gallery_name(DEFAULT_GALLERY if gallery is None else gallery)
    settings = Settings()
    with opened_service() as service:
        job = PeopleImport(
            service.store,
            service.reader,
            name,
            workers=settings.workers or os.cpu_count() or 1,
            max_bytes=settings.max_image_bytes,
            face="largest" if largest else "single",
            keep_crops=settings.keep_crops,
            admit=service.admit,
            retention=service.retention,
        )
        with shown_progress("importing photos", len(people.photos)) as progress:
            return name, job.run(people, progress)


def _import_archive(source: Path, gallery: str | None) -> tuple[str, ImportReport]:
    with ArchiveReader(source) as archive, opened_service() as service:
        name = normalise_gallery_name(archive.manifest.gallery if gallery is None else gallery)
        extractor = service.reader.networks.extractor
        with shown_progress("importing templates", archive.manifest.templates) as progress:
            stored = import_archive(
                archive,
                name,
                service.store,
                extractor,
                keep_crops=Settings().keep_crops,
                retention=service.retention,
                progress=progress,
            )
        policy = service.store.gallery(name).policy
    if isinstance(policy, FixedDistance) and archive.manifest.extractor != extractor.card.identity:
        complain(
            f"the embeddings were made anew by {extractor.card.identity}; the threshold of gallery {name!r} is a fixed "
            "distance, which means something else now: choose it anew",
            style="yellow",
        )
    refused = tuple(RefusedPhoto(f"subject {one.subject}", one.slug, one.detail) for one in stored.refused)
    return name, ImportReport(stored.added, stored.known, 0, refused)


def _document(gallery: str, outcome: ImportReport) -> dict[str, object]:
    return {
        "gallery": gallery,
        "added": outcome.added,
        "known": outcome.known,
        "passed_over": outcome.passed_over,
        "refused": _rows(outcome.refused),
    }


def _rows(refused: Sequence[RefusedPhoto]) -> list[dict[str, str]]:
    return [{"photo": one.photo, "reason": one.slug, "detail": one.detail} for one in refused]


def _write_report(file: Path, gallery: str, outcome: ImportReport) -> None:
    try:
        with replaced_file(file) as draft, draft.open("w", encoding="utf-8", newline="") as stream:
            if file.suffix == ".json":
                json.dump(_document(gallery, outcome), stream, ensure_ascii=False, indent=2)
                return
            table = csv.DictWriter(stream, ["photo", "reason", "detail"])
            table.writeheader()
            table.writerows(_rows(outcome.refused))
    except OSError as error:
        raise StorageUnwritable(f"the report {file} cannot be written: {error.strerror}") from error
