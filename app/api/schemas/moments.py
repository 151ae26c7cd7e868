"""Moments, as RFC 3339 writes them."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator


def _written_out(value: Any) -> Any:
    # Else a number, or text of digits alone, would be taken for seconds since 1970: 20260101 for a day of that year.
    if isinstance(value, datetime) or (isinstance(value, str) and value[4:5] == "-"):
        return value
    raise ValueError("a moment is written as 2026-01-31T12:00:00Z")


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:  # before the year 1 or after 9999, once in UTC
        raise ValueError("that moment is out of range") from error


Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_utc)]
"""A moment with its zone, in UTC."""
