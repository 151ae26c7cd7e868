"""`facegallery forget`."""

import json
from typing import Annotated

import typer

from app.commands.options import GalleryOption, opened_service
from app.gallery.service import DEFAULT_GALLERY


def forget_command(
    subject: Annotated[str, typer.Argument(help="Key of the person.")],
    gallery: GalleryOption = DEFAULT_GALLERY,
) -> None:
    """Erase a person with all that is held about them; prints the signed receipt."""
    with opened_service() as service:
        print(json.dumps(service.forget(gallery, subject), ensure_ascii=False, indent=2))
