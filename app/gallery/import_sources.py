"""Whom to import: a folder with a folder for each person, or a table of subjects and files."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.gallery.errors import InvalidInput, RefusedPhoto, SourceUnreadable
from app.gallery.metadata import check_metadata
from app.gallery.names import normalise_name
from model.photo_folder import DatasetError, list_photos

_DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class ListedPhoto:
    """A file that shows a subject, and a name to speak of it."""

    subject: str
    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class PeopleSource:
    """What is to be imported.

    Args:
        photos: those of one subject side by side.
        metadata: by subject, where there is any.
        refused: what was refused already, because the subject's name cannot be used.
    """

    photos: tuple[ListedPhoto, ...]
    metadata: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    refused: tuple[RefusedPhoto, ...] = ()


def people_of_folder(folder: Path) -> PeopleSource:
    """The people of a folder; the folders' names are the subjects.

    Raises:
        SourceUnreadable: there are no photos of this form.
    """
    try:
        listed = list_photos(folder)
    except (DatasetError, OSError) as error:
        raise SourceUnreadable(str(error), part=str(folder)) from error
    rows = [(photo.subject, photo.path, str(photo.path.relative_to(folder))) for photo in listed]
    return _checked(rows, {})


def people_of_table(file: Path) -> PeopleSource:
    """The people of a CSV table with a head: `subject`, `file` (relative to the table's folder), and metadata.

    Every other column with a value is metadata of the subject, as text; where rows of a subject disagree, the last one
    counts. The separator is a comma, a semicolon or a tab.

    Raises:
        SourceUnreadable: it is no such table.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = max(_DELIMITERS, key=head.count)
            table = csv.DictReader(stream, delimiter=delimiter, strict=True)
            columns = list(table.fieldnames or ())
            if not {"subject", "file"} <= set(columns) or len(set(columns)) < len(columns):
                raise SourceUnreadable(
                    f"{file} needs a head with the columns `subject` and `file`, each column once", part=str(file)
                )
            rows: list[tuple[str, Path, str]] = []
            details: dict[str, dict[str, Any]] = {}
            for row in table:
                if None in row or None in row.values():
                    raise SourceUnreadable(
                        f"{file}, line {table.line_num}: {len(columns)} columns are needed", part=str(file)
                    )
                rows.append((row["subject"], file.parent / row["file"], row["file"]))
                values = {name: row[name] for name in columns if name not in {"subject", "file"} and row[name]}
                if values:
                    details.setdefault(row["subject"], {}).update(values)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceUnreadable(f"{file} is no table that can be read ({error})", part=str(file)) from error
    if not rows:
        raise SourceUnreadable(f"{file} has no rows", part=str(file))
    return _checked(rows, details)


def _checked(rows: list[tuple[str, Path, str]], details: Mapping[str, dict[str, Any]]) -> PeopleSource:
    """The rows whose subject has a name that can be used, subject by subject; the others are refused."""
    photos: dict[str, list[ListedPhoto]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    refused: list[RefusedPhoto] = []
    for subject, path, name in rows:
        try:
            key = normalise_name(subject, part="subject")
            if subject in details and key not in metadata:
                metadata[key] = check_metadata(details[subject])
        except InvalidInput as error:
            refused.append(RefusedPhoto(name, error.slug, str(error)))
            continue
        photos.setdefault(key, []).append(ListedPhoto(key, path, name))
    return PeopleSource(tuple(photo for one in photos.values() for photo in one), metadata, tuple(refused))
