"""What the metadata of a subject may be."""

from typing import Any

import pytest

from app.gallery.errors import InvalidInput
from app.gallery.metadata import check_metadata


@pytest.mark.parametrize("text", [r"\u0000", r"\\u0000", r"a\u0000b\n", "\\\n\\u0000"])
def test_what_is_written_like_nul_is_text(text: str) -> None:
    assert check_metadata({text: [text]}) == {text: [text]}


@pytest.mark.parametrize(
    "metadata", [{"a": "\0"}, {"\0": 1}, {"a": [{"b": "\\\0"}]}, {"a": "\\\\\0"}, {"a": "\\u0000\0"}], ids=repr
)
def test_metadata_without_the_character_nul(metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="NUL"):
        check_metadata(metadata)
