"""What an open-set identification got right and wrong, counted at one threshold."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest subject of the gallery and its distance (0 to 2)."""

    subject: str
    distance: float


@dataclass(frozen=True, slots=True)
class Probe:
    """A photo, who is on it, and what the service found there.

    Args:
        photo: its path below the folder of photos.
        person: whose folder it is in.
        mated: whether that person was to be enrolled.
        found: whether any face was found.
        nearest: candidate of the face nearest to the centre; None where no face was found or the gallery is empty.
        others: candidates of the photo's other faces.
    """

    photo: str
    person: str
    mated: bool
    found: bool
    nearest: Nearest | None
    others: tuple[Nearest, ...]

    def name_at(self, threshold: float) -> str | None:
        """Who this is at a threshold (distance, 0 to 2); None: unknown."""
        return self.nearest.subject if self.nearest and self.nearest.distance <= threshold else None


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of photos at one threshold (distance, 0 to 2)."""

    threshold: float
    mated: int
    correct: int
    missed: int
    wrong: int
    mated_without_face: int
    strangers: int
    strangers_named: int
    strangers_without_face: int
    other_faces: int
    other_faces_named: int

    @property
    def strangers_unknown(self) -> int:
        """Strangers whose face was found and not named."""
        return self.strangers - self.strangers_named - self.strangers_without_face


def tally(probes: Sequence[Probe], threshold: float) -> Tally:
    """Count the probes' outcomes at a threshold (distance, 0 to 2)."""
    mated = [probe for probe in probes if probe.mated]
    strangers = [probe for probe in probes if not probe.mated]
    names = [(probe.person, probe.name_at(threshold)) for probe in mated if probe.found]
    others = [nearest for probe in probes for nearest in probe.others]
    return Tally(
        threshold=threshold,
        mated=len(mated),
        correct=sum(name == person for person, name in names),
        missed=sum(name is None for _, name in names),
        wrong=sum(name not in (None, person) for person, name in names),
        mated_without_face=sum(not probe.found for probe in mated),
        strangers=len(strangers),
        strangers_named=sum(probe.name_at(threshold) is not None for probe in strangers),
        strangers_without_face=sum(not probe.found for probe in strangers),
        other_faces=len(others),
        other_faces_named=sum(nearest.distance <= threshold for nearest in others),
    )


def mistakes(probes: Sequence[Probe], threshold: float) -> list[Probe]:
    """The probes that got a name that is not theirs, the most certain first."""
    named = [probe for probe in probes if probe.name_at(threshold) not in (None, probe.person if probe.mated else None)]
    return sorted(named, key=lambda probe: probe.nearest.distance if probe.nearest else 0.0)
