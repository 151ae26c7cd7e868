"""Whether the service lives and can work."""

from typing import Literal

from pydantic import BaseModel, Field


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The service can work."""

    status: Literal["ready"] = "ready"
    extractor: str
    lag: int = Field(description="revisions that this process has yet to follow")
