"""What routes ask for, and how photos and cursors are read out of a request."""

import json
import re
from typing import Annotated, Any

from fastapi import Depends, File, Form, Path, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile as StarletteUploadFile

from app.api.authorisation import CallerHere
from app.api.schemas.faces import Box, FoundFace, Landmarks, Point, Quality
from app.api.schemas.privacy import ConsentBody
from app.gallery.consent import Consent
from app.gallery.errors import InvalidInput
from app.gallery.metadata import check_metadata
from app.gallery.photos import AlignedFace, Photo
from app.gallery.service import DEFAULT_GALLERY, GalleryService
from app.settings import Settings
from model.errors import ImageTooLarge

# What no form of this service needs more of; the number of photos has a limit of its own.
FORM_LIMITS: Any = {"max_files": 101, "max_fields": 20, "max_part_size": 64 * 1024}
_MAX_ID = 2**63 - 1
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # what an answer, a log or a terminal had better not show


# Both are coroutines: a plain function would take a thread.
async def _service(request: Request) -> GalleryService:
    service: GalleryService = request.app.state.service
    return service


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


Service = Annotated[GalleryService, Depends(_service)]
ServiceSettings = Annotated[Settings, Depends(_settings)]
PHOTO = "JPEG, PNG, WebP, BMP or GIF; unless the operator set other limits, of 20 MiB and 50 million pixels at most"
Image = Annotated[UploadFile, File(description=PHOTO)]
ThresholdForm = Annotated[
    float | None, Form(ge=0, le=2, allow_inf_nan=False, description="largest distance to accept; empty: the policy's")
]
MaxFaces = Annotated[int, Form(ge=1, le=100, description="the largest faces only")]
SubjectPath = Annotated[str, Path(description="key of the person; slashes may stand as they are")]
Limit = Annotated[int, Query(ge=1, le=1000, description="entries of a page")]


# A gallery that the key is not for is refused where its name is read, so that no route can forget it.
async def _gallery_of_path(gallery: Annotated[str, Path(description="name of the gallery")], caller: CallerHere) -> str:
    caller.require_gallery(gallery)
    return gallery


async def _gallery_of_form(
    caller: CallerHere, gallery: Annotated[str, Form(description="name of the gallery")] = DEFAULT_GALLERY
) -> str:
    caller.require_gallery(gallery)
    return gallery


GalleryPath = Annotated[str, Depends(_gallery_of_path)]
GalleryForm = Annotated[str, Depends(_gallery_of_form)]


def _cursor(cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and int(cursor[:20]) <= _MAX_ID and len(cursor) < 20):
        raise InvalidInput("that is not a cursor of this service", part="cursor")
    return int(cursor)


Cursor = Annotated[int, Depends(_cursor)]


def read_photo(upload: StarletteUploadFile, settings: Settings, *, position: int | None = None) -> Photo:
    """The bytes of an uploaded file.

    Raises:
        ImageTooLarge: it is larger than the limit; it was not read into memory.
    """
    name = _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", upload.filename or "")
    name = name or ("photo" if position is None else f"photo {position + 1}")
    if upload.size is not None and upload.size > settings.max_image_bytes:
        raise ImageTooLarge(
            f"the photo has {upload.size} bytes; send one of at most {settings.max_image_bytes}", part=name
        )
    return Photo(name, upload.file.read())


def parse_metadata(text: str | None) -> dict[str, Any] | None:
    """Metadata from a form field: a JSON object.

    Raises:
        InvalidInput: not an object, too long, or text that no database can keep.
    """
    if text is None or not text.strip():
        return None
    try:
        return check_metadata(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        raise InvalidInput("metadata is a JSON object", part="metadata") from error


def parse_consent(text: str | None) -> Consent | None:
    """A consent from a form field: a JSON object as `ConsentBody` describes it.

    Raises:
        InvalidInput: it is not.
    """
    if text is None or not text.strip():
        return None
    try:
        return ConsentBody.model_validate_json(text).record
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'consent'}: {one['msg']}" for one in error.errors())
        raise InvalidInput(f"consent is a JSON object with purpose and granted_at ({found})", part="consent") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def form_error(name: str, message: str) -> RequestValidationError:
    """The error of one part of a form, as FastAPI's own validation would raise it."""
    return RequestValidationError([{"loc": ("body", name), "msg": message, "type": "value_error"}])


def found_face(face: AlignedFace) -> FoundFace:
    """The face as an answer shows it."""
    x, y, width, height = face.face.box
    points = [Point(x=float(px), y=float(py)) for px, py in face.face.landmarks]
    return FoundFace(
        box=Box(x=x, y=y, width=width, height=height),
        landmarks=Landmarks(**dict(zip(Landmarks.model_fields, points, strict=True))),
        score=face.face.score,
        quality=Quality.of(face.quality),
    )
