"""What the metadata of a subject may be."""

import json
from typing import Any

from app.gallery.errors import InvalidInput

MAX_METADATA_BYTES = 16 * 1024
MAX_METADATA_LEVELS = 32
"""Objects and lists within each other; an answer with two hundred cannot be written any more."""


def check_metadata(metadata: Any) -> dict[str, Any]:
    """The metadata, if it can be kept.

    Raises:
        InvalidInput: not an object, too long, nested too deep, or text or numbers that no database can keep.
    """
    if not isinstance(metadata, dict):
        raise InvalidInput("metadata is a JSON object", part="metadata")
    if _levels(metadata) > MAX_METADATA_LEVELS:
        raise InvalidInput(f"metadata is nested at most {MAX_METADATA_LEVELS} levels deep", part="metadata")
    try:
        encoded = json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # a lone surrogate, or NaN
        raise InvalidInput("metadata has text or numbers that JSON cannot carry", part="metadata") from error
    if len(encoded) > MAX_METADATA_BYTES:
        raise InvalidInput(f"metadata has at most {MAX_METADATA_BYTES} bytes as JSON", part="metadata")
    if b"\\u0000" in encoded.replace(b"\\\\", b""):  # a backslash of the text is two here, and begins no escape
        raise InvalidInput("metadata must not contain the character NUL", part="metadata")
    return metadata


def stored_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a subject's row; earlier versions took any depth, and what is too deep is null then."""
    return metadata if _levels(metadata) <= MAX_METADATA_LEVELS else _cut(metadata, MAX_METADATA_LEVELS)


def _levels(value: Any) -> int:
    """Objects and lists within each other, counted without recursion."""
    levels, here = 0, [value]
    while here := [one for one in here if isinstance(one, dict | list)]:
        levels += 1
        here = [part for one in here for part in (one.values() if isinstance(one, dict) else one)]
    return levels


def _cut(value: Any, levels: int) -> Any:
    if isinstance(value, dict):
        return {name: _cut(part, levels - 1) for name, part in value.items()} if levels else None
    if isinstance(value, list):
        return [_cut(part, levels - 1) for part in value] if levels else None
    return value
