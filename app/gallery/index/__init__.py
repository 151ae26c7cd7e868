"""Indexes of templates: one Protocol, several kinds, one contract test that every kind must pass."""

from collections.abc import Callable
from typing import Literal

from app.gallery.index.exact import ExactIndex
from app.gallery.index.flat import FlatIndex
from app.gallery.index.protocol import RankedTemplates, SharedIndex, TemplateIndex

IndexKind = Literal["exact", "flat"]

INDEX_KINDS: dict[IndexKind, Callable[[int], TemplateIndex]] = {"exact": ExactIndex, "flat": FlatIndex}

__all__ = ["INDEX_KINDS", "ExactIndex", "FlatIndex", "IndexKind", "RankedTemplates", "SharedIndex", "TemplateIndex"]
