"""What an evaluation found, as JSON, as Markdown, and as the figures of a model card."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from model.training.error_rates import MIN_SUPPORT
from model.training.evaluation import Figures, LfwEvaluation
from model.training.folded_accuracy import FoldedAccuracy
from model.training.identification import Identification

DECADES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""The false match rates that are shown to people; JSON has them all."""

_ALL_PAIRS = (
    "Every photo against every other one. A pair matches if its distance is at most the threshold. *Corrected* labels "
    "apply LFW's list of errata; with the published ones, photos of one person under two names lie among the closest "
    f"non-mated pairs. Rates with fewer than {MIN_SUPPORT} non-mated pairs behind them are left out."
)
_OPEN_SET = (
    "The first photos of everybody who has more are enrolled; their other photos are the mated probes, all photos of "
    "everybody else the strangers. A subject is as near as its nearest template. A mated probe is a miss if its "
    "subject is not the nearest one or lies above the threshold (NIST FRTE 1:N, FNIR at rank one)."
)
_THRESHOLDS = (
    "Distance by false match rate with the corrected labels. The last column says of how many different pairs of "
    "people the non-mated pairs below the threshold are. The card's table ends where these are fewer than "
    f"{MIN_SUPPORT}: photos of the same two people (kin, or one person under two names) are no independent trials."
)


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation and what it is of: the identities of the networks, the photos without a face."""

    extractor: str
    detector: str
    failures: tuple[str, ...]
    lfw: LfwEvaluation


def as_json(report: Report) -> str:
    """Return the whole report as JSON."""
    document = asdict(report)
    document["lfw"]["thresholds"] = [asdict(point) for point in report.lfw.thresholds]
    return json.dumps(document, indent=2, allow_nan=False)


def card_figures(evaluation: LfwEvaluation) -> dict[str, Any]:
    """Return the figures for the card of the extractor, fractions rounded to five digits."""
    figures: dict[str, Any] = {
        "data": "Labeled Faces in the Wild",
        "corrected_labels": _card_rates(evaluation.corrected),
        "published_labels": _card_rates(evaluation.as_published),
    }
    if evaluation.folds is not None:
        figures["ten_folds"] = {
            "pairs": evaluation.folds.pairs,
            "accuracy": round(evaluation.folds.accuracy, 5),
            "deviation": round(evaluation.folds.deviation, 5),
        }
    return figures


def _card_rates(figures: Figures) -> dict[str, Any]:
    verification = figures.verification
    return {
        "photos": figures.photos,
        "people": figures.people,
        "failures_to_acquire": figures.failures_to_acquire,
        "mated_pairs": verification.mated_pairs,
        "non_mated_pairs": verification.non_mated_pairs,
        "equal_error_rate": round(verification.equal_error_rate, 5),
        "tar_at_fmr": {
            f"{point.fmr:.0e}": round(point.tar, 5) for point in verification.points if point.fmr in DECADES
        },
        "open_set": [
            {
                "enrolled_per_subject": gallery.enrolled_per_subject,
                "subjects": gallery.subjects,
                "rank_one": round(gallery.rank_one, 5),
                "fnir_at_fpir": {f"{point.fpir:g}": round(point.fnir, 5) for point in gallery.points},
            }
            for gallery in figures.identification
        ],
    }


def as_markdown(report: Report) -> str:
    """Return the report for people to read."""
    evaluation = report.lfw
    acquired = (
        f"Detector {report.detector}. Of the faces in a photo the one that is large and near the middle is taken. "
        f"{len(report.failures)} of {evaluation.as_published.photos:,} photos have none; such a photo matches nobody "
        "and stays in every denominator, so a mated pair or a mated probe with it is a miss."
    )
    sections = (
        [f"# {report.extractor} on Labeled Faces in the Wild", "", acquired],
        ["## Ten folds", "", _folds_sentence(evaluation.folds)],
        ["## All pairs", "", _ALL_PAIRS, "", *_verification_table(evaluation)],
        ["## Open set", "", _OPEN_SET, "", *_identification_table(evaluation)],
        ["## Thresholds", "", _THRESHOLDS, "", *_threshold_table(evaluation)],
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _folds_sentence(folds: FoldedAccuracy | None) -> str:
    if folds is None:
        return "Not measured: not every fold has pairs of these photos."
    return (
        f"Accuracy {folds.accuracy:.2%} ± {folds.deviation:.2%} (standard deviation over the "
        f"{len(folds.fold_accuracies)} folds; standard error of the mean {folds.standard_error:.2%}) on "
        f"{folds.pairs:,} pairs with the published labels, each fold at the threshold that is best on the others."
    )


def _verification_table(evaluation: LfwEvaluation) -> list[str]:
    corrected, published = evaluation.corrected.verification, evaluation.as_published.verification
    rows = [
        "| | corrected labels: TAR | distance | published labels: TAR | distance |",
        "| --- | --- | --- | --- | --- |",
    ]
    # The two sets differ by three photos, so both support the same rates or all but the strictest.
    for one, other in zip(corrected.points, published.points, strict=False):
        if one.fmr in DECADES:
            cells = (f"{one.tar:.2%}", f"{one.distance:.4f}", f"{other.tar:.2%}", f"{other.distance:.4f}")
            rows.append(f"| FMR {one.fmr:.0e} | {' | '.join(cells)} |")
    rows += [
        f"| equal error rate | {corrected.equal_error_rate:.3%} | | {published.equal_error_rate:.3%} | |",
        f"| mated pairs | {corrected.mated_pairs:,} | | {published.mated_pairs:,} | |",
        f"| non-mated pairs | {corrected.non_mated_pairs:,} | | {published.non_mated_pairs:,} | |",
    ]
    return rows


def _identification_table(evaluation: LfwEvaluation) -> list[str]:
    rows = [
        "| labels | photos each | subjects | mated probes | strangers | rank one | FNIR at FPIR (distance) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for labels, figures in (("corrected", evaluation.corrected), ("published", evaluation.as_published)):
        rows += [f"| {labels} | {_gallery_cells(gallery)} |" for gallery in figures.identification]
    return rows


def _gallery_cells(gallery: Identification) -> str:
    points = ", ".join(f"{point.fnir:.2%} at {point.fpir:.1%} ({point.distance:.4f})" for point in gallery.points)
    counts = (gallery.enrolled_per_subject, gallery.subjects, gallery.mated_probes, gallery.non_mated_probes)
    return " | ".join([*(f"{count:,}" for count in counts), f"{gallery.rank_one:.2%}", points])


def _threshold_table(evaluation: LfwEvaluation) -> list[str]:
    rows = ["| FMR | distance | cosine | TAR | pairs of people |", "| --- | --- | --- | --- | --- |"]
    for point in evaluation.corrected.verification.points:
        people = "" if point.people_pairs is None else f"{point.people_pairs:,}"
        cosine = 1 - point.distance**2 / 2
        rows.append(f"| {point.fmr:.3g} | {point.distance:.4f} | {cosine:.4f} | {point.tar:.2%} | {people} |")
    return rows
