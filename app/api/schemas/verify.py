"""A one-to-one comparison."""

from pydantic import BaseModel, Field

from app.api.schemas.faces import ExtractorField


class VerifyAnswer(BaseModel):
    """A one-to-one comparison."""

    extractor: str = ExtractorField
    distance: float | None = Field(
        description="0 to 2; without the scope `scores`: of two decimals, and null where there is no match"
    )
    threshold: float = Field(description="largest distance that is a match, 0 to 2")
    match: bool = Field(description="whether both are one person, as far as the distance tells")
