"""`facegallery duplicates`."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated

import typer

from app.commands.options import GalleryOption, JsonOption, opened_service
from app.commands.progress import shown_blocks, shown_progress
from app.commands.tables import print_table
from app.gallery.doubles.likeness import alike_pairs, find_places, outlying_templates
from app.gallery.doubles.neighbours import neighbours_of
from app.gallery.errors import ExtractorMismatch
from app.gallery.names import normalise_gallery_name, normalise_name
from app.gallery.records import Gallery, TemplateBlock
from app.gallery.service import DEFAULT_GALLERY
from app.gallery.store import GalleryStore


def duplicates_command(
    gallery: GalleryOption = DEFAULT_GALLERY,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=2, help="Distance of one person; else the gallery's threshold.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="The most pairs, and templates, to list.")] = 100,
    merge: Annotated[
        tuple[str, str] | None,
        typer.Option("--merge", help="Two subjects: move the templates of the first to the second; list nothing."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List pairs of subjects that look like one person, and templates that do not look like their subject."""
    name = normalise_gallery_name(gallery)
    with opened_service() as service:
        if merge is not None:
            merged = service.merge_subjects(name, merge[0], merge[1])
            if as_json:
                gone = normalise_name(merge[0], part="subject")
                document = {"gallery": name, "merged": gone, "into": merged.key, "templates": merged.templates}
                print(json.dumps(document, ensure_ascii=False))
            else:
                print(f"{merge[0]} is {merged.key} now, with {merged.templates} templates")
            return
        found = service.store.gallery(name)
        if threshold is None:
            threshold = service.describe(found).threshold
        if threshold is None:
            raise ExtractorMismatch(
                f"gallery {name!r} belongs to {found.extractor}, whose threshold is not known here; give --threshold"
            )
        total = service.store.size(found).templates
        blocks = shown_blocks("reading templates", service.history.template_blocks(found.id), total)
        places = find_places(_of_one_extractor(blocks, service.store, found), found.dimension)
        with shown_progress("comparing subjects", len(places.ids)) as advance:
            near = neighbours_of(places.means)
            pairs = alike_pairs(places, near, threshold, most=most, progress=advance)
        blocks = shown_blocks("comparing templates", service.history.template_blocks(found.id), total)
        blocks = _of_one_extractor(blocks, service.store, found)
        outliers = outlying_templates(blocks, places, near, threshold, most=most, listed=pairs)
        ids = {one.first for one in pairs} | {one.second for one in pairs} | {one.subject_id for one in outliers}
        ids |= {one.nearest_id for one in outliers if one.nearest_id is not None}
        subjects = service.store.subjects_by_id(sorted(ids)) if ids else {}
    alike = [
        {
            "subject": subjects[one.first].key,
            "other": subjects[one.second].key,
            "distance": round(one.distance, 4),
            "templates": [subjects[one.first].templates, subjects[one.second].templates],
        }
        for one in pairs
        if one.first in subjects and one.second in subjects
    ]
    far = [
        {
            "subject": subjects[one.subject_id].key,
            "template": one.template_id,
            "distance": round(one.own_distance, 4),
            "nearest": subjects[one.nearest_id].key if one.nearest_id in subjects else None,
            "nearest_distance": round(one.nearest_distance, 4),
        }
        for one in outliers
        if one.subject_id in subjects
    ]
    if as_json:
        listed = {"gallery": name, "threshold": round(threshold, 4), "pairs": alike, "templates": far}
        print(json.dumps(listed, ensure_ascii=False))
        return
    print(f"distance of one person: {threshold:.4f}")
    for title, columns, rows in (
        ("subjects that look like one person", ("subject", "other", "distance", "templates"), alike),
        (
            "templates far from their subject",
            ("subject", "template", "distance", "nearest", "nearest_distance"),
            far,
        ),
    ):
        print_table(columns, ([row[column] for column in columns] for row in rows), title=title)


def _of_one_extractor(blocks: Iterable[TemplateBlock], store: GalleryStore, found: Gallery) -> Iterator[TemplateBlock]:
    """Blocks of a gallery, as long as it belongs to the extractor that it was found with.

    Raises:
        ExtractorMismatch: it moved to another meanwhile, whose embeddings cannot be compared with those before.
    """
    for block in chain(blocks, [None]):
        now = store.gallery(found.name)
        if (now.id, now.extractor) != (found.id, found.extractor):
            raise ExtractorMismatch(f"gallery {now.name!r} moved to {now.extractor} meanwhile; run this again")
        if block is not None:
            yield block
