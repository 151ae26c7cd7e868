"""How good an extractor is: all figures of one set of photos, as they are and degraded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.card import FmrThreshold
from model.photo_folder import DatasetError
from model.training.bootstrap import Draws, difference, draw_people, identification_draws, verification_draws
from model.training.embedding_set import CLEAN, EmbeddingSet, photo_name
from model.training.error_rates import MIN_SUPPORT, Verification, verify
from model.training.folded_accuracy import FoldedAccuracy, folded_accuracy
from model.training.identification import Identification, divide, identify, search
from model.training.lfw import Pair, corrected_subject
from model.training.pair_distances import PairDistances, compare_photos
from model.training.template_rules import RULES

ENROLLED = (1, 3, 5)
"""Photos of a subject that are enrolled in the open-set figures, one gallery each."""

MIXED = "mixed"
"""Copies each of which is degraded in the one way that its photo's name decides."""

DECADES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""The false match rates that are shown to people and have confidence intervals."""

EQUAL_ERROR_RATE = "equal error rate"
"""Name of the figure, as those of `tar_name`, `fnir_name` and `rank_one_name`."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Error rates of one set of photos under one set of labels."""

    photos: int
    people: int
    failures_to_acquire: int
    verification: Verification
    identification: tuple[Identification, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures, the draws of those that have a confidence interval by their names, and how often which distance is.

    The histograms have shape (BINS,), see `pair_distances`.
    """

    figures: Figures
    draws: Mapping[str, Draws]
    mated_histogram: NDArray[np.int64]
    non_mated_histogram: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LfwProtocol:
    """What is measured on Labeled Faces in the Wild with its published labels, wrong ones included.

    The folds demand them; they are None where not every fold has its pairs at hand.
    """

    folds: FoldedAccuracy | None
    as_published: Measurement


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is measured of one extractor, by condition: `CLEAN` first, then the kinds of degradation and `MIXED`.

    On LFW the conditions are measured with the errata applied; their thresholds are the ones to use, since wrong labels
    fill the tail of the non-mated distances.
    """

    extractor: str
    failures: tuple[str, ...]
    conditions: Mapping[str, Measurement]
    lfw: LfwProtocol | None = None

    @property
    def clean(self) -> Measurement:
        """That of the photos as they are."""
        return self.conditions[CLEAN]

    @property
    def thresholds(self) -> tuple[FmrThreshold, ...]:
        """The table of distance by false match rate for the card, from the loosest to the strictest.

        It ends where fewer than ``MIN_SUPPORT`` different pairs of people lie below the threshold.
        """
        return tuple(
            FmrThreshold(point.fmr, point.distance)
            for point in self.clean.figures.verification.points
            if point.people_pairs is None or point.people_pairs >= MIN_SUPPORT
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """How much larger a figure of one extractor is than another's, with the interval of the paired bootstrap."""

    extractor: str
    against: str
    condition: str
    figure: str
    difference: float
    interval: tuple[float, float]


def tar_name(fmr: float) -> str:
    """Name of the figure true accept rate at a false match rate."""
    return f"TAR at FMR {fmr:.0e}"


def fnir_name(fpir: float, enrolled: int, rule: str) -> str:
    """Name of the figure false negative identification rate."""
    return f"FNIR at FPIR {fpir * 100:g} %, {enrolled} enrolled, {rule}"


def rank_one_name(enrolled: int, rule: str) -> str:
    """Name of the figure rank one."""
    return f"rank one, {enrolled} enrolled, {rule}"


def evaluate(
    extractor: str,
    embedded: EmbeddingSet,
    subjects: Sequence[str],
    advance: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measure everything on photos and their degraded copies.

    Args:
        extractor: its identity.
        embedded: photos and embeddings; copies of at least two kinds are also measured mixed.
        subjects: who is on each photo.
        advance: told the condition that is measured next.

    Raises:
        DatasetError: there is only one person, or nobody has two photos.
    """
    probes: dict[str, NDArray[np.float32] | None] = {CLEAN: None, **embedded.degraded}
    if embedded.degraded:
        probes[MIXED] = embedded.mixed
    conditions = {}
    for condition, copies in probes.items():
        advance(condition)
        conditions[condition] = measure(embedded, subjects, copies)
    return Evaluation(extractor, embedded.failures, conditions)


def evaluate_lfw(
    extractor: str, embedded: EmbeddingSet, pairs: Sequence[Pair], advance: Callable[[str], None] = lambda _: None
) -> Evaluation:
    """Measure everything on LFW, with its corrected labels, and with the published ones what the protocol wants.

    Raises:
        DatasetError: none of the pairs is of these photos, or the photos cannot be compared.
    """
    folds = measure_folds(embedded, pairs)
    corrected = [corrected_subject(photo.name, photo.subject) for photo in embedded.photos]
    kept = [row for row, subject in enumerate(corrected) if subject is not None]
    subjects = [subject for subject in corrected if subject is not None]
    evaluation = evaluate(extractor, embedded.only(kept), subjects, advance)
    advance("published labels")
    as_published = measure(embedded, [photo.subject for photo in embedded.photos])
    return Evaluation(extractor, embedded.failures, evaluation.conditions, LfwProtocol(folds, as_published))


def measure(embedded: EmbeddingSet, subjects: Sequence[str], probes: NDArray[np.float32] | None = None) -> Measurement:
    """Measure all error rates.

    Args:
        embedded: photos and embeddings, which are enrolled.
        subjects: who is on each photo.
        probes: embeddings of copies of the photos, (N, D), each compared with all other photos; None: the photos.

    Raises:
        DatasetError: there is only one person, or nobody has two photos.
    """
    people, numbers = np.unique(np.array(subjects, np.str_), return_inverse=True)
    if not 1 < len(people) < len(subjects):
        raise DatasetError("these photos cannot be compared: expected several people, some of them with several photos")
    weights = draw_people(len(people))
    pairs = compare_photos(embedded.embeddings, numbers, probes)
    verification = verify(pairs)
    identification, draws = _identification(embedded, numbers, probes, weights)
    return Measurement(
        Figures(len(subjects), len(people), len(embedded.failures), verification, identification),
        {**_verification_draws(pairs, verification, weights), **draws},
        pairs.mated_histogram,
        pairs.non_mated_histogram,
    )


def differences(first: Evaluation, other: Evaluation) -> tuple[Difference, ...]:
    """Return how much larger the figures of another extractor are than the first one's, on the same photos."""
    return tuple(
        Difference(other.extractor, first.extractor, condition, name, paired.estimate, paired.interval)
        for condition, measurement in first.conditions.items()
        for name, draws in measurement.draws.items()
        for paired in [difference(other.conditions[condition].draws[name], draws)]
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


def _verification_draws(
    pairs: PairDistances, verification: Verification, weights: NDArray[np.int64]
) -> dict[str, Draws]:
    points = [point for point in verification.points if point.fmr in DECADES]
    equal, accept = verification_draws(pairs, weights, [point.fmr for point in points])
    named = {tar_name(point.fmr): Draws(point.tar, draws) for point, draws in zip(points, accept.T, strict=True)}
    return {EQUAL_ERROR_RATE: Draws(verification.equal_error_rate, equal), **named}


def _identification(
    embedded: EmbeddingSet,
    subjects: NDArray[np.int64],
    probes: NDArray[np.float32] | None,
    weights: NDArray[np.int64],
) -> tuple[tuple[Identification, ...], dict[str, Draws]]:
    gallery = embedded.embeddings
    names = [photo_name(photo) for photo in embedded.photos]
    measured, draws = [], {}
    for enrolled in ENROLLED:
        divisions = divide(names, subjects, enrolled)
        for rule in RULES if enrolled > 1 else ("best",):  # one template is decided alike by all rules
            copies = gallery if probes is None else probes
            found = [search(gallery, copies, subjects, division, RULES[rule]) for division in divisions]
            searches = [one for one in found if one is not None]
            if not searches:
                continue
            rates = identify(searches, enrolled=enrolled, rule=rule)
            rank_one, fnir = identification_draws(searches, weights, [point.fpir for point in rates.points])
            measured.append(rates)
            draws[rank_one_name(enrolled, rule)] = Draws(rates.rank_one, rank_one)
            for point, point_draws in zip(rates.points, fnir.T, strict=True):
                draws[fnir_name(point.fpir, enrolled, rule)] = Draws(point.fnir, point_draws)
    return tuple(measured), draws
