"""What an index of templates does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from app.gallery.points import Point
from app.gallery.unit_length import of_unit_length


class SetBack(Exception):
    """An index outside the process may hold less than it was told, or what the database has undone.

    Its server has lost the last writes or was put back, or another process has told it more, which SQL is to confirm;
    or who was to fill it anew has died.
    """


@dataclass(frozen=True, slots=True)
class RankedTemplates:
    """The nearest templates of one probe: ids (K,), int64; distances (K,), float32, ascending, ties by id."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float32]


class TemplateIndex(Protocol):
    """Embeddings by template id, searched by Euclidean distance; every method may be called from any thread.

    Embeddings are L2-normalised float32 of shape (N, D); other vectors are refused with a ValueError.
    """

    @property
    def dimension(self) -> int:
        """D."""

    def __len__(self) -> int:
        """Number of templates."""

    def add(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """Add templates; one whose id is there already takes the new embedding."""

    def remove(self, ids: NDArray[np.int64]) -> int:
        """Remove templates and answer how many were there; unknown ids are passed over."""

    def search(self, probes: NDArray[np.float32], count: int, *, thorough: bool = False) -> list[RankedTemplates]:
        """The `count` nearest templates of each probe (Q, D), fewer where the index holds fewer.

        Args:
            probes: L2-normalised embeddings, float32.
            count: how many.
            thorough: find those that are no person's near ones as surely, which takes several times as long. An index
                that compares codes, or follows a graph, may take others for them else.

        Raises:
            SetBack: a shared index holds less than it was told through this object, or may hold what was undone.
        """

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The embeddings (N, D) of these templates as they were added; a row of NaN for an unknown id."""


@runtime_checkable
class SharedIndex(TemplateIndex, Protocol):
    """An index outside the process, which all processes that serve a gallery search and write.

    It remembers by itself up to which revision it is true, so that a process that starts need not fill it again. Two
    processes may write the same changes at the same time: adding and removing are idempotent.
    """

    def position(self) -> int:
        """Revision up to which it was true a moment ago; -1 before it was first filled. Nothing comes of asking."""

    def point(self) -> Point:
        """The revision up to which it is true, with its mark, -1 before it was first filled.

        Who asks before the first search knows from then on which beginning of it to take for filled.
        """

    def set_position(self, revision: int, mark: int = 0, *, trail: Mapping[int, int] | None = None) -> Point:
        """Remember the revision and its mark; a lower one than the present is passed over.

        Args:
            revision: up to which it is true.
            mark: of that revision.
            trail: marks by revision that were followed to get there. Where the present one is among those revisions
                and has another mark, somebody wrote here what the database has undone since.

        Returns:
            What is remembered now. One that does not agree with the trail stays, and all is to be filled anew. So does
            one from before the trail, as what lies in between is to be told first.
        """

    def put_position(self, revision: int, mark: int = 0) -> None:
        """Remember the revision, now that it was filled anew, whatever the present one is, as after a fall back.

        A position that is too low does no harm: changes are replayed that it has already.
        """


def checked(embeddings: NDArray[np.float32], dimension: int, *, count: int | None = None) -> NDArray[np.float32]:
    """The embeddings as contiguous float32 of shape (N, D).

    Args:
        embeddings: as they came.
        dimension: D.
        count: N, where it is known.

    Raises:
        ValueError: another shape, a NaN, or a length that is not 1 within 1e-3.
    """
    vectors = np.ascontiguousarray(embeddings, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise ValueError(f"expected embeddings of shape (N, {dimension}), got {vectors.shape}")
    if count is not None and len(vectors) != count:
        raise ValueError(f"expected {count} embeddings, one for each id, got {len(vectors)}")
    if not np.all(of_unit_length(vectors)):
        raise ValueError("embeddings must be L2-normalised")
    return vectors


def leads_on(present: Point, trail: Mapping[int, int] | None) -> bool:
    """Whether a trail leads on from a remembered position, or begins before it."""
    return trail is None or (present.revision >= min(trail) and agrees(present, trail))


def agrees(present: Point, trail: Mapping[int, int] | None) -> bool:
    """Whether a remembered position is one of those that were followed, or lies outside of what is known of them."""
    return trail is None or trail.get(present.revision, present.mark) == present.mark
