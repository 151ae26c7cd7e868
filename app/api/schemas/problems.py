"""Problem documents, and the photos that an answer refuses."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


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


class ProblemTypeBody(BaseModel):
    """A type of problem."""

    type: str
    status: int
    title: str
    advice: str
