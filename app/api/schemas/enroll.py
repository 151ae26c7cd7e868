"""What an enrolment stored and refused."""

from pydantic import BaseModel, Field

from app.api.schemas.problems import RefusedPhoto
from app.api.schemas.subjects import SubjectBody


class EnrolledPhoto(BaseModel):
    """A photo and the template it led to."""

    photo: str
    template: int
    new: bool = Field(description="false where the subject had this crop already, if only by a photo of this call")


class EnrollAnswer(BaseModel):
    """What an enrolment stored and refused."""

    gallery: str
    extractor: str
    subject: SubjectBody
    enrolled: list[EnrolledPhoto]
    refused: list[RefusedPhoto]
