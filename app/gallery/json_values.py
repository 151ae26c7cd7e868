"""Values out of JSON documents that others may have written; a wrong one raises ValueError or TypeError."""

import json
import math
import re
from datetime import UTC, datetime
from typing import Any

_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_json(data: bytes) -> Any:
    """What a JSON document holds; NaN and infinities are refused."""
    return json.loads(data, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value


def count(value: Any) -> int:
    """A whole number from 0, of at most 63 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError("expected a count")
    return value


def number(value: Any) -> float:
    """A finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("expected a number")
    try:
        found = float(value)
    except OverflowError as error:  # a whole number of hundreds of digits
        raise ValueError("expected a smaller number") from error
    if not math.isfinite(found):
        raise ValueError("expected a number")
    return found


def digest(value: Any) -> str:
    """A SHA-256 digest in hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError("expected a SHA-256 digest")
    return value


def moment(value: Any) -> datetime:
    """A moment with its zone, in UTC."""
    found = datetime.fromisoformat(value)
    if found.tzinfo is None:
        raise ValueError("a moment has no zone")
    try:
        return found.astimezone(UTC)
    except OverflowError as error:  # before the year 1 or after 9999, once in UTC
        raise ValueError("a moment is out of range") from error


def moment_or_none(value: Any) -> datetime | None:
    """As `moment`, or nothing."""
    return None if value is None else moment(value)
