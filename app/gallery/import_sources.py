"""Whom to import: a folder with a folder for each person, or a table of subjects and files."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.gallery.consent import Consent
from app.gallery.errors import InvalidInput, RefusedPhoto, SourceUnreadable
from app.gallery.json_values import moment, moment_or_none
from app.gallery.metadata import check_metadata
from app.gallery.names import normalise_name
from model.photo_folder import DatasetError, list_photos

_DELIMITERS = ",;\t"
_CONSENT = ("consent_purpose", "consent_granted_at", "consent_reference", "consent_expires_at")


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
        refused: what was refused already, because the subject's name, metadata or consent cannot be used.
        consents: by subject, where there is any.
    """

    photos: tuple[ListedPhoto, ...]
    metadata: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    refused: tuple[RefusedPhoto, ...] = ()
    consents: Mapping[str, Consent] = field(default_factory=dict)


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
    return _checked(rows, {}, {})


def people_of_table(file: Path) -> PeopleSource:
    """The people of a CSV table with a head: `subject`, `file` (relative to the table's folder), and metadata.

    The columns `consent_purpose`, `consent_granted_at`, `consent_reference` and `consent_expires_at` are the subject's
    consent. Every other column with a value is metadata of the subject, as text; where rows of a subject disagree, the
    last one counts. The separator is a comma, a semicolon or a tab.

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
            consents: dict[str, dict[str, str]] = {}
            for row in table:
                if None in row or None in row.values():
                    raise SourceUnreadable(
                        f"{file}, line {table.line_num}: {len(columns)} columns are needed", part=str(file)
                    )
                rows.append((row["subject"], file.parent / row["file"], row["file"]))
                values = {name: row[name] for name in columns if name not in {"subject", "file"} and row[name]}
                consent = {name: values.pop(name) for name in _CONSENT if name in values}
                if values:
                    details.setdefault(row["subject"], {}).update(values)
                if consent:
                    consents.setdefault(row["subject"], {}).update(consent)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceUnreadable(f"{file} is no table that can be read ({error})", part=str(file)) from error
    if not rows:
        raise SourceUnreadable(f"{file} has no rows", part=str(file))
    return _checked(rows, details, consents)


def _checked(
    rows: list[tuple[str, Path, str]],
    details: Mapping[str, dict[str, Any]],
    consent_of: Mapping[str, dict[str, str]],
) -> PeopleSource:
    """The rows whose subject has a name that can be used, subject by subject; the others are refused."""
    photos: dict[str, list[ListedPhoto]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    consents: dict[str, Consent] = {}
    refused: list[RefusedPhoto] = []
    for subject, path, name in rows:
        try:
            key = normalise_name(subject, part="subject")
            if subject in details and key not in metadata:
                metadata[key] = check_metadata(details[subject])
            if subject in consent_of and key not in consents:
                consents[key] = _consent(consent_of[subject])
        except InvalidInput as error:
            refused.append(RefusedPhoto(name, error.slug, str(error)))
            continue
        photos.setdefault(key, []).append(ListedPhoto(key, path, name))
    return PeopleSource(tuple(photo for one in photos.values() for photo in one), metadata, tuple(refused), consents)


def _consent(values: Mapping[str, str]) -> Consent:
    """The consent of a subject's columns.

    Raises:
        InvalidInput: it is none.
    """
    if not {"consent_purpose", "consent_granted_at"} <= set(values):
        raise InvalidInput("a consent needs consent_purpose and consent_granted_at", part="consent")
    reference = values.get("consent_reference")
    try:
        granted_at = moment(values["consent_granted_at"])
        expires_at = moment_or_none(values.get("consent_expires_at"))
    except ValueError as error:
        raise InvalidInput(
            "a consent's moments are written with their zone, as 2026-01-31T12:00:00+01:00", part="consent"
        ) from error
    return Consent(
        normalise_name(values["consent_purpose"], part="consent"),
        granted_at,
        None if reference is None else normalise_name(reference, part="consent"),
        expires_at,
    )
