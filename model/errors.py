"""The root of the tree of exceptions, and what can be wrong with a photo or a network file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from model.quality import Complaint


class FacegalleryError(Exception):
    """Something that the caller can put right.

    Args:
        detail: a sentence that says what is wrong and what to do about it.
        part: which part of the input was wrong, for example the name of a file; None if there is only one.
    """

    slug: ClassVar[str] = "error"

    def __init__(self, detail: str, *, part: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.part = part


class UnsupportedImage(FacegalleryError):
    """The bytes are no photo that can be read: empty, cut off, damaged, or of a format that is not on the list."""

    slug = "unsupported-image"


class ImageTooLarge(FacegalleryError):
    """The photo has more bytes or more pixels than allowed."""

    slug = "image-too-large"


class NoFace(FacegalleryError):
    """There is no face in the photo."""

    slug = "no-face"


class SeveralFaces(FacegalleryError):
    """There are several faces in the photo where one is wanted."""

    slug = "several-faces"


class LowQuality(FacegalleryError):
    """The face cannot be enrolled; ``complaints`` says why, one sentence a reason."""

    slug = "low-quality"

    def __init__(self, complaints: Sequence["Complaint"], *, part: str | None = None) -> None:
        super().__init__("; ".join(complaint.sentence for complaint in complaints), part=part)
        self.complaints = tuple(complaints)


class RuntimeMissing(FacegalleryError):
    """The packages of the runtime that was chosen are not installed."""

    slug = "runtime-missing"


class ModelFileError(FacegalleryError):
    """A network file or a model card is missing, damaged, or not the one it should be, as its answers may tell."""

    slug = "model-file"
