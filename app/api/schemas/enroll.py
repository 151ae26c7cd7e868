"""What an enrolment stored and refused."""

from pydantic import BaseModel, Field

from app.api.schemas.faces import ExtractorField
from app.api.schemas.problems import RefusedPhoto
from app.api.schemas.subjects import SubjectBody


class EnrolledPhoto(BaseModel):
    """A photo and the template it led to."""

    photo: str = Field(description="file name, or its place in the request", examples=["ada-1.jpg"])
    template: int = Field(description="id of the template")
    new: bool = Field(description="false where the subject had this crop already, if only by a photo of this call")


class EnrollAnswer(BaseModel):
    """What an enrolment stored and refused."""

    gallery: str = Field(description="its name", examples=["default"])
    extractor: str = ExtractorField
    subject: SubjectBody
    enrolled: list[EnrolledPhoto] = Field(description="photos that have a template")
    refused: list[RefusedPhoto] = Field(description="the other photos")
