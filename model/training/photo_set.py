"""Which photos an evaluation is of: all or some people of a folder, raw or prepared."""

from collections.abc import Sequence
from pathlib import Path

from model.photo_folder import DatasetError, Photo, list_photos
from model.training.preparation import MANIFEST, read_prepared


def is_prepared(folder: Path) -> bool:
    """Whether `facemodel prepare` wrote the folder, so that its crops are taken as they are."""
    return (folder / MANIFEST).is_file()


def photos_of(folder: Path) -> tuple[Photo, ...]:
    """Return the photos of a folder, or, if it was prepared, the crops that no flag speaks against.

    Raises:
        DatasetError: the folder is not there, holds no photos, or was not prepared to the end.
    """
    if not is_prepared(folder):
        return list_photos(folder)
    prepared = read_prepared(folder)
    usable = [prepared.photos[row] for row in prepared.usable]
    if not usable:
        raise DatasetError(f"{folder} has no crops without a flag; prepare other photos")
    return tuple(Photo(folder / photo.crop, photo.person) for photo in usable)


def only_people(photos: Sequence[Photo], names: Path) -> tuple[Photo, ...]:
    """Return the photos of the people whose names stand in a file, one a line.

    Raises:
        DatasetError: the file cannot be read, or somebody has no photos.
    """
    try:
        lines = names.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read {names}: {error}") from error
    wanted = {line.strip() for line in lines if line.strip()}
    missing = sorted(wanted - {photo.subject for photo in photos})
    if missing or not wanted:
        raise DatasetError(
            f"{names}: no photos of {', '.join(missing) or 'anybody'}; expected folder names, one a line"
        )
    return tuple(photo for photo in photos if photo.subject in wanted)


def first_people(photos: Sequence[Photo], count: int) -> tuple[Photo, ...]:
    """Return the photos of the first so many people."""
    first = set(list(dict.fromkeys(photo.subject for photo in photos))[:count])
    return tuple(photo for photo in photos if photo.subject in first)
