"""Looking at a snapshot that another process may replace meanwhile."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from app.gallery.index import SnapshotDamaged

Seen = TypeVar("Seen")
_LOOKS = 5


def look_steadily(places: Sequence[Path], look: Callable[[], Seen]) -> Seen | None:
    """What a look at a snapshot gives; None where another process has removed it meanwhile.

    Args:
        places: folders of the snapshot, there or not; one that takes a folder's place is told from it.
        look: is repeated where it found damage in what has been replaced.

    Raises:
        SnapshotDamaged: the look says so, and what it looked at is still there.
    """
    for _ in range(_LOOKS):
        before = [_identity(place) for place in places]
        try:
            return look()
        except SnapshotDamaged:
            after = [_identity(place) for place in places]
            if after == before:
                raise
            if not any(after):
                return None
    return None


def _identity(place: Path) -> tuple[int, int] | None:
    try:
        stat = place.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns
