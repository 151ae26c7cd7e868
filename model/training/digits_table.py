"""The table of the study on digits: every training in CSV, and for people what the seeds of a row have in common."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from model.training.digits_study import Row

NAMES = {"softmax": "softmax alone", "learned": "learned centers", "paper": "paper's centers"}

_COLUMNS = (
    "loss",
    "lambda",
    "features",
    "digits_learned",
    "seed",
    "epochs",
    "accuracy",
    "to_own_mean",
    "between_means",
    "ratio",
    "eer_unseen_raw",
    "eer_unseen_normalised",
)


@dataclass(frozen=True, slots=True)
class Line:
    """A row for people: the loss, what was trained, and figures as text, with a deviation where there are seeds."""

    loss: str
    weight: str
    features: str
    seeds: str
    accuracy: str
    own_mean: str
    between: str
    ratio: str
    error_raw: str
    error_normalised: str


def as_csv(rows: Sequence[Row]) -> str:
    """Return a line for each training; the same rows give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        setting = row.setting
        trained = (
            setting.form,
            f"{setting.weight:g}",
            setting.dimension,
            setting.classes,
            setting.seed,
            setting.epochs,
        )
        figures = (f"{row.accuracy:.4f}", f"{row.own_mean:.3f}", f"{row.between:.3f}", f"{row.ratio:.2f}")
        errors = ("" if error is None else f"{error:.4f}" for error in (row.error_raw, row.error_normalised))
        writer.writerow((*trained, *figures, *errors))
    return text.getvalue()


def lines(rows: Sequence[Row]) -> tuple[Line, ...]:
    """Return a line for each setting, its seeds taken together: mean ± standard deviation."""
    groups: dict[tuple[str, float, int, int], list[Row]] = {}
    for row in rows:
        setting = row.setting
        groups.setdefault((setting.form, setting.weight, setting.dimension, setting.classes), []).append(row)
    return tuple(
        Line(
            NAMES[form],
            "" if form == "softmax" else f"{weight:g}",
            str(dimension),
            str(len(group)),
            _text(group, lambda row: 100 * row.accuracy, 2),
            _text(group, lambda row: row.own_mean, 2),
            _text(group, lambda row: row.between, 2),
            _text(group, lambda row: row.ratio, 1),
            _text(group, lambda row: None if row.error_raw is None else 100 * row.error_raw, 1),
            _text(group, lambda row: None if row.error_normalised is None else 100 * row.error_normalised, 1),
        )
        for (form, weight, dimension, _), group in groups.items()
    )


def as_markdown(plane: Sequence[Row], unseen: Sequence[Row]) -> str:
    """Return both tables: the plane with all ten digits, and digits that were not learned."""
    head = "| loss | λ | accuracy % | to own mean | between means | ratio |"
    table = [head, _rule(head)]
    table += [
        f"| {line.loss} | {line.weight} | {line.accuracy} | {line.own_mean} | {line.between} | {line.ratio} |"
        for line in lines(plane)
    ]
    head = "| features | loss | λ | accuracy % | ratio | EER % raw | EER % normalised |"
    table += ["", head, _rule(head)]
    table += [
        f"| {line.features} | {line.loss} | {line.weight} | {line.accuracy} | {line.ratio} | {line.error_raw} "
        f"| {line.error_normalised} |"
        for line in lines(unseen)
    ]
    return "\n".join(table) + "\n"


def _rule(head: str) -> str:
    return "|" + " --- |" * (head.count("|") - 1)


def _text(group: Sequence[Row], figure: Callable[[Row], float | None], digits: int) -> str:
    values = [value for value in map(figure, group) if value is not None]
    if not values:
        return ""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {stdev(values):.{digits}f}"
