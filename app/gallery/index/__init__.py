"""Indexes of templates: one Protocol, several kinds, one contract test that every kind must pass."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.exact import ExactIndex
from app.gallery.index.memory import use_no_huge_pages
from app.gallery.index.protocol import RankedTemplates, SharedIndex, TemplateIndex
from app.gallery.index.rows import HALF_PRECISION
from app.gallery.index.segmented import SegmentedIndex
from app.gallery.index.snapshot import SnapshotDamaged

IndexKind = Literal["exact", "flat", "compressed", "auto"]

COMPRESS_FROM: dict[IndexKind, int | None] = {"flat": None, "compressed": LEAST_TRAINING, "auto": 20_000}
"""Number of templates from which a segmented index of that kind compresses; none: never.

At 20 thousand the exact search takes 0.8 ms, the compressed one 0.3, at 100 thousand 2.7 and 0.3 (docs/searching.md):
up to there a millisecond is little beside finding a face, and below it codes cost more memory than they are worth.
"""

INDEX_KINDS: dict[IndexKind, Callable[[int], TemplateIndex]] = {
    "exact": ExactIndex,
    **{kind: partial(SegmentedIndex, compress_from=size) for kind, size in COMPRESS_FROM.items()},
}
"""What makes an empty index of that kind for a dimension."""

__all__ = [
    "COMPRESS_FROM",
    "HALF_PRECISION",
    "INDEX_KINDS",
    "ExactIndex",
    "IndexKind",
    "RankedTemplates",
    "SegmentedIndex",
    "SharedIndex",
    "SnapshotDamaged",
    "TemplateIndex",
    "use_no_huge_pages",
]
