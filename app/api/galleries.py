"""Galleries: list, create, show, change, erase."""

from typing import Annotated, cast

from fastapi import APIRouter, Query

from app.access.keys import Scope
from app.api.authorisation import CallerHere, needs
from app.api.dependencies import GalleryPath, Limit, Service
from app.api.problems import error_responses
from app.api.schemas.galleries import GalleryBody, GalleryChange, GalleryCreation, GalleryPage
from app.api.schemas.thresholds import policy_from_body
from app.gallery.consent import PrivacyRules
from app.gallery.errors import GalleryExists, GalleryNotFound, IndexEngineUnusable, StorageUnwritable
from app.gallery.names import normalise_gallery_name
from app.gallery.records import Gallery, GalleryChanges
from app.gallery.service import GalleryService

router = APIRouter(prefix="/galleries", tags=["galleries"])


def _body(service: GalleryService, gallery: Gallery) -> GalleryBody:
    return GalleryBody.of(service.describe(gallery))


@router.get("", summary="List galleries", dependencies=[needs(Scope.READ)], responses=error_responses())
def list_galleries(
    caller: CallerHere,
    service: Service,
    cursor: Annotated[str, Query(description="`next_cursor` of the page before")] = "",
    limit: Limit = 100,
) -> GalleryPage:
    """The galleries that the key is for, with their sizes, by name, page by page."""
    galleries, cursor_behind = service.store.gallery_page(caller.may_use, after=cursor, limit=limit)
    shown = [GalleryBody.of(one) for one in service.describe_all(galleries)]
    return GalleryPage(galleries=shown, next_cursor=cursor_behind)


@router.post(
    "",
    status_code=201,
    summary="Create a gallery",
    dependencies=[needs(Scope.ADMIN)],
    responses=error_responses(GalleryExists, StorageUnwritable),
)
def create_gallery(caller: CallerHere, service: Service, body: GalleryCreation) -> GalleryBody:
    """Make an empty gallery, with its own threshold policy and rules of consent and retention if they are given."""
    caller.require_gallery(body.name)
    rules = PrivacyRules(**body.rules) if body.rules else None
    return _body(service, service.create_gallery(body.name, policy_from_body(body.policy), rules))


@router.get(
    "/{gallery}",
    summary="Show a gallery",
    dependencies=[needs(Scope.READ)],
    responses=error_responses(GalleryNotFound),
)
def show_gallery(service: Service, gallery: GalleryPath) -> GalleryBody:
    """Counts, revision, extractor, threshold policy and the distance that follows from it now."""
    return _body(service, service.store.gallery(normalise_gallery_name(gallery)))


@router.patch(
    "/{gallery}",
    summary="Change a gallery",
    dependencies=[needs(Scope.ADMIN)],
    responses=error_responses(GalleryNotFound, StorageUnwritable),
)
def change_gallery(service: Service, gallery: GalleryPath, body: GalleryChange) -> GalleryBody:
    """Give the gallery its own threshold policy (null returns to the service's), or rules of consent and retention."""
    changes = cast(GalleryChanges, {**body.rules})
    if "policy" in body.model_fields_set:
        changes["policy"] = policy_from_body(body.policy)
    return _body(service, service.store.change_gallery(normalise_gallery_name(gallery), changes))


@router.delete(
    "/{gallery}",
    status_code=204,
    summary="Erase a gallery",
    dependencies=[needs(Scope.ADMIN)],
    responses=error_responses(GalleryNotFound, StorageUnwritable, IndexEngineUnusable),
)
def delete_gallery(service: Service, gallery: GalleryPath) -> None:
    """Erase the gallery with all its subjects and templates."""
    service.delete_gallery(gallery)
