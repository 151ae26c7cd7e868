"""What the gallery tells about its deeds: an audit log listens, or nobody."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Event:
    """One deed; never an image, an embedding or a distance.

    Args:
        action: what was done, such as `enroll`.
        gallery: in which gallery.
        subjects: keys of the subjects that it was about.
        details: counts and names; JSON.
    """

    action: str
    gallery: str | None = None
    subjects: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Journal(Protocol):
    """Keeps events."""

    def write(self, session: "Session", event: Event) -> None:
        """Keep an event in the transaction that does the deed: both happen, or neither."""

    def note(self, event: Event) -> None:
        """Keep an event soon; for deeds that change nothing and must not wait for a disk."""

    def tidy(self) -> None:
        """Let go of what need not be kept any more; called every second or so."""

    def close(self) -> None:
        """Keep what is noted, and stop."""


class NoJournal:
    """Keeps nothing."""

    def write(self, _session: "Session", _event: Event) -> None:
        """Keep nothing."""

    def note(self, _event: Event) -> None:
        """Keep nothing."""

    def tidy(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
