"""What an evaluation found, as JSON, as Markdown, and as the figures of a model card."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.training.bootstrap import CONFIDENCE, REPLICATES
from model.training.error_rates import MIN_SUPPORT
from model.training.evaluation import (
    DECADES,
    EQUAL_ERROR_RATE,
    MIXED,
    Difference,
    Evaluation,
    Measurement,
    differences,
    fnir_name,
    tar_name,
)
from model.training.identification import FPIRS, LEAST_STRANGERS, SPLITS
from model.training.report_tables import (
    distance_table,
    folds_sentence,
    identification_table,
    side_by_side_table,
    threshold_table,
    verification_table,
)
from model.training.template_rules import DEFAULT_RULE

_DEGRADED = (
    "**Degraded copies.** The aligned crop is changed, so the detector is no part of it. What is enrolled, or the "
    "first photo of a pair, is as it was; the copy is the probe, and is never compared with its own photo. *24px*: "
    "scaled down to 24×24 and back; *blur*: Gaussian, 2.5 pixels of 112; *dark*: a fifth of the values; *jpeg20*: "
    f"JPEG at quality 20; *covered*: the lower half grey; *{MIXED}*: each photo in the one of these ways that its name "
    "decides."
)
_ALL_PAIRS = (
    "**All pairs.** Every photo is compared with every other one. A pair matches if its distance is at most the "
    "threshold; each condition has thresholds of its own."
)
_OPEN_SET = (
    "**Open set.** Who has no more photos than are enrolled is a stranger; of everybody else the first photos are "
    f"enrolled, the others are mated probes. Where that leaves fewer than {LEAST_STRANGERS} photos of strangers, half "
    f"of everybody else are strangers too, {SPLITS} times anew by a hash of the names, and the figures are means. A "
    "mated probe is a miss if its subject is not the nearest one or lies above the threshold (NIST FRTE 1:N, FNIR at "
    "rank one). Rules for several templates: *best*, the nearest; *mean*, their normalised mean; *both*, the mean of "
    "both cosines."
)
_INTERVALS = (
    f"**Intervals** in brackets hold {CONFIDENCE:.0%} of the bootstrap over people, who are drawn with replacement "
    f"{REPLICATES} times, all photos of a person together; thresholds are found anew each time, galleries stay as they "
    "are."
)
_DIFFERENCES = (
    "**Differences** after the figures of the other columns: how much larger they are than the first column's, with "
    "the interval of the paired bootstrap, the same people drawn for both. One whose interval holds 0 may be chance."
)
_THRESHOLDS = (
    "**Thresholds** are those of the photos as they are. The last column of their table says of how many different "
    "pairs of people the non-mated pairs below are. A card's table ends where these are fewer than "
    f"{MIN_SUPPORT}: photos of the same two people (kin, or one person under two names) are no independent trials."
)
_CORRECTED = (
    "**Labels.** LFW's list of errata is applied: with the published labels, photos of one person under two names lie "
    "among the closest non-mated pairs. What is measured with those is marked *published*."
)


_COMPARED = ((1, "best"), (3, DEFAULT_RULE), (5, DEFAULT_RULE))
"""The galleries and rules that stand side by side."""


@dataclass(frozen=True, slots=True)
class Report:
    """Evaluations of several extractors on the same photos, the first of which the others are compared with.

    Args:
        data: what the photos are.
        acquired: how the faces came out of the photos, a sentence.
        evaluations: one an extractor.
    """

    data: str
    acquired: str
    evaluations: tuple[Evaluation, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Of every other extractor from the first one."""
        first, *others = self.evaluations
        return tuple(difference for other in others for difference in differences(first, other))


def as_json(report: Report) -> str:
    """Return the whole report as JSON."""
    document = {
        "data": report.data,
        "acquired": report.acquired,
        "confidence": CONFIDENCE,
        "replicates": REPLICATES,
        "extractors": [_evaluation_document(evaluation) for evaluation in report.evaluations],
        "differences": [asdict(difference) for difference in report.differences],
    }
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)


def _evaluation_document(evaluation: Evaluation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "extractor": evaluation.extractor,
        "failures": evaluation.failures,
        "thresholds": [asdict(point) for point in evaluation.thresholds],
        "conditions": {name: _measurement_document(one) for name, one in evaluation.conditions.items()},
    }
    if evaluation.lfw is not None:
        folds, published = evaluation.lfw.folds, evaluation.lfw.as_published
        document["lfw"] = {
            "folds": None if folds is None else asdict(folds),
            "as_published": _measurement_document(published),
        }
    return document


def _measurement_document(measurement: Measurement) -> dict[str, Any]:
    intervals = {name: draws.interval for name, draws in measurement.draws.items()}
    return {**asdict(measurement.figures), "intervals": intervals}


def card_figures(evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures for the card of an extractor measured on LFW, fractions rounded to five digits."""
    figures: dict[str, Any] = {"data": "Labeled Faces in the Wild"}
    for name, measurement in evaluation.conditions.items():
        figures["corrected_labels" if measurement is evaluation.clean else f"degraded_{name}"] = _card_rates(
            measurement
        )
    if evaluation.lfw is not None:
        figures["published_labels"] = _card_rates(evaluation.lfw.as_published)
        if evaluation.lfw.folds is not None:
            figures["ten_folds"] = {
                "pairs": evaluation.lfw.folds.pairs,
                "accuracy": round(evaluation.lfw.folds.accuracy, 5),
                "deviation": round(evaluation.lfw.folds.deviation, 5),
            }
    return figures


def _card_rates(measurement: Measurement) -> dict[str, Any]:
    figures, verification = measurement.figures, measurement.figures.verification
    points = [point for point in verification.points if point.fmr in DECADES]
    return {
        "photos": figures.photos,
        "people": figures.people,
        "failures_to_acquire": figures.failures_to_acquire,
        "mated_pairs": verification.mated_pairs,
        "non_mated_pairs": verification.non_mated_pairs,
        "equal_error_rate": round(verification.equal_error_rate, 5),
        "tar_at_fmr": {f"{point.fmr:.0e}": round(point.tar, 5) for point in points},
        "tar_interval_at_fmr": {f"{point.fmr:.0e}": _rounded(measurement, tar_name(point.fmr)) for point in points},
        "open_set": [
            {
                "enrolled_per_subject": gallery.enrolled_per_subject,
                "rule": gallery.rule,
                "subjects": gallery.subjects,
                "rank_one": round(gallery.rank_one, 5),
                "fnir_at_fpir": {f"{point.fpir:g}": round(point.fnir, 5) for point in gallery.points},
            }
            for gallery in figures.identification
            if gallery.rule == DEFAULT_RULE or gallery.enrolled_per_subject == 1
        ],
    }


def _rounded(measurement: Measurement, name: str) -> list[float]:
    return [round(end, 5) for end in measurement.draws[name].interval]


def as_markdown(report: Report) -> str:
    """Return the report for people to read."""
    first = report.evaluations[0]
    several, degraded = len(report.evaluations) > 1, len(first.conditions) > 1
    figures = first.clean.figures
    blocks = [
        f"# {', '.join(evaluation.extractor for evaluation in report.evaluations)} on {report.data}",
        f"{figures.photos:,} photos of {figures.people:,} people. {report.acquired}",
    ]
    if several:
        blocks += ["## Side by side", *_side_by_side(report.evaluations)]
    for evaluation in report.evaluations:
        blocks += [f"## {evaluation.extractor}", *_sections(evaluation)]
    explained = [_ALL_PAIRS, _OPEN_SET, _INTERVALS, _THRESHOLDS]
    explained += [_DEGRADED] * degraded + [_DIFFERENCES] * several + [_CORRECTED] * (first.lfw is not None)
    blocks += ["## How it is measured", *explained]
    return "\n\n".join(blocks) + "\n"


def _side_by_side(evaluations: Sequence[Evaluation]) -> list[str]:
    compared = [
        EQUAL_ERROR_RATE,
        *map(tar_name, DECADES),
        *(fnir_name(fpir, enrolled, rule) for enrolled, rule in _COMPARED for fpir in FPIRS),
    ]
    blocks = []
    for condition, measurement in evaluations[0].conditions.items():
        shown = [name for name in compared if name in measurement.draws]
        draws = [evaluation.conditions[condition].draws for evaluation in evaluations]
        table = side_by_side_table([evaluation.extractor for evaluation in evaluations], draws, shown)
        blocks += [f"### {condition.capitalize()}", table]
    return blocks


def _sections(evaluation: Evaluation) -> list[str]:
    blocks = []
    if evaluation.failures:
        blocks.append(
            f"{len(evaluation.failures):,} photos have no face; such a photo matches nobody and stays in every "
            "denominator, so a mated pair or a mated probe with it is a miss."
        )
    measured = dict(evaluation.conditions)
    if evaluation.lfw is not None:
        measured["published"] = evaluation.lfw.as_published
        blocks += ["### Ten folds", folds_sentence(evaluation.lfw.folds)]
    blocks += ["### All pairs", verification_table(measured)]
    blocks += ["### Distances", distance_table(measured)]
    blocks += ["### Open set", identification_table(measured)]
    return [*blocks, "### Thresholds", threshold_table(evaluation.clean.figures.verification)]
