"""Forgetting people, with a signed receipt."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from app.access.keys import Scope
from app.api.authorisation import needs
from app.api.dependencies import GalleryPath, Service, SubjectPath
from app.api.problems import error_responses
from app.api.schemas.privacy import Receipt, ReceiptKey
from app.gallery.errors import GalleryNotFound, StorageUnwritable, SubjectNotFound

router = APIRouter(tags=["people"])


@router.post(
    "/galleries/{gallery}/subjects/{subject:path}/forget",
    summary="Erase a subject and get a receipt",
    dependencies=[needs(Scope.DELETE)],
    responses={
        200: {"model": Receipt, "description": "the receipt"},
        **error_responses(GalleryNotFound, SubjectNotFound, StorageUnwritable),
    },
    response_model=None,  # the receipt goes out as it was signed
)
def forget_subject(service: Service, gallery: GalleryPath, subject: SubjectPath) -> JSONResponse:
    """Erase a person's rows, templates, index entries and snapshots, destroy their key, and sign what was done."""
    receipt: dict[str, Any] = service.forget(gallery, subject)
    return JSONResponse(receipt)


@router.get("/receipts/key", summary="Key of receipts", dependencies=[needs()], responses=error_responses())
def receipt_key(service: Service) -> ReceiptKey:
    """The public key that receipts are signed with; keep it where the service cannot change it."""
    return ReceiptKey(algorithm="Ed25519", public_key=service.forgetting.signer.public_key)
