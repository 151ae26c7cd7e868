"""Whether the service lives and can work."""

from typing import Literal

from pydantic import BaseModel, Field

from app.api.schemas.faces import ExtractorField


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = Field(description="always the same")


class Ready(BaseModel):
    """The service can work."""

    status: Literal["ready"] = Field(description="always the same")
    extractor: str = ExtractorField
    lag: int = Field(description="revisions that this process has yet to follow")
    awaited: int = Field(description="galleries that answer `busy` until this process has loaded their index")
