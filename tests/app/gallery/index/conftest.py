"""The kinds of index that a process holds by itself."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from app.gallery.index import COMPRESS_FROM, INDEX_KINDS, SegmentedIndex, TemplateIndex
from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.upkeep import Limits
from tests.app.gallery.index.test_contract import DIMENSION, MakeIndex, Reload

# So that a few thousand templates make many blocks and segments, which are merged and compacted all the time.
SMALL = Limits(block=300, tail=256, merged=2, largest=2500, dead_share=0.2, least_dead=16)
SEGMENTED: dict[str, int | None] = {
    "flat, small parts": None,
    "compressed, small parts": LEAST_TRAINING,
    "compressed, small parts in lists": LEAST_TRAINING,
}
LIMITS = dict(zip(SEGMENTED, (SMALL, SMALL, replace(SMALL, listed=500)), strict=True))
_COMPRESSED = {str(kind): size for kind, size in COMPRESS_FROM.items()} | SEGMENTED
KINDS: dict[str, Callable[[int], TemplateIndex]] = {
    **{str(kind): make for kind, make in INDEX_KINDS.items()},
    **{name: partial(SegmentedIndex, compress_from=size, limits=LIMITS[name]) for name, size in SEGMENTED.items()},
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_index(kind: str) -> MakeIndex:
    return KINDS[kind]


@pytest.fixture
def reload(kind: str) -> Reload | None:
    """Opens a snapshot with the limits that the index was made with."""
    if kind == "exact":
        return None

    def reload(folder: Path) -> TemplateIndex:
        limits = LIMITS.get(kind, Limits())
        return SegmentedIndex.load(folder, DIMENSION, compress_from=_COMPRESSED[kind], limits=limits)

    return reload


@pytest.fixture
def examples() -> int:
    """Histories that an index goes through."""
    return 40
