"""Stored templates."""

from datetime import datetime

from pydantic import BaseModel

from app.api.schemas.faces import Quality
from app.gallery.records import Template


class StoredTemplate(BaseModel):
    """A template without its embedding."""

    id: int
    subject: str
    quality: Quality
    crop_sha256: str
    created_at: datetime

    @classmethod
    def of(cls, template: Template) -> "StoredTemplate":
        """The template as an answer shows it."""
        return cls(
            id=template.id,
            subject=template.subject,
            quality=Quality.of(template.quality),
            crop_sha256=template.crop_sha256,
            created_at=template.created_at,
        )


class TemplatePage(BaseModel):
    """A page of templates; ask again with `cursor` = `next_cursor` until it is null."""

    templates: list[StoredTemplate]
    next_cursor: str | None
