"""POST /verify."""

from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile

from app.api.dependencies import (
    GalleryForm,
    Image,
    Service,
    ServiceSettings,
    ThresholdForm,
    form_error,
    read_photo,
)
from app.api.problems import error_responses
from app.api.schemas import VerifyAnswer
from app.gallery.errors import ExtractorMismatch, GalleryNotFound, SubjectNotFound
from app.gallery.photos import FaceChoice
from app.gallery.service import DEFAULT_GALLERY
from model.errors import ImageTooLarge, NoFace, SeveralFaces, UnsupportedImage

router = APIRouter(tags=["recognition"])


@router.post(
    "/verify",
    summary="Compare two photos, or a photo and a subject",
    responses=error_responses(
        GalleryNotFound, SubjectNotFound, ExtractorMismatch, NoFace, SeveralFaces, UnsupportedImage, ImageTooLarge
    ),
)
def verify(
    service: Service,
    settings: ServiceSettings,
    image: Image,
    reference: Annotated[UploadFile | None, File(description="a second photo; or give `subject`")] = None,
    subject: Annotated[str | None, Form(description="key of an enrolled person; or give `reference`")] = None,
    gallery: GalleryForm = DEFAULT_GALLERY,
    threshold: ThresholdForm = None,
    face: Annotated[FaceChoice, Form(description="`largest` takes the largest of several faces")] = "single",
) -> VerifyAnswer:
    """Say whether two photos, or a photo and an enrolled subject, show one person.

    ```
    curl -F image=@one.jpg -F reference=@other.jpg http://127.0.0.1:8000/verify
    ```
    """
    photo = read_photo(image, settings)
    if (reference is None) == (subject is None):
        raise form_error("reference", "give a reference photo or a subject, one of both")
    if reference is not None:
        found = service.verify(photo, read_photo(reference, settings), threshold=threshold, face=face)
    else:
        found = service.verify_subject(photo, gallery, subject or "", threshold=threshold, face=face)
    return VerifyAnswer(
        extractor=service.extractor, distance=found.distance, threshold=found.threshold, match=found.match
    )
