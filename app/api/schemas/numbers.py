"""Numbers, as JSON has them."""

from typing import Annotated, Any

from pydantic import BeforeValidator


def whole(value: Any) -> Any:
    """The whole number that a JSON number is, though it be written 5.0; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(whole)]
"""A whole number: JSON has one kind of number, and 5.0 is 5."""
