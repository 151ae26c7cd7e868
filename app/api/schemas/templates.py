"""Stored templates."""

from datetime import datetime

from pydantic import BaseModel, Field

from app.api.schemas.faces import Quality
from app.gallery.records import Template


class StoredTemplate(BaseModel):
    """A template without its embedding."""

    id: int = Field(description="never given twice, below 2⁵³")
    subject: str = Field(description="key of the person", examples=["ada"])
    quality: Quality
    crop_sha256: str = Field(description="of the aligned face's pixels, in hexadecimal")
    created_at: datetime = Field(description="when it was enrolled")

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

    templates: list[StoredTemplate] = Field(description="in the order of their enrolment")
    next_cursor: str | None = Field(description="null: this is the last page")
