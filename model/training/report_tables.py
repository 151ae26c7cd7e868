"""The tables of a report, in Markdown."""

from collections.abc import Mapping, Sequence

from model.training.bootstrap import Draws, difference
from model.training.error_rates import Verification
from model.training.evaluation import (
    DECADES,
    EQUAL_ERROR_RATE,
    Measurement,
    fnir_name,
    rank_one_name,
    tar_name,
)
from model.training.folded_accuracy import FoldedAccuracy
from model.training.identification import FPIRS, Identification
from model.training.pair_distances import Moments


def folds_sentence(folds: FoldedAccuracy | None) -> str:
    """The accuracy over LFW's folds."""
    if folds is None:
        return "Not measured: not every fold has pairs of these photos."
    return (
        f"Accuracy {folds.accuracy:.2%} ± {folds.deviation:.2%} (standard deviation over the "
        f"{len(folds.fold_accuracies)} folds; standard error of the mean {folds.standard_error:.2%}) on "
        f"{folds.pairs:,} pairs with the published labels, each fold at the threshold that is best on the others."
    )


def verification_table(measured: Mapping[str, Measurement]) -> str:
    """Equal error rate and true accept rates, a row for each condition."""
    rates = [rate for rate in DECADES if any(tar_name(rate) in one.draws for one in measured.values())]
    rows = [["", "mated pairs", "non-mated pairs", EQUAL_ERROR_RATE, *map(tar_name, rates)]]
    for name, measurement in measured.items():
        verification = measurement.figures.verification
        cells = [_with_interval(measurement.draws.get(figure)) for figure in (EQUAL_ERROR_RATE, *map(tar_name, rates))]
        rows.append([name, f"{verification.mated_pairs:,}", f"{verification.non_mated_pairs:,}", *cells])
    return _table(rows)


def distance_table(measured: Mapping[str, Measurement]) -> str:
    """Mean and standard deviation of the distances of one person's and of two people's photos."""
    rows = [["", "one person (mated)", "two people (non-mated)"]]
    for name, measurement in measured.items():
        verification = measurement.figures.verification
        rows.append([name, _moments(verification.mated_distance), _moments(verification.non_mated_distance)])
    return _table(rows)


def identification_table(measured: Mapping[str, Measurement]) -> str:
    """Rank one and false negative identification rates, a row for each condition, gallery and rule."""
    headings = ["", "enrolled", "rule", "subjects", "mated probes", "strangers' photos", "rank one"]
    rows = [headings + [f"FNIR at FPIR {fpir * 100:g} %" for fpir in FPIRS]]
    rows += [
        [name, *_gallery_cells(gallery, measurement.draws)]
        for name, measurement in measured.items()
        for gallery in measurement.figures.identification
    ]
    if len(rows) == 1:
        return "Not measured: too few people have several photos."
    return _table(rows)


def threshold_table(verification: Verification) -> str:
    """Distances by false match rate."""
    if not verification.points:
        return "None: too few pairs."
    rows = [["FMR", "distance", "cosine", "TAR", "pairs of people"]]
    for point in verification.points:
        people = "" if point.people_pairs is None else f"{point.people_pairs:,}"
        cosine = 1 - point.distance**2 / 2
        rows.append([f"{point.fmr:.3g}", f"{point.distance:.4f}", f"{cosine:.4f}", f"{point.tar:.2%}", people])
    return _table(rows)


def side_by_side_table(extractors: Sequence[str], draws: Sequence[Mapping[str, Draws]], figures: Sequence[str]) -> str:
    """A row for each figure, a column for each extractor, with the difference from the first one.

    Args:
        extractors: their names.
        draws: of each extractor, by figure.
        figures: which ones.
    """
    rows = [["", *extractors]]
    for figure in figures:
        first, *others = (column[figure] for column in draws)
        cells = [f"{_with_interval(other)} {_signed(difference(other, first))}" for other in others]
        rows.append([figure, _with_interval(first), *cells])
    return _table(rows)


def _gallery_cells(gallery: Identification, draws: Mapping[str, Draws]) -> list[str]:
    enrolled, rule = gallery.enrolled_per_subject, gallery.rule
    sizes = [f"{count:,}" for count in (gallery.subjects, gallery.mated_probes, gallery.non_mated_probes)]
    figures = [rank_one_name(enrolled, rule), *(fnir_name(fpir, enrolled, rule) for fpir in FPIRS)]
    return [str(enrolled), rule, *sizes, *(_with_interval(draws.get(figure)) for figure in figures)]


def _with_interval(draws: Draws | None) -> str:
    if draws is None:
        return ""
    low, high = draws.interval
    return f"{draws.estimate * 100:.2f} % [{low * 100:.2f}, {high * 100:.2f}]"


def _signed(draws: Draws) -> str:
    low, high = draws.interval
    return f"({draws.estimate * 100:+.2f} [{low * 100:+.2f}, {high * 100:+.2f}])"


def _moments(moments: Moments | None) -> str:
    return "" if moments is None else f"{moments.mean:.3f} ± {moments.deviation:.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    heading, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([heading, "| " + " | ".join(["---"] * len(rows[0])) + " |", *body])
