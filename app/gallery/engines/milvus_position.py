"""Up to where a Milvus collection is true, as a row of another collection says it."""

import uuid

from app.gallery.engines.milvus_client import MilvusClient
from app.gallery.points import BEFORE, Point

POSITIONS = "facegallery_positions"
STRONG = "Strong"
"""Reads see every write that was acknowledged before, whichever process made it, and wait for it."""

_GENERATION = 16  # hexadecimal digits; the point's mark stands behind them in the same field


class PositionRow:
    """The row of one collection: the point up to which it is true, and its generation, which changes with every making.

    Args:
        client: that all is asked of.
        name: of the collection.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, client: MilvusClient, name: str, *, timeout: float) -> None:
        self._client = client
        self._name = name
        self._timeout = timeout

    def read(self, consistency: str = STRONG) -> tuple[Point, str]:
        """The point and the generation; `BEFORE` and none where there is no row."""
        rows = self._client.query(
            POSITIONS,
            ids=[self._name],
            output_fields=["position", "generation"],
            consistency_level=consistency,
            timeout=self._timeout,
        )
        if not rows:
            return BEFORE, ""
        generation, _, mark = str(rows[0]["generation"]).partition(":")
        return Point(int(rows[0]["position"]), int(mark or "0", 16)), generation[:_GENERATION]

    def write(self, point: Point, generation: str) -> None:
        """Put both in place of what is there."""
        both = f"{generation}:{point.mark:x}"
        row = {"name": self._name, "position": point.revision, "generation": both, "unused": [0.0, 0.0]}
        self._client.upsert(POSITIONS, [row], timeout=self._timeout)

    def begin(self) -> None:
        """Write down a new generation, which holds nothing yet."""
        self.write(BEFORE, uuid.uuid4().hex[:_GENERATION])
