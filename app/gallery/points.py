"""Points of a gallery's history: a revision, and which one of that number."""

import secrets
from typing import NamedTuple


class Point(NamedTuple):
    """A revision of a gallery and its mark, drawn by chance with it; what is from before marks were kept has 0.

    A database that falls back behind what it has acknowledged, as one that fails over to a replica that lags, gives
    numbers out again for other content. The mark tells such revisions apart.
    """

    revision: int
    mark: int


BEFORE = Point(-1, 0)
"""Where a view stands before the first load."""


def new_mark() -> int:
    """A mark for a new revision: 63 bits of chance, never 0."""
    return 1 + secrets.randbelow(2**63 - 1)
