"""What an engine does, and what its indexes share."""

import hashlib
from datetime import UTC
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.gallery.index import RankedTemplates, SharedIndex
from app.gallery.records import Gallery


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

    def drop(self, gallery: Gallery) -> None:
        """Erase all that the engine keeps of a gallery; nothing happens where it keeps nothing."""

    def close(self) -> None:
        """Give all connections back."""


class EngineIndex(SharedIndex, Protocol):
    """A shared index that can also say which templates it has, so that a check can compare it with SQL."""

    def ids(self) -> NDArray[np.int64]:
        """The ids of all templates, ascending, shape (N,)."""


def storage_name(gallery: Gallery) -> str:
    """Name of a gallery's table or collection.

    It is made of the gallery's id and 12 hexadecimal digits of a digest over its extractor and the moment it was made.
    So two services that share an engine by mistake do not mix their templates, though both have a gallery 1.
    """
    moment = gallery.created_at.astimezone(UTC).isoformat(timespec="microseconds")
    digest = hashlib.sha256(f"{gallery.extractor} {moment}".encode()).hexdigest()
    return f"gallery_{gallery.id}_{digest[:12]}"


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
