"""`facegallery receipt`: the receipts of erasures."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from app.commands.options import Exit, opened_service
from app.gallery.erasure.receipts import Standing, check_receipt, standing
from app.gallery.errors import GalleryNotFound, ReceiptInvalid, SubjectNotFound

receipt = typer.Typer(name="receipt", help="Check receipts of erasures.", no_args_is_help=True)
_SENTENCES = {
    Standing.ERASED: "genuine; the subject is not in the gallery",
    Standing.ENROLLED_AGAIN: (
        "genuine, but the subject was enrolled again since, or another has its key: it says nothing of today"
    ),
    Standing.CAME_BACK: (
        "genuine, but what is there is from before: a backup was restored, or an archive imported; forget again"
    ),
    Standing.OTHER_GALLERY: "genuine; the gallery is gone, or another one has its name",
}


@receipt.command("verify")
def verify_command(
    file: Annotated[Path, typer.Argument(help="The receipt.", exists=True, dir_okay=False)],
    key: Annotated[
        str | None, typer.Option(help="Public key as base64; then the signature alone is checked, without a service.")
    ] = None,
) -> None:
    """Check a receipt's signature, and hold it against the gallery.

    Exit codes: 0 genuine and true today, 1 changed, forged, or no longer true.
    """
    try:
        found = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ReceiptInvalid("that is no receipt of this service") from error
    if key is not None:
        check_receipt(found, key)
        print("genuine")
        return
    with opened_service() as service:
        genuine = check_receipt(found, service.forgetting.signer.public_key)
        gallery, subject = None, None
        with suppress(GalleryNotFound, SubjectNotFound):
            gallery = service.store.gallery(genuine["gallery"])
            subject = service.store.subject(genuine["gallery"], genuine["subject"])
    today = standing(genuine, gallery, subject)
    print(_SENTENCES[today])
    if today in {Standing.ENROLLED_AGAIN, Standing.CAME_BACK}:
        raise typer.Exit(Exit.REFUSED)


@receipt.command("key")
def key_command() -> None:
    """Print the public key that receipts are signed with."""
    with opened_service() as service:
        print(service.forgetting.signer.public_key)
