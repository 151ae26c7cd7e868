"""Problem documents, and the photos that an answer refuses."""

from pydantic import BaseModel, ConfigDict, Field


class WrongPart(BaseModel):
    """A part of the input, and what is wrong with it."""

    part: str = Field(description="name of the field, with dots between levels", examples=["keep_days"])
    message: str = Field(description="what is wrong", examples=["Input should be greater than or equal to 1"])


class Problem(BaseModel):
    """RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="address of the problem's type", examples=["/problems/no-face"])
    title: str = Field(description="what the type is called", examples=["No face found"])
    status: int = Field(description="the answer's HTTP status", examples=[422])
    detail: str = Field(description="what was wrong and what to do")
    part: str | None = Field(None, description="the part of the input that was wrong")
    errors: list[WrongPart] | None = Field(None, description="for invalid-input")
    refused: list["RefusedPhoto"] | None = Field(None, description="photos and reasons, where an enrolment was refused")


class RefusedPhoto(BaseModel):
    """A photo that was not enrolled."""

    photo: str = Field(description="file name, or its place in the request")
    reason: str = Field(description="slug of a problem type", examples=["low-quality"])
    detail: str = Field(
        description="why, and what to do", examples=["the face is 19 px wide; send one of at least 40 px"]
    )


class ProblemTypeBody(BaseModel):
    """A type of problem."""

    type: str = Field(description="its address", examples=["/problems/no-face"])
    status: int = Field(description="the HTTP status that it mostly has")
    title: str = Field(description="what it is called")
    advice: str = Field(description="what a caller can do")
