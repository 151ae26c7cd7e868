"""Subjects of a gallery: list, show, change, erase. A key may contain slashes."""

from fastapi import APIRouter

from app.access.keys import Scope
from app.api.authorisation import needs
from app.api.dependencies import Cursor, GalleryPath, Limit, Service, SubjectPath
from app.api.problems import error_responses
from app.api.schemas import SubjectBody, SubjectChange, SubjectPage
from app.gallery.errors import GalleryNotFound, InvalidInput, StorageUnwritable, SubjectExists, SubjectNotFound
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
    responses=error_responses(GalleryNotFound, SubjectNotFound, SubjectExists, StorageUnwritable),
)
def change_subject(service: Service, gallery: GalleryPath, subject: SubjectPath, body: SubjectChange) -> SubjectBody:
    """Give a person another key, other metadata, or both; or merge them into another subject, which is answered."""
    if body.merge_into is not None:
        if body.subject is not None or body.metadata is not None:
            raise InvalidInput("merge_into stands alone", part="merge_into")
        return SubjectBody.of(service.merge_subjects(gallery, subject, body.merge_into))
    metadata = None if body.metadata is None else check_metadata(body.metadata)
    changed = service.rename_or_describe_subject(gallery, subject, new_key=body.subject, metadata=metadata)
    return SubjectBody.of(changed)


@router.delete(
    "/{subject:path}",
    status_code=204,
    summary="Erase a subject",
    dependencies=[needs(Scope.DELETE)],
    responses=error_responses(GalleryNotFound, SubjectNotFound, StorageUnwritable),
)
def delete_subject(service: Service, gallery: GalleryPath, subject: SubjectPath) -> None:
    """Erase a person with all templates; no later search finds them."""
    service.delete_subject(gallery, subject)
