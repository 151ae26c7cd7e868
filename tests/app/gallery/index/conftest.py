"""The kinds of index that a process holds by itself."""

import pytest

from app.gallery.index import INDEX_KINDS
from tests.app.gallery.index.test_contract import MakeIndex


@pytest.fixture(params=list(INDEX_KINDS))
def make_index(request: pytest.FixtureRequest) -> MakeIndex:
    return INDEX_KINDS[request.param]


@pytest.fixture
def examples() -> int:
    """Histories that an index goes through."""
    return 40
