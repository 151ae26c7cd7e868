"""Templates of a gallery: list, show, erase."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.access.keys import Scope
from app.api.authorisation import needs
from app.api.dependencies import Cursor, GalleryPath, Limit, Service
from app.api.problems import error_responses
from app.api.schemas.templates import StoredTemplate, TemplatePage
from app.gallery.errors import GalleryNotFound, StorageUnwritable, SubjectNotFound, TemplateNotFound
from app.gallery.names import normalise_gallery_name

TemplatePath = Annotated[int, Path(ge=1, le=2**63 - 1, description="id of the template")]

router = APIRouter(prefix="/galleries/{gallery}/templates", tags=["people"])


@router.get(
    "",
    summary="List templates",
    dependencies=[needs(Scope.READ)],
    responses=error_responses(GalleryNotFound, SubjectNotFound),
)
def list_templates(
    service: Service,
    gallery: GalleryPath,
    cursor: Cursor,
    subject: Annotated[str | None, Query(description="of this subject only")] = None,
    limit: Limit = 100,
) -> TemplatePage:
    """Templates without their embeddings, in the order of their enrolment, page by page."""
    page = service.templates(gallery, subject=subject, after=cursor, limit=limit)
    return TemplatePage(
        templates=[StoredTemplate.of(template) for template in page.items],
        next_cursor=None if page.next_cursor is None else str(page.next_cursor),
    )


@router.get(
    "/{template}",
    summary="Show a template",
    dependencies=[needs(Scope.READ)],
    responses=error_responses(GalleryNotFound, TemplateNotFound),
)
def show_template(service: Service, gallery: GalleryPath, template: TemplatePath) -> StoredTemplate:
    """Whose it is, its quality and when it was enrolled, without its embedding."""
    return StoredTemplate.of(service.store.template(normalise_gallery_name(gallery), template))


@router.delete(
    "/{template}",
    status_code=204,
    summary="Erase a template",
    dependencies=[needs(Scope.DELETE)],
    responses=error_responses(GalleryNotFound, TemplateNotFound, StorageUnwritable),
)
def delete_template(service: Service, gallery: GalleryPath, template: TemplatePath) -> None:
    """Erase one template; the subject stays, also without any."""
    service.delete_template(gallery, template)
