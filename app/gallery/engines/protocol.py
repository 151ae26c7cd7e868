"""What an engine does, and what its indexes share."""

import hashlib
import time
from datetime import UTC, datetime
from typing import NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from app.gallery.errors import DatabaseUnavailable
from app.gallery.index import RankedTemplates, SharedIndex
from app.gallery.index.protocol import SetBack
from app.gallery.records import Gallery

STORAGE = "gallery_"
"""What the name of every gallery's table or collection begins with."""

FILLED_ANEW = "the gallery's index is being filled anew; try again, or run `facegallery reindex` if this lasts"
"""What a search says where another process is at it, or died over it: who is not in it yet would be unknown."""

THOROUGHLY = 4
"""Times as many templates as otherwise are kept by a thorough search of a graph; see `TemplateIndex.search`."""

_STANDS_STILL = 60.0  # seconds without progress after which who fills an index anew is taken for dead


class IndexEngine(Protocol):
    """Keeps the vectors of galleries outside the process; every method may be called from any thread.

    The engine is searched, never asked who somebody is: the subjects of templates stay with each process, and a found
    template whose subject is not known there is passed over. A row that is left behind by a process that died can
    therefore cost a place in a ranking, but never name anybody.
    """

    def index(self, gallery: Gallery) -> "EngineIndex":
        """The gallery's index, made where it is missing.

        Raises:
            DatabaseUnavailable, Busy, StorageUnwritable, IndexEngineUnusable: as named.
        """

    def names(self, prefix: str) -> list[str]:
        """Names of the tables or collections that begin so, ascending."""

    def drop(self, prefix: str, *, but: str = "") -> None:
        """Erase all whose names begin so, but one; nothing happens where there is nothing.

        Raises:
            Busy: another process works on one of them at length; it is still there, and the others are not.
        """

    def nobodys(self) -> list[str]:
        """Names of the tables or collections of galleries that there are in no database, as after a restore.

        Empty where that cannot be told, as where services of other databases may use the engine, too.
        """

    def close(self) -> None:
        """Give all connections back."""


@runtime_checkable
class EngineIndex(SharedIndex, Protocol):
    """A shared index that can also say which templates it has, so that a check can compare it with SQL."""

    def ids(self) -> NDArray[np.int64]:
        """The ids of all templates, ascending, shape (N,)."""


class Filling:
    """How another process comes on that fills an index anew, as searches meet it."""

    def __init__(self) -> None:
        self._met: tuple[object, float] = None, 0.0  # how far it was, and since when

    def meet(self, generation: int | str, templates: int) -> NoReturn:
        """Refuse a search; to fill an index that somebody else fills as well does no harm.

        Raises:
            DatabaseUnavailable: it is at it.
            SetBack: it has stood still for so long that it is to be filled by who asks.
        """
        clock, state = time.monotonic(), (generation, templates)
        if self._met[0] != state:
            self._met = state, clock
        if clock - self._met[1] < _STANDS_STILL:
            raise DatabaseUnavailable(FILLED_ANEW)
        raise SetBack


def storage_name(gallery: Gallery) -> str:
    """Name of a gallery's table or collection.

    It is made of `storage_prefix` and 12 hexadecimal digits of a digest over the extractor.
    """
    return storage_prefix(gallery) + hashlib.sha256(gallery.extractor.encode()).hexdigest()[:12]


def storage_prefix(gallery: Gallery) -> str:
    """What the names of all that an engine keeps of a gallery begin with, whichever extractors it belonged to.

    It is made of the gallery's id and 12 hexadecimal digits of a digest over the moment it was made. So two services
    that share an engine by mistake do not mix their templates, though both have a gallery 1.
    """
    return prefix_of(gallery.id, gallery.created_at)


def prefix_of(gallery_id: int, created_at: datetime) -> str:
    """As `storage_prefix`, of the gallery with that id that was made at that moment."""
    moment = created_at.astimezone(UTC).isoformat(timespec="microseconds")
    return f"{STORAGE}{gallery_id}_{hashlib.sha256(moment.encode()).hexdigest()[:12]}_"


def prefix_in(name: str) -> str:
    """The `storage_prefix` in the name of a table or collection."""
    return "_".join([*name.split("_", 3)[:3], ""])


def ranked(ids: NDArray[np.int64], stored: NDArray[np.float32], probe: NDArray[np.float32]) -> RankedTemplates:
    """Found templates by their distance, computed here in float32: what an engine says of distances is not asked.

    Args:
        ids: shape (K,).
        stored: their embeddings, shape (K, D).
        probe: shape (D,).
    """
    distances = np.linalg.norm(stored - probe, axis=1)
    order = np.lexsort((ids, distances))
    return RankedTemplates(ids[order], distances[order])


def nothing_found(probes: NDArray[np.float32]) -> list[RankedTemplates]:
    """An empty ranking for each probe."""
    return [RankedTemplates(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in probes]


def last_of_each(ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids once and ascending, each with the last of its embeddings."""
    unique, from_the_end = np.unique(ids[::-1], return_index=True)
    return unique.astype(np.int64), vectors[len(ids) - 1 - from_the_end]
