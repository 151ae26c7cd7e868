"""Folders of photos, one for each person."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from model.errors import FacegalleryError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""File names that are taken for photos."""


class DatasetError(FacegalleryError):
    """A folder or a file of a data set is not there or has another form; the sentence says what was expected."""

    slug: ClassVar[str] = "dataset"


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo of a person, whose name is the folder's."""

    path: Path
    subject: str

    @property
    def name(self) -> str:
        """The file's name without suffix."""
        return self.path.stem


def list_photos(folder: Path) -> tuple[Photo, ...]:
    """Return the photos in PERSON/FILE below a folder, in the order of the names.

    Args:
        folder: a folder that holds a folder for each person; hidden ones, other files, and links to nothing are
            passed over.

    Raises:
        DatasetError: the folder is not there, or holds no photos of this form.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder")
    persons = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    photos = tuple(
        Photo(path, person.name)
        for person in persons
        for path in sorted(person.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not photos:
        raise DatasetError(f"{folder} holds no photos; expected a folder for each person with the photos inside")
    return photos
