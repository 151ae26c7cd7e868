"""Subjects of a gallery: list, show, change, erase. A key may contain slashes."""

from fastapi import APIRouter

from app.access.keys import Scope
from app.api.authorisation import CallerHere, needs
from app.api.dependencies import Cursor, GalleryPath, Limit, Service, SubjectPath
from app.api.problems import error_responses
from app.api.schemas.subjects import SubjectBody, SubjectChange, SubjectPage
from app.gallery.consent import Terms
from app.gallery.errors import (
    ClockDoubtful,
    ConsentRequired,
    GalleryNotFound,
    InvalidInput,
    StorageUnwritable,
    SubjectExists,
    SubjectNotFound,
)
from app.gallery.metadata import check_metadata
from app.gallery.names import normalise_gallery_name

router = APIRouter(prefix="/galleries/{gallery}/subjects", tags=["people"])


@router.get("", summary="List subjects", dependencies=[needs(Scope.READ)], responses=error_responses(GalleryNotFound))
def list_subjects(service: Service, gallery: GalleryPath, cursor: Cursor, limit: Limit = 100) -> SubjectPage:
    """Subjects in the order of their enrolment, page by page."""
    page = service.store.subjects(normalise_gallery_name(gallery), after=cursor, limit=limit)
    return SubjectPage(
        subjects=[SubjectBody.of(subject) for subject in page.items],
        next_cursor=None if page.next_cursor is None else str(page.next_cursor),
    )


@router.get(
    "/{subject:path}",
    summary="Show a subject",
    dependencies=[needs(Scope.READ)],
    responses=error_responses(GalleryNotFound, SubjectNotFound),
)
def show_subject(service: Service, gallery: GalleryPath, subject: SubjectPath) -> SubjectBody:
    """Metadata and number of templates of one person."""
    return SubjectBody.of(service.subject(gallery, subject))


@router.patch(
    "/{subject:path}",
    summary="Change a subject",
    dependencies=[needs(Scope.ENROLL)],
    responses=error_responses(
        GalleryNotFound, SubjectNotFound, SubjectExists, ClockDoubtful, ConsentRequired, StorageUnwritable
    ),
)
def change_subject(
    caller: CallerHere, service: Service, gallery: GalleryPath, subject: SubjectPath, body: SubjectChange
) -> SubjectBody:
    """Give a person another key, metadata, consent or expiry (null takes one of the latter two away).

    An earlier end than the person has, by expiry or consent, needs the scope `delete`, too.

    Or merge them into another subject, which is answered; as this erases the first, it needs the scope `delete`, too.
    """
    if body.merge_into is not None:
        caller.require(Scope.DELETE, to="merge_into")
        if body.model_fields_set - {"merge_into"}:
            raise InvalidInput("merge_into stands alone", part="merge_into")
        return SubjectBody.of(service.merge_subjects(gallery, subject, body.merge_into))
    metadata = None if body.metadata is None else check_metadata(body.metadata)
    terms = Terms()
    if "consent" in body.model_fields_set:
        terms["consent"] = None if body.consent is None else body.consent.record
    if "expires_at" in body.model_fields_set:
        terms["expires_at"] = body.expires_at
    changed = service.update_subject(
        gallery,
        subject,
        new_key=body.subject,
        metadata=metadata,
        terms=terms,
        earlier_end=lambda: caller.require(Scope.DELETE, to="an earlier end"),
    )
    return SubjectBody.of(changed)


@router.delete(
    "/{subject:path}",
    status_code=204,
    summary="Erase a subject",
    dependencies=[needs(Scope.DELETE)],
    responses=error_responses(GalleryNotFound, SubjectNotFound, StorageUnwritable),
)
def delete_subject(service: Service, gallery: GalleryPath, subject: SubjectPath) -> None:
    """Erase a person with all templates and their key; no later search finds them, and no backup opens them.

    `POST …/forget` does the same and answers a signed receipt.
    """
    service.delete_subject(gallery, subject)
