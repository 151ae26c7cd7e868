"""`facegallery check`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer

from app.commands.options import Exit, JsonOption, complain, opened_service, tell_plain_subjects
from app.commands.progress import shown_blocks
from app.commands.tables import print_table
from app.gallery.errors import ExtractorMismatch, GalleryNotFound
from app.gallery.names import normalise_gallery_name
from app.gallery.records import TemplateBlock
from app.gallery.service import GalleryService
from app.gallery.sql.history import GalleryHistory
from app.gallery.store import GalleryStore
from app.gallery.views.consistency import Consistency, check_gallery, check_rows, repair_gallery

_NAMED = 20  # templates of a gallery


def check_command(
    gallery: Annotated[str | None, typer.Option("--gallery", "-g", help="One gallery; else all.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what differs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare rows, index and snapshots; the service may go on meanwhile.

    The index is the one that a process which starts now would search: the newest snapshot and the changes since, or,
    where there is none, all rows anew. What a process that runs has in its memory is not seen; where that is
    suspected, `facegallery reindex` has all of them build it anew.

    Exit codes: 0 all the same, or mended; 1 something differs, or does not open; 3 of a gallery of another extractor
    only the rows were looked at.
    """
    rows: list[Consistency] = []
    with opened_service() as service:
        if gallery is not None:
            rows.append(_checked(service, normalise_gallery_name(gallery), repair=repair))
        else:
            for one in service.store.galleries():
                with suppress(GalleryNotFound):  # erased while others were looked at, or this one
                    rows.append(_checked(service, one.name, repair=repair))
        tell_plain_subjects(service.store.engine)
    if as_json:
        print(json.dumps([asdict(row) | {"whole": row.whole} for row in rows], ensure_ascii=False))
    else:
        print_table(
            ("gallery", "templates", "missing", "surplus", "moved", "changed", "unreadable", "snapshots"),
            map(_cells, rows),
        )
    for row in rows:
        _explain(row)
    mendable, closed = any(row.mendable for row in rows), any(row.unreadable for row in rows)
    if mendable:
        complain("mended: every process builds its index anew" if repair else "add --repair to mend it", style="yellow")
    if closed or (mendable and not repair):
        raise typer.Exit(Exit.REFUSED)
    raise typer.Exit(Exit.DONE if all(row.compared for row in rows) else Exit.PARTLY)


def _checked(service: GalleryService, name: str, *, repair: bool) -> Consistency:
    """What a look at a gallery has found, and mended where that is wanted.

    Raises:
        GalleryNotFound: there is none, or it was erased meanwhile.
    """
    found = service.store.gallery(name)
    history = _ShownHistory(service.store, service.store.size(found).templates)
    if found.extractor == service.extractor:
        with suppress(ExtractorMismatch):  # it moves to another meanwhile
            row = check_gallery(found, history, service.indexes)
            if repair and row.mendable:
                repair_gallery(found, history, service.indexes)
            return row
        found = service.store.gallery(name)
    row = check_rows(found, history)
    complain(
        f"{found.name}: belongs to extractor {found.extractor}; whether its templates open was looked at, its index "
        "and snapshots only a service of that extractor has",
        style="yellow",
    )
    return row


class _ShownHistory(GalleryHistory):
    """Shows how far each reading of a gallery's templates is: one for its index without a snapshot, one to compare."""

    def __init__(self, store: GalleryStore, templates: int) -> None:
        super().__init__(store.engine, store.seals)
        self._templates = templates

    def template_blocks(self, gallery_id: int) -> Iterator[TemplateBlock]:
        """All templates of a gallery in blocks."""
        return shown_blocks("reading templates", super().template_blocks(gallery_id), self._templates)


def _cells(row: Consistency) -> tuple[object, ...]:
    if not row.compared:
        return (row.gallery, row.templates, *4 * "–", len(row.unreadable), "–")
    counts = (row.templates, row.missing, row.surplus, row.moved, row.changed, len(row.unreadable))
    return (row.gallery, *counts, _snapshots(row))


def _snapshots(row: Consistency) -> str:
    said = [
        f"{count} {what}"
        for count, what in ((len(row.damaged_snapshots), "damaged"), (row.closed_snapshots, "not opened"))
        if count
    ]
    return ", ".join(said) or ("whole" if row.snapshots else "none")


def _explain(row: Consistency) -> None:
    for reason in row.damaged_snapshots:
        complain(f"{row.gallery}: {reason}", style="red")
    differing = row.differing
    for what, ids, count in (
        ("are not in the index", differing.missing, row.missing),
        ("are in the index and not in SQL", differing.surplus, row.surplus),
        ("have another subject in the index", differing.moved, row.moved),
        ("have another embedding in the index", differing.changed, row.changed),
    ):
        if count:
            complain(f"{row.gallery}: templates that {what}: {_named(ids, count)}", style="red")
    forgotten = set(row.forgotten)
    others = [one for one in row.unreadable if one not in forgotten]
    if others:
        advice = "enroll or import their photos again, erase them, or restore the vault"
        complain(f"{row.gallery}: templates that do not open: {_named(others, len(others))}; {advice}", style="red")
    if row.forgotten:
        complain(
            f"{row.gallery}: templates of people who were forgotten and came back with a backup: "
            f"{_named(row.forgotten, len(row.forgotten))}; the next sweep erases them, or "
            "`facegallery retention sweep` now",
            style="red",
        )


def _named(first: Sequence[int], count: int) -> str:
    """The first of so many templates; an index that does not name its own may have more than are known."""
    named = [str(one) for one in first[:_NAMED]]
    return ", ".join(named) if len(named) == count else f"{', '.join(named)} … ({count} in all)".lstrip()
