"""POST /enroll."""

from typing import Annotated

from fastapi import APIRouter, File, Form, Response, UploadFile

from app.access.keys import Scope
from app.api.authorisation import CallerHere, needs
from app.api.dependencies import (
    FORM_LIMITS,
    GalleryForm,
    Service,
    ServiceSettings,
    form_error,
    parse_consent,
    parse_metadata,
    read_photo,
)
from app.api.photo_threads import reads_photos
from app.api.problems import error_responses
from app.api.schemas.enroll import EnrollAnswer, EnrolledPhoto
from app.api.schemas.moments import Moment
from app.api.schemas.problems import RefusedPhoto
from app.api.schemas.subjects import SubjectBody
from app.gallery.consent import Terms
from app.gallery.errors import (
    ClockDoubtful,
    ConsentRequired,
    ExtractorMismatch,
    GalleryNotFound,
    KeyUnavailable,
    PhotosRefused,
    StorageUnwritable,
)
from app.gallery.errors import RefusedPhoto as Refused
from app.gallery.photos import FaceChoice, Photo
from model.errors import ImageTooLarge, LowQuality, ModelFileError, NoFace, SeveralFaces, UnsupportedImage

router = APIRouter(tags=["recognition"], form_limits=FORM_LIMITS)


@router.post(
    "/enroll",
    status_code=201,
    dependencies=[needs(Scope.ENROLL)],
    summary="Enroll a person from photos",
    responses={
        200: {"description": "the subject had all these photos already", "model": EnrollAnswer},
        **error_responses(
            PhotosRefused,
            GalleryNotFound,
            ExtractorMismatch,
            ClockDoubtful,
            ConsentRequired,
            KeyUnavailable,
            StorageUnwritable,
            ModelFileError,
            refused=(NoFace, SeveralFaces, LowQuality, UnsupportedImage, ImageTooLarge),
        ),
    },
)
@reads_photos
def enroll(
    caller: CallerHere,
    service: Service,
    settings: ServiceSettings,
    response: Response,
    subject: Annotated[str, Form(description="key of the person, 1 to 200 characters", examples=["ada"])],
    images: Annotated[
        list[UploadFile],
        File(
            description="photos that show one face each; at most 20 unless the operator set another limit",
            max_length=100,
        ),
    ],
    gallery: GalleryForm,
    metadata: Annotated[
        str | None, Form(description="JSON object to keep with the subject, at most 16 KiB", examples=['{"badge": 17}'])
    ] = None,
    consent: Annotated[
        str | None,
        Form(
            description="JSON object with purpose, granted_at and where there are any reference, expires_at",
            examples=['{"purpose": "access to the lab", "granted_at": "2026-01-01T09:00:00Z"}'],
        ),
    ] = None,
    expires_at: Annotated[
        Moment | None, Form(description="moment from which the person is erased, with its zone")
    ] = None,
    face: Annotated[FaceChoice, Form(description="`largest` takes the largest of several faces")] = "single",
) -> EnrollAnswer:
    """Store a template of every usable photo; the gallery and the subject are made on first use.

    Every photo must show one face (or `face=largest`). Photos that cannot be used are listed with the reason; if none
    can, nothing is stored. The same photo again adds nothing and is answered with 200. An earlier end than a person
    who is there has, by `expires_at` or `consent`, needs the scope `delete`, too.

    ```
    curl -F subject=ada -F images=@ada-1.jpg -F images=@ada-2.jpg http://127.0.0.1:8000/enroll
    ```
    """
    if len(images) > settings.max_images:
        raise form_error("images", f"at most {settings.max_images} photos in one request")
    details = parse_metadata(metadata)
    terms = Terms()
    if (given := parse_consent(consent)) is not None:
        terms["consent"] = given
    if expires_at is not None:
        terms["expires_at"] = expires_at
    photos, unread = list[Photo](), list[Refused]()
    for position, upload in enumerate(images):
        try:
            photos.append(read_photo(upload, settings, position=position))
        except ImageTooLarge as error:
            unread.append(Refused(error.part or "", error.slug, str(error)))
    report = service.enroll(
        gallery,
        subject,
        photos,
        unread=unread,
        metadata=details,
        face=face,
        terms=terms,
        earlier_end=lambda: caller.require(Scope.DELETE, to="an earlier end"),
    )
    enrolment = report.enrolment
    if not enrolment.added and not enrolment.created:
        response.status_code = 200
    return EnrollAnswer(
        gallery=report.gallery,
        extractor=service.extractor,
        subject=SubjectBody.of(enrolment.subject),
        enrolled=[
            EnrolledPhoto(photo=photo, template=template.id, new=new and number == 0)
            for templates, new in ((enrolment.added, True), (enrolment.known, False))
            for template in templates
            for number, photo in enumerate(report.photos_of[template.crop_sha256])
        ],
        refused=[RefusedPhoto(photo=one.photo, reason=one.slug, detail=one.detail) for one in report.refused],
    )
