"""A one-to-one comparison."""

from pydantic import BaseModel, Field


class VerifyAnswer(BaseModel):
    """A one-to-one comparison."""

    extractor: str
    distance: float | None = Field(
        description="without the scope `scores`: of two decimals, and null where there is no match"
    )
    threshold: float
    match: bool
