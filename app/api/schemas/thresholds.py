"""Distances and threshold policies."""

from typing import Annotated

import typing_extensions
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from app.gallery.policy import ThresholdPolicy, policy_from_json

Distance = Annotated[
    float, Field(ge=0, le=2, allow_inf_nan=False, description="Euclidean distance of embeddings; smaller is more alike")
]


Rate = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Rates(BaseModel):
    """A policy that follows the size of the gallery."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"minProperties": 1})

    fpir: Rate | None = Field(None, description="wanted share of strangers that are named, at any size of gallery")
    fmr: Rate | None = Field(None, description="false match rate of one comparison that is never exceeded")


# pydantic reads no TypedDict of the standard library's before Python 3.12.
class RatesInForce(typing_extensions.TypedDict, total=False):
    """A policy that follows the size of the gallery: one of the rates, or both."""

    fpir: Annotated[float, Field(description="share of strangers that are named, at any size of gallery")]
    fmr: Annotated[float, Field(description="false match rate of one comparison that is never exceeded")]


def _told_in_one(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """One sentence about the policy, where the two forms of it would each give their own."""
    try:
        return read(value)
    except ValidationError as error:
        raise ValueError(
            "a policy is a distance from 0 to 2, or an object with `fpir`, `fmr` or both, rates between 0 and 1"
        ) from error


PolicyBody = Annotated[
    Annotated[Distance, Strict()] | Rates,  # strict: else true would be the distance 1
    WrapValidator(_told_in_one),
]


def policy_from_body(body: PolicyBody | None) -> ThresholdPolicy | None:
    """The policy that a body describes."""
    if body is None:
        return None
    return policy_from_json(body.model_dump(exclude_none=True) if isinstance(body, Rates) else body)
