"""Galleries, made, changed and shown."""

from datetime import datetime
from typing import Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.schemas.faces import ExtractorField
from app.api.schemas.privacy import PrivacyBody
from app.api.schemas.thresholds import PolicyBody, RatesInForce
from app.gallery.policy import policy_to_json
from app.gallery.records import DescribedGallery


class GalleryCreation(PrivacyBody):
    """A gallery to be made."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "staff", "policy": {"fpir": 0.01}}]}
    )

    name: str = Field(description="1 to 200 characters, no slash", examples=["staff"])
    policy: PolicyBody | None = Field(None, description="null: the service's")


class GalleryChange(PrivacyBody):
    """A new threshold policy (null returns to the service's), new rules of consent and retention, or both."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"policy": {"fpir": 0.001}}], "minProperties": 1}
    )

    policy: PolicyBody | None = Field(None, description="null: back to the service's; left out: as it is")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing to change; send `policy`, `require_consent`, `keep_days` or `unseen_days`")
        return self


class GalleryBody(BaseModel):
    """A gallery."""

    name: str = Field(description="its name", examples=["default"])
    extractor: str = ExtractorField
    dimension: int = Field(description="numbers of an embedding", examples=[128])
    revision: int = Field(description="grows with every change of its templates")
    subjects: int = Field(description="people in it, those without a template too")
    templates: int = Field(description="templates in it")
    policy: float | RatesInForce = Field(
        description="the policy in force: a distance, or rates (`fpir`, `fmr`)",
        examples=[{"fpir": 0.01, "fmr": 0.0001}],
    )
    own_policy: bool = Field(description="false where the service's policy applies")
    threshold: float | None = Field(description="the distance that follows now; null where another extractor runs")
    created_at: datetime = Field(description="when it was made")
    require_consent: bool = Field(description="whether nobody is enrolled without a consent")
    keep_days: int | None = Field(description="days from enrolment to erasure; null: no rule")
    unseen_days: int | None = Field(description="days without an identification to erasure; null: no rule")

    @classmethod
    def of(cls, described: DescribedGallery) -> "GalleryBody":
        """The gallery as an answer shows it."""
        gallery = described.gallery
        return cls(
            name=gallery.name,
            extractor=gallery.extractor,
            dimension=gallery.dimension,
            revision=gallery.revision,
            subjects=described.size.subjects,
            templates=described.size.templates,
            policy=cast(float | RatesInForce, policy_to_json(described.policy)),
            own_policy=gallery.policy is not None,
            threshold=described.threshold,
            created_at=gallery.created_at,
            require_consent=gallery.privacy.require_consent,
            keep_days=gallery.privacy.keep_days,
            unseen_days=gallery.privacy.unseen_days,
        )


class GalleryPage(BaseModel):
    """A page of galleries; ask again with `cursor` = `next_cursor` until it is null."""

    galleries: list[GalleryBody] = Field(description="those that the key is for, by name")
    next_cursor: str | None = Field(description="null: this is the last page")
