"""How good an extractor is: all figures of one set of photos."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.card import FmrThreshold
from model.photo_folder import DatasetError
from model.training.embedding_set import EmbeddingSet
from model.training.error_rates import MIN_SUPPORT, Verification, verify_all_pairs
from model.training.folded_accuracy import FoldedAccuracy, folded_accuracy
from model.training.identification import Identification, identify_open_set
from model.training.lfw import Pair, corrected_subject

ENROLLED = (3, 1)
"""Photos of a subject that are enrolled in the open-set figures, one gallery each."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Error rates of one set of photos under one set of labels."""

    photos: int
    people: int
    failures_to_acquire: int
    verification: Verification
    identification: tuple[Identification, ...]


@dataclass(frozen=True, slots=True)
class LfwEvaluation:
    """What is measured on Labeled Faces in the Wild.

    The folds keep the published labels, as the protocol demands, and are None where not every fold has its pairs at
    hand. ``corrected`` is measured with the errata applied; its thresholds are the ones to use, since wrong labels
    fill the tail of the non-mated distances.
    """

    folds: FoldedAccuracy | None
    as_published: Figures
    corrected: Figures

    @property
    def thresholds(self) -> tuple[FmrThreshold, ...]:
        """The table of distance by false match rate for the card, from the loosest to the strictest.

        It ends where fewer than ``MIN_SUPPORT`` different pairs of people lie below the threshold.
        """
        return tuple(
            FmrThreshold(point.fmr, point.distance)
            for point in self.corrected.verification.points
            if point.people_pairs is None or point.people_pairs >= MIN_SUPPORT
        )


def measure(embedded: EmbeddingSet, subjects: Sequence[str]) -> Figures:
    """Measure all error rates.

    Args:
        embedded: photos and embeddings.
        subjects: who is on each photo.

    Raises:
        DatasetError: there is only one person, or nobody has two photos.
    """
    names, numbers = np.unique(np.array(subjects, np.str_), return_inverse=True)
    if not 1 < len(names) < len(subjects):
        raise DatasetError("these photos cannot be compared: expected several people, some of them with several photos")
    galleries = (identify_open_set(embedded.embeddings, numbers, enrolled=enrolled) for enrolled in ENROLLED)
    return Figures(
        photos=len(embedded.photos),
        people=len(names),
        failures_to_acquire=len(embedded.failures),
        verification=verify_all_pairs(embedded.embeddings, numbers),
        identification=tuple(gallery for gallery in galleries if gallery is not None),
    )


def evaluate_lfw(embedded: EmbeddingSet, pairs: Sequence[Pair]) -> LfwEvaluation:
    """Measure everything on LFW, with its published and with its corrected labels.

    Raises:
        DatasetError: none of the pairs is of these photos, or the photos cannot be compared.
    """
    corrected = [corrected_subject(photo.name, photo.subject) for photo in embedded.photos]
    kept = [row for row, subject in enumerate(corrected) if subject is not None]
    without_duplicates = EmbeddingSet(tuple(embedded.photos[row] for row in kept), embedded.embeddings[kept])
    return LfwEvaluation(
        folds=measure_folds(embedded, pairs),
        as_published=measure(embedded, [photo.subject for photo in embedded.photos]),
        corrected=measure(without_duplicates, [subject for subject in corrected if subject is not None]),
    )


def measure_folds(embedded: EmbeddingSet, pairs: Sequence[Pair]) -> FoldedAccuracy | None:
    """Measure the accuracy over the folds, on the pairs whose photos are both there; None where a fold has none.

    Raises:
        DatasetError: no pair has both its photos.
    """
    rows = {photo.name: row for row, photo in enumerate(embedded.photos)}
    present = [pair for pair in pairs if pair.left in rows and pair.right in rows]
    if not present:
        raise DatasetError("none of the pairs is of photos in this folder; is it the folder that holds LFW's people?")
    if len({pair.fold for pair in present}) < max(2, len({pair.fold for pair in pairs})):
        return None
    left = embedded.embeddings[[rows[pair.left] for pair in present]]
    right = embedded.embeddings[[rows[pair.right] for pair in present]]
    distances = np.nan_to_num(np.linalg.norm(left - right, axis=1), nan=np.inf)
    mated = np.array([pair.mated for pair in present])
    return folded_accuracy(distances, mated, np.array([pair.fold for pair in present]))
