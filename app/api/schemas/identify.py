"""Probes, and who they are."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.api.schemas.faces import ExtractorField, FoundFace
from app.api.schemas.numbers import Whole
from app.api.schemas.thresholds import Distance
from app.gallery.identifying import NamedCandidate


class CandidateBody(BaseModel):
    """A subject and how far it is from the probe."""

    subject: str = Field(description="key of the person", examples=["ada"])
    distance: float = Field(
        description="0 to 2, of all its templates by the service's matching rule; of two decimals without the scope "
        "`scores`",
        examples=[0.54],
    )
    template: int = Field(description="id of the nearest template")
    metadata: dict[str, Any] = Field(description="what the caller keeps with the person")

    @classmethod
    def of(cls, candidate: NamedCandidate, *, distance: float) -> "CandidateBody":
        """The candidate as an answer shows it, with the distance as its caller may see it."""
        return cls(
            subject=candidate.subject.key,
            distance=distance,
            template=candidate.template_id,
            metadata=candidate.subject.metadata,
        )


class Decision(BaseModel):
    """Who a probe is: `identity` is null where it is unknown."""

    identity: CandidateBody | None
    candidates: list[CandidateBody] = Field(
        description="one a subject, nearest first; within the threshold only, unless all_candidates was set"
    )


class IdentifiedFace(FoundFace, Decision):
    """A face of the photo and who it is."""


class IdentifyAnswer(BaseModel):
    """The decision on every face; for a sent embedding `probe` instead of `faces`."""

    gallery: str = Field(description="its name", examples=["default"])
    extractor: str = ExtractorField
    subjects: int = Field(description="size of the gallery that was searched: its people with a template")
    threshold: float = Field(description="largest distance that was accepted, 0 to 2", examples=[1.07])
    faces: list[IdentifiedFace] = Field(description="of a photo, largest first; none where no face was found")
    probe: Decision | None = Field(description="of an embedding that was sent; null for a photo")


class EmbeddingProbe(BaseModel):
    """A probe that the caller embedded with the same extractor."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,  # else true would be the distance 1
        json_schema_extra={"examples": [{"embedding": [0.0883883476] * 128, "gallery": "default"}]},
    )

    embedding: Annotated[
        list[Annotated[float, Field(allow_inf_nan=False)]],
        Field(min_length=1, max_length=4096, description="as `POST /embed` answers it; of any length above 0"),
    ]
    gallery: str = Field("default", description="name of the gallery")
    threshold: Distance | None = Field(None, description="largest distance to accept; null: the policy's")
    top_k: Whole = Field(5, ge=1, le=100, description="candidates at most")
    all_candidates: bool = Field(False, description="list candidates beyond the threshold as well")
