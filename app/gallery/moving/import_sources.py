"""Whom to import: a folder with a folder for each person, or a table of subjects and files."""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Protocol

from app.gallery.consent import Consent
from app.gallery.errors import InvalidInput, RefusedPhoto, SourceUnreadable
from app.gallery.json_values import moment, moment_or_none
from app.gallery.metadata import check_metadata
from app.gallery.names import normalise_name, normalise_new_key
from model.photo_folder import SUFFIXES

_DELIMITERS = ",;\t"
_GRANTED = "consent_granted_at"
_CONSENT = ("consent_purpose", _GRANTED, "consent_reference", "consent_expires_at")
_Files = dict[str, list[str]]  # by subject; paths below a folder


@dataclass(frozen=True, slots=True)
class ListedPhoto:
    """A file that shows a subject, and a name to speak of it."""

    subject: str
    path: Path
    name: str


class Photos(Protocol):
    """Photos, those of one subject side by side."""

    def __len__(self) -> int:
        """How many."""

    def __iter__(self) -> Iterator[ListedPhoto]:
        """One after the other."""


class PhotosBelow:
    """The photos of many people; a path is made when its turn comes, as those of a million would take a gigabyte.

    Args:
        folder: that the files lie below.
        files: their paths from there, by subject.
    """

    def __init__(self, folder: Path, files: Mapping[str, Sequence[str]]) -> None:
        self._folder = folder
        self._files = files

    def __len__(self) -> int:
        """How many."""
        return sum(map(len, self._files.values()))

    def __iter__(self) -> Iterator[ListedPhoto]:
        """One after the other."""
        for subject, files in self._files.items():
            for file in files:
                yield ListedPhoto(subject, self._folder / file, _shown(file))


@dataclass(frozen=True, slots=True)
class PeopleSource:
    """What is to be imported.

    Args:
        photos: those of one subject side by side.
        metadata: by subject, where there is any.
        refused: what was refused already: what is no person's photo, and whose name, metadata or consent cannot be
            used.
        consents: by subject, where there is any.
    """

    photos: Photos
    metadata: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    refused: tuple[RefusedPhoto, ...] = ()
    consents: Mapping[str, Consent] = field(default_factory=dict)


def people_of_folder(folder: Path) -> PeopleSource:
    """The people of a folder; the folders' names are the subjects.

    What is not hidden and not taken is among the refused: files without a person, files whose names are no photos',
    files a folder too deep, people without a photo, and folders that cannot be read, as those behind a broken link.

    Raises:
        SourceUnreadable: there are no photos of this form.
    """
    files: _Files = {}
    refused: list[RefusedPhoto] = []
    try:
        entries = _not_hidden(folder)
    except OSError as error:
        raise SourceUnreadable(f"{folder} cannot be read: {error.strerror}", part=str(folder)) from error
    for entry in entries:
        name = _shown(entry.name)
        try:
            if not S_ISDIR(entry.stat().st_mode):
                refused.append(RefusedPhoto(name, "no-person", "it lies in no person's folder"))
                continue
            photos, others = _photos_of(entry, folder)
        except OSError as error:
            refused.append(RefusedPhoto(name, "folder-unreadable", f"the folder cannot be read: {error.strerror}"))
            continue
        refused += others
        if photos:
            files[entry.name] = photos
        else:
            refused.append(RefusedPhoto(name, "no-photos", "the folder holds no photos"))
    if not files:
        first = f"; {refused[0].photo}: {refused[0].detail}" if refused else ""
        raise SourceUnreadable(
            f"{folder} holds no photos; expected a folder for each person with the photos inside{first}",
            part=str(folder),
        )
    return _checked(folder, files, {}, {}, refused)


def _photos_of(person: Path, folder: Path) -> tuple[list[str], list[RefusedPhoto]]:
    """The photos of a person's folder, and the files in and below it that are not taken.

    Raises:
        OSError: it cannot be read.
    """
    photos: list[str] = []
    refused: list[RefusedPhoto] = []
    suffixes = ", ".join(sorted(SUFFIXES))
    for path in _not_hidden(person):
        if _is_folder(path):
            detail = "photos lie in a person's folder, not in a folder below it"
            refused += [RefusedPhoto(_shown(_from(folder, one)), "too-deep", detail) for one in _below(path)]
        elif path.suffix.lower() in SUFFIXES:
            photos.append(_from(folder, path))
        else:
            refused.append(RefusedPhoto(_shown(_from(folder, path)), "not-a-photo", f"photos end in {suffixes}"))
    return photos, refused


def _is_folder(path: Path) -> bool:
    """Whether a path leads to a folder; a link that cannot be followed does not, and is refused as a photo later."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _below(folder: Path) -> Iterator[Path]:
    """What is not hidden below a folder: files, and folders that are links or cannot be read, which are not entered."""
    if folder.is_symlink():
        yield folder
        return
    closed: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in sorted([*files, *links]) if not name.startswith("."))
    yield from (Path(error.filename) for error in closed)


def _not_hidden(folder: Path) -> Iterator[Path]:
    """What is not hidden in a folder, by name.

    Raises:
        OSError: it cannot be read.
    """
    names = sorted(path.name for path in folder.iterdir())
    return (folder / name for name in names if not name.startswith("."))


def _from(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder))


def _shown(file: str) -> str:
    """A path as text that can be printed: bytes of a name that are no UTF-8 are replaced."""
    return re.sub("[\ud800-\udfff]", "\ufffd", file)


def people_of_table(file: Path) -> PeopleSource:
    """The people of a CSV table with a head: `subject`, `file` (relative to the table's folder), and metadata.

    The columns `consent_purpose`, `consent_granted_at`, `consent_reference` and `consent_expires_at` are the subject's
    consent; of one that was granted at another moment than that of the rows before, nothing comes from those. Every
    other column with a value is metadata of the subject, as text; where rows of a subject disagree, the last one
    counts, in whatever Unicode form each writes the subject. A row without a file is refused by its line, and nothing
    comes from it; lines without a value are passed over. The separator is a comma, a semicolon or a tab.

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
            files: _Files = {}
            details: dict[str, dict[str, Any]] = {}
            consents: dict[str, dict[str, str]] = {}
            refused: list[RefusedPhoto] = []
            for row in table:
                if None in row or None in row.values():
                    raise SourceUnreadable(
                        f"{file}, line {table.line_num}: {len(columns)} columns are needed", part=str(file)
                    )
                if not any(row.values()):  # of rows whose cells were emptied, spreadsheets write the separators
                    continue
                if not row["file"]:
                    refused.append(RefusedPhoto(f"line {table.line_num}", "invalid-input", "the row names no file"))
                    continue
                subject = _as_stored(row["subject"])
                files.setdefault(subject, []).append(row["file"])
                values = {name: row[name] for name in columns if name not in {"subject", "file"} and row[name]}
                consent = {name: values.pop(name) for name in _CONSENT if name in values}
                if values:
                    details.setdefault(subject, {}).update(values)
                if consent:
                    own = consents.setdefault(subject, {})
                    if {_GRANTED} <= own.keys() & consent.keys() and not _same(own[_GRANTED], consent[_GRANTED]):
                        own.clear()  # an end or a proof of one consent is none of another's
                    own.update(consent)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceUnreadable(f"{file} is no table that can be read ({error})", part=str(file)) from error
    if not files and not refused:
        raise SourceUnreadable(f"{file} has no rows", part=str(file))
    return _checked(file.parent, files, details, consents, refused)


def _as_stored(subject: str) -> str:
    """The key of a subject, or what is none as it is, which refuses its rows later."""
    try:
        return normalise_new_key(subject)
    except InvalidInput:
        return subject


def _checked(
    folder: Path,
    files: _Files,
    details: Mapping[str, dict[str, Any]],
    consent_of: Mapping[str, dict[str, str]],
    refused_before: Sequence[RefusedPhoto] = (),
) -> PeopleSource:
    """The files of those subjects whose name, metadata and consent can be used; the others' are refused."""
    photos: _Files = {}
    metadata: dict[str, dict[str, Any]] = {}
    consents: dict[str, Consent] = {}
    refused = list(refused_before)
    for subject, own in files.items():
        try:
            key = normalise_new_key(subject)
            if subject in details:
                metadata[key] = check_metadata(details[subject])
            if subject in consent_of:
                consents[key] = _consent(consent_of[subject])
        except InvalidInput as error:
            refused += [RefusedPhoto(_shown(file), error.slug, str(error)) for file in own]
            continue
        photos.setdefault(key, []).extend(own)
    return PeopleSource(PhotosBelow(folder, photos), metadata, tuple(refused), consents)


def _same(one: str, other: str) -> bool:
    """Whether both are one moment, in whatever zone each is written."""
    try:
        return moment(one) == moment(other)
    except ValueError:
        return one == other


def _consent(values: Mapping[str, str]) -> Consent:
    """The consent of a subject's columns.

    Raises:
        InvalidInput: it is none.
    """
    if not {"consent_purpose", _GRANTED} <= set(values):
        raise InvalidInput("a consent needs consent_purpose and consent_granted_at", part="consent")
    reference = values.get("consent_reference")
    try:
        granted_at = moment(values[_GRANTED])
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
