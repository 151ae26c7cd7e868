"""Shapes of consent, retention and receipts."""

from datetime import datetime
from typing import Annotated, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator

from app.api.schemas.moments import Moment
from app.api.schemas.numbers import whole
from app.gallery.consent import MAX_DAYS, Consent, RuleChanges
from app.gallery.names import normalise_name

Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Days = Annotated[int, Field(ge=1, le=MAX_DAYS), BeforeValidator(whole)]


class ConsentBody(BaseModel):
    """What a person has agreed to."""

    model_config = ConfigDict(extra="forbid")

    purpose: Text = Field(description="what for", examples=["access to the lab"])
    granted_at: Moment = Field(description="when it was given")
    reference: Text | None = Field(None, description="where the proof lies, as the number of a form")
    expires_at: Moment | None = Field(None, description="the person is erased from this moment")

    @field_validator("purpose", "reference")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        return None if value is None else normalise_name(value, part="consent")

    @property
    def record(self) -> Consent:
        """The consent as the gallery keeps it."""
        return Consent(self.purpose, self.granted_at, self.reference, self.expires_at)

    @classmethod
    def of(cls, consent: Consent) -> "ConsentBody":
        """The consent as an answer shows it."""
        return cls(
            purpose=consent.purpose,
            granted_at=consent.granted_at,
            reference=consent.reference,
            expires_at=consent.expires_at,
        )


class PrivacyBody(BaseModel):
    """A gallery's rules; what is left out stays as it is."""

    # Left out, not false: clients made from the document would send a default, and switch the rule off with any PATCH.
    require_consent: bool = Field(default_factory=bool, strict=True, description="take nobody without a consent")
    keep_days: Days | None = Field(None, strict=True, description="erase people so many days after their enrolment")
    unseen_days: Days | None = Field(None, strict=True, description="erase people not identified for so many days")

    @property
    def rules(self) -> RuleChanges:
        """The rules that it sets."""
        given = {name: getattr(self, name) for name in PrivacyBody.model_fields if name in self.model_fields_set}
        return cast(RuleChanges, given)


class Erased(BaseModel):
    """How many of each were erased."""

    subjects: int = Field(description="always 1")
    templates: int = Field(description="of the person")
    keys: int = Field(description="keys destroyed, or to be destroyed where `pending` says so")
    snapshots: int = Field(description="of the index, written anew or removed on this machine")


class Receipt(BaseModel):
    """A signed statement that a person was erased; the signature covers everything else (see the privacy page)."""

    form: str = Field(description="form and version of receipts", examples=["facegallery-receipt-1"])
    id: str = Field(description="random; two erasures have two")
    gallery: str = Field(description="its name")
    gallery_id: int = Field(description="tells it from a later one of the same name")
    revision: int = Field(description="the gallery's, with the erasure")
    subject: str = Field(description="key of the person")
    enrolled_at: datetime = Field(description="when the person was enrolled, which tells them from later ones")
    erased_at: datetime = Field(description="when the rows were erased")
    erased: Erased
    pending: list[str] = Field(description="what a sweep has yet to do: key, vault-log, database-log, index, snapshots")
    public_key: str = Field(description="Ed25519, 32 bytes as base64")
    signature: str = Field(description="Ed25519, 64 bytes as base64")


class ReceiptKey(BaseModel):
    """The key that receipts are checked with."""

    algorithm: str = Field(description="of RFC 8032", examples=["Ed25519"])
    public_key: str = Field(description="32 bytes as base64")
