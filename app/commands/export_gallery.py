"""`facegallery export`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from app.access.audit import names_subject
from app.access.audit_log import AuditLog
from app.commands.options import Exit, GalleryOption, JsonOption, complain, opened_store
from app.commands.places import check_place
from app.commands.progress import shown_progress
from app.gallery.errors import StorageUnwritable
from app.gallery.journal import Event, Journal
from app.gallery.moving.archive import write_archive
from app.gallery.moving.exporting import open_snapshot
from app.gallery.names import normalise_gallery_name, normalise_name
from app.gallery.service import DEFAULT_GALLERY


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
    """Write a gallery, as it is at one moment, as one archive that `import` reads back; it is not sealed.

    Exit codes: 0 done, 1 failed, 3 done but something did not open and was left out.
    """
    if file.exists() and not replace:
        raise typer.BadParameter(f"{file} is there already; choose another name, or --replace", param_hint="FILE")
    key = None if subject is None else normalise_name(subject, part="subject")
    name = normalise_gallery_name(gallery)
    place = check_place(file)
    with opened_store() as store, open_snapshot(store.engine, name, subject=key, seals=store.seals) as snapshot:
        # Before anything is written, but not for what cannot be.
        store.record(Event("export", name, () if key is None else (key,), {"crops": not without_crops}))
        entries = _EntriesAbout(store.journal, name, key)
        try:
            manifest = write_archive(
                place, snapshot, subject=key, crops=not without_crops, audit=entries, shown=shown_progress
            )
        except OSError as error:
            raise StorageUnwritable(f"{file} cannot be written: {error.strerror}") from error
        unreadable = snapshot.unreadable
    counts = {"subjects": manifest.subjects, "templates": manifest.templates, "crops": manifest.crops}
    if as_json:
        print(json.dumps({"file": str(file), "gallery": manifest.gallery, "extractor": manifest.extractor, **counts}))
    else:
        print(f"{file}: {', '.join(f'{count} {what}' for what, count in counts.items())} of {manifest.extractor}")
    if unreadable:
        complain(f"{unreadable} templates, crops or old embeddings do not open and were left out", style="yellow")
    if entries.damaged:
        complain(
            f"{entries.damaged} entries of the audit log are none any more and were left out; see `facegallery audit "
            "verify`",
            style="yellow",
        )
    if unreadable or entries.damaged:
        raise typer.Exit(Exit.PARTLY)


class _EntriesAbout:
    """The entries of the audit log that name a subject of a gallery, as JSON, and how many could not be asked."""

    def __init__(self, journal: Journal, gallery: str, subject: str | None) -> None:
        self._journal, self._gallery, self._subject = journal, gallery, subject
        self.damaged = 0

    def __iter__(self) -> Iterator[str]:
        if self._subject is None or not isinstance(self._journal, AuditLog):
            return
        for line in self._journal.entries():
            named = names_subject(line, self._subject, gallery=self._gallery)
            self.damaged += named is None
            if named:
                yield json.dumps(json.loads(line)["entry"])
