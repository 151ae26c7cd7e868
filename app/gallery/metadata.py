"""What the metadata of a subject may be."""

import json
from typing import Any

from app.gallery.errors import InvalidInput

MAX_METADATA_BYTES = 16 * 1024


def check_metadata(metadata: Any) -> dict[str, Any]:
    """The metadata, if it can be kept.

    Raises:
        InvalidInput: not an object, too long, or text or numbers that no database can keep.
    """
    if not isinstance(metadata, dict):
        raise InvalidInput("metadata is a JSON object", part="metadata")
    try:
        encoded = json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # a lone surrogate, NaN, or nested too deep
        raise InvalidInput("metadata has text or numbers that JSON cannot carry", part="metadata") from error
    if len(encoded) > MAX_METADATA_BYTES:
        raise InvalidInput(f"metadata has at most {MAX_METADATA_BYTES} bytes as JSON", part="metadata")
    if b"\\u0000" in encoded:
        raise InvalidInput("metadata must not contain the character NUL", part="metadata")
    return metadata
