"""Which distance is accepted: what the request says, else what follows from a policy."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.gallery.policy import DEFAULT_POLICY, FixedDistance, ThresholdPolicy, threshold_for
from app.gallery.records import Gallery
from model.card import FmrThreshold


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The service's policy, and the card's distances by FMR that policies are read with."""

    policy: ThresholdPolicy
    table: Sequence[FmrThreshold]

    def policy_of(self, gallery: Gallery | None) -> ThresholdPolicy:
        """The gallery's own policy; else the service's."""
        return (gallery.policy if gallery else None) or self.policy

    def distance(self, gallery: Gallery | None, wanted: float | None, subjects: int) -> float:
        """Largest distance to accept.

        Args:
            gallery: that is searched; None: two photos are compared.
            wanted: the request's own, which wins.
            subjects: size of the gallery in subjects.

        Raises:
            InvalidInput: the wanted one is no distance.
        """
        if wanted is not None:
            return FixedDistance(wanted).distance
        return threshold_for(self.policy_of(gallery), self.table, subjects)

    def usual(self, subjects: int) -> float:
        """The default policy's largest distance for so many subjects, whatever the service's or a gallery's is."""
        return threshold_for(DEFAULT_POLICY, self.table, subjects)
