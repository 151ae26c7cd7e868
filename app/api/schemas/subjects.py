"""Enrolled people."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.schemas.moments import Moment
from app.api.schemas.privacy import ConsentBody
from app.gallery.records import Subject


class SubjectBody(BaseModel):
    """An enrolled person."""

    subject: str = Field(description="key of the person", examples=["ada"])
    metadata: dict[str, Any] = Field(description="what the caller keeps with the person", examples=[{"badge": 17}])
    templates: int = Field(description="how many there are")
    created_at: datetime = Field(description="first enrolment")
    updated_at: datetime = Field(description="last change of templates, key, metadata, consent or expiry")
    consent: ConsentBody | None
    expires_at: datetime | None = Field(description="moment from which the person is erased")
    seen_at: datetime | None = Field(description="last identification, where the gallery has `unseen_days`")

    @classmethod
    def of(cls, subject: Subject) -> "SubjectBody":
        """The subject as an answer shows it."""
        return cls(
            subject=subject.key,
            metadata=subject.metadata,
            templates=subject.templates,
            created_at=subject.created_at,
            updated_at=subject.updated_at,
            consent=None if subject.consent is None else ConsentBody.of(subject.consent),
            expires_at=subject.expires_at,
            seen_at=subject.seen_at,
        )


class SubjectPage(BaseModel):
    """A page of subjects; ask again with `cursor` = `next_cursor` until it is null."""

    subjects: list[SubjectBody] = Field(description="in the order of their enrolment")
    next_cursor: str | None = Field(description="null: this is the last page")


class SubjectChange(BaseModel):
    """A new key, metadata, consent or expiry; null takes one of the latter two away. Or `merge_into` alone."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"metadata": {"badge": 17}}], "minProperties": 1}
    )

    subject: str | None = Field(None, description="the new key")
    metadata: dict[str, Any] | None = Field(None, description="takes the place of all there is; at most 16 KiB")
    merge_into: str | None = Field(
        None, description="key of the subject that gets this one's templates; this one is erased"
    )
    consent: ConsentBody | None = None
    expires_at: Moment | None = Field(None, description="moment from which the person is erased")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.model_fields_set.isdisjoint({"consent", "expires_at"}) and not self.model_dump(exclude_none=True):
            raise ValueError("nothing to change; send `subject`, `metadata`, `consent`, `expires_at` or `merge_into`")
        return self
