"""POST /verify."""

from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile

from app.access.keys import Scope
from app.api.authorisation import CallerHere, needs, require_scores, shown_distance
from app.api.dependencies import (
    FORM_LIMITS,
    Image,
    Service,
    ServiceSettings,
    ThresholdForm,
    form_error,
    read_photo,
)
from app.api.photo_threads import reads_photos
from app.api.problems import error_responses
from app.api.schemas.verify import VerifyAnswer
from app.gallery.errors import ExtractorMismatch, GalleryNotFound, StorageUnwritable, SubjectNotFound
from app.gallery.photos import FaceChoice
from app.gallery.service import DEFAULT_GALLERY
from model.errors import ImageTooLarge, ModelFileError, NoFace, SeveralFaces, UnsupportedImage

router = APIRouter(tags=["recognition"], form_limits=FORM_LIMITS)


@router.post(
    "/verify",
    dependencies=[needs(Scope.IDENTIFY)],
    summary="Compare two photos, or a photo and a subject",
    responses=error_responses(
        GalleryNotFound,
        SubjectNotFound,
        ExtractorMismatch,
        NoFace,
        SeveralFaces,
        UnsupportedImage,
        ImageTooLarge,
        StorageUnwritable,
        ModelFileError,
    ),
)
@reads_photos
def verify(
    caller: CallerHere,
    service: Service,
    settings: ServiceSettings,
    image: Image,
    reference: Annotated[UploadFile | None, File(description="a second photo; or give `subject`")] = None,
    subject: Annotated[str | None, Form(description="key of an enrolled person; or give `reference`")] = None,
    gallery: Annotated[str, Form(description="name of the subject's gallery")] = DEFAULT_GALLERY,
    threshold: ThresholdForm = None,
    face: Annotated[FaceChoice, Form(description="`largest` takes the largest of several faces")] = "single",
) -> VerifyAnswer:
    """Say whether two photos, or a photo and an enrolled subject, show one person.

    ```
    curl -F image=@one.jpg -F reference=@other.jpg http://127.0.0.1:8000/verify
    ```
    """
    require_scores(caller, threshold=threshold)
    photo = read_photo(image, settings)
    if (reference is None) == (subject is None):
        raise form_error("reference", "give a reference photo or a subject, one of both")
    if reference is not None:
        found = service.verify(photo, read_photo(reference, settings), threshold=threshold, face=face)
    else:
        caller.require_gallery(gallery)
        found = service.verify_subject(photo, gallery, subject or "", threshold=threshold, face=face)
    shown = found.match or Scope.SCORES in caller.scopes
    return VerifyAnswer(
        extractor=service.extractor,
        distance=shown_distance(found.distance, caller) if shown else None,
        threshold=found.threshold,
        match=found.match,
    )
