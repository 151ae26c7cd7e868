"""Shapes of what goes over HTTP."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, Strict, model_validator

from app.api.privacy_schemas import ConsentBody, PrivacyBody
from app.gallery.policy import ThresholdPolicy, policy_from_json, policy_to_json
from app.gallery.records import Gallery, GallerySize, Subject, Template
from app.gallery.service import NamedCandidate
from model.quality import Quality as FaceQuality

Distance = Annotated[
    float, Field(ge=0, le=2, allow_inf_nan=False, description="Euclidean distance of embeddings; smaller is more alike")
]
Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Problem(BaseModel):
    """RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="address of the problem's type", examples=["/problems/no-face"])
    title: str
    status: int
    detail: str = Field(description="what was wrong and what to do")
    part: str | None = Field(None, description="the part of the input that was wrong")
    errors: list[dict[str, Any]] | None = Field(None, description="parts and messages, for invalid-input")
    refused: list["RefusedPhoto"] | None = Field(None, description="photos and reasons, where an enrolment was refused")


class RefusedPhoto(BaseModel):
    """A photo that was not enrolled."""

    photo: str = Field(description="file name, or its place in the request")
    reason: str = Field(description="slug of a problem type", examples=["low-quality"])
    detail: str = Field(examples=["the face is 19 px wide; send one of at least 40 px"])


class Rates(BaseModel):
    """A policy that follows the size of the gallery."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})

    fpir: Rate | None = Field(None, description="wanted share of strangers that are named, at any size of gallery")
    fmr: Rate | None = Field(None, description="false match rate of one comparison that is never exceeded")


PolicyBody = Annotated[Distance, Strict()] | Rates  # strict: else true would be the distance 1


def policy_from_body(body: PolicyBody | None) -> ThresholdPolicy | None:
    """The policy that a body describes."""
    if body is None:
        return None
    return policy_from_json(body.model_dump(exclude_none=True) if isinstance(body, Rates) else body)


class Point(BaseModel):
    """A place in the photo, in pixels from its upper left corner."""

    x: float
    y: float


class Box(BaseModel):
    """A rectangle in the photo, in pixels."""

    x: float
    y: float
    width: float
    height: float


class Landmarks(BaseModel):
    """Five points; right and left are the person's own."""

    right_eye: Point
    left_eye: Point
    nose: Point
    right_mouth: Point
    left_mouth: Point


class Quality(BaseModel):
    """How well a face can be seen."""

    detection_score: float = Field(description="0 to 1")
    face_size: float = Field(description="shorter side of the box in pixels")
    sharpness: float = Field(description="variance of the Laplacian of the aligned crop")
    yaw: float = Field(description="degrees, estimated from the landmarks")
    pitch: float = Field(description="degrees, estimated from the landmarks")
    roll: float = Field(description="degrees, from the eyes")

    @classmethod
    def of(cls, quality: FaceQuality) -> "Quality":
        """The quality as an answer shows it."""
        return cls(
            detection_score=quality.detection_score,
            face_size=quality.face_size,
            sharpness=quality.sharpness,
            yaw=quality.yaw,
            pitch=quality.pitch,
            roll=quality.roll,
        )


class FoundFace(BaseModel):
    """A face in a photo."""

    box: Box
    landmarks: Landmarks
    score: float = Field(description="the detector's confidence, 0 to 1")
    quality: Quality


class Detection(BaseModel):
    """Faces of a photo, largest first."""

    extractor: str
    faces: list[FoundFace]


class EmbeddedFace(FoundFace):
    """A face with its embedding."""

    embedding: list[float] = Field(description="L2-normalised")


class Embedding(BaseModel):
    """Faces of a photo with their embeddings, largest first."""

    extractor: str
    faces: list[EmbeddedFace]


class CandidateBody(BaseModel):
    """A subject and how far it is from the probe."""

    subject: str
    distance: float = Field(
        description="of all its templates by the service's matching rule; of two decimals without the scope `scores`"
    )
    template: int = Field(description="the nearest template")
    metadata: dict[str, Any]

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

    gallery: str
    extractor: str
    subjects: int = Field(description="size of the gallery that was searched")
    threshold: float = Field(description="largest distance that was accepted")
    faces: list[IdentifiedFace] = []
    probe: Decision | None = None


class EmbeddingProbe(BaseModel):
    """A probe that the caller embedded with the same extractor."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"embedding": [0.0883883476] * 128, "gallery": "default"}]}
    )

    embedding: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=4096)]
    gallery: str = "default"
    threshold: Distance | None = None
    top_k: int = Field(5, ge=1, le=100)
    all_candidates: bool = False


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


class EnrolledPhoto(BaseModel):
    """A photo and the template it led to."""

    photo: str
    template: int
    new: bool = Field(description="false where the subject had this crop already")


class SubjectBody(BaseModel):
    """An enrolled person."""

    subject: str
    metadata: dict[str, Any]
    templates: int
    created_at: datetime
    updated_at: datetime
    consent: ConsentBody | None = None
    expires_at: datetime | None = Field(None, description="moment from which the person is erased")
    seen_at: datetime | None = Field(None, description="last identification, where the gallery has `unseen_days`")

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


class EnrollAnswer(BaseModel):
    """What an enrolment stored and refused."""

    gallery: str
    extractor: str
    subject: SubjectBody
    enrolled: list[EnrolledPhoto]
    refused: list[RefusedPhoto]


class VerifyAnswer(BaseModel):
    """A one-to-one comparison."""

    extractor: str
    distance: float | None = Field(
        description="without the scope `scores`: of two decimals, and null where there is no match"
    )
    threshold: float
    match: bool


class GalleryCreation(PrivacyBody):
    """A gallery to be made."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "staff", "policy": {"fpir": 0.01}}]}
    )

    name: str
    policy: PolicyBody | None = None


class GalleryChange(PrivacyBody):
    """A new threshold policy (null returns to the service's), new rules of consent and retention, or both."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"policy": {"fpir": 0.001}}], "minProperties": 1}
    )

    policy: PolicyBody | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("nothing to change; send `policy`, `require_consent`, `keep_days` or `unseen_days`")
        return self


class GalleryBody(BaseModel):
    """A gallery."""

    name: str
    extractor: str
    dimension: int
    revision: int
    subjects: int
    templates: int
    policy: float | dict[str, float] = Field(description="the policy in force")
    own_policy: bool = Field(description="false where the service's policy applies")
    threshold: float | None = Field(description="the distance that follows now; null where another extractor runs")
    created_at: datetime
    require_consent: bool = Field(False, description="whether nobody is enrolled without a consent")
    keep_days: int | None = Field(None, description="days from enrolment to erasure")
    unseen_days: int | None = Field(None, description="days without an identification to erasure")

    @classmethod
    def of(cls, gallery: Gallery, size: GallerySize, policy: ThresholdPolicy, threshold: float | None) -> "GalleryBody":
        """The gallery as an answer shows it."""
        return cls(
            name=gallery.name,
            extractor=gallery.extractor,
            dimension=gallery.dimension,
            revision=gallery.revision,
            subjects=size.subjects,
            templates=size.templates,
            policy=policy_to_json(policy),
            own_policy=gallery.policy is not None,
            threshold=threshold,
            created_at=gallery.created_at,
            require_consent=gallery.privacy.require_consent,
            keep_days=gallery.privacy.keep_days,
            unseen_days=gallery.privacy.unseen_days,
        )


class Galleries(BaseModel):
    """All galleries, by name."""

    galleries: list[GalleryBody]


class SubjectPage(BaseModel):
    """A page of subjects; ask again with `cursor` = `next_cursor` until it is null."""

    subjects: list[SubjectBody]
    next_cursor: str | None


class TemplatePage(BaseModel):
    """A page of templates; ask again with `cursor` = `next_cursor` until it is null."""

    templates: list[StoredTemplate]
    next_cursor: str | None


class SubjectChange(BaseModel):
    """A new key, metadata, consent or expiry; null takes one of the latter two away. Or `merge_into` alone."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"metadata": {"badge": 17}}]})

    subject: str | None = None
    metadata: dict[str, Any] | None = None
    merge_into: str | None = Field(
        None, description="key of the subject that gets this one's templates; this one is erased"
    )
    consent: ConsentBody | None = None
    expires_at: AwareDatetime | None = None


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The service can work."""

    status: Literal["ready"] = "ready"
    extractor: str
    lag: int = Field(description="revisions that this process has yet to follow")


class ProblemTypeBody(BaseModel):
    """A type of problem."""

    type: str
    status: int
    title: str
    advice: str
