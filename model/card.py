"""The model card: what a network is, where it comes from, how well it does, which thresholds it has."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from model.errors import ModelFileError
from model.replaced_file import replaced_file

CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class FmrThreshold:
    """The distance (0 to 2) at or below which one in 1/``fmr`` comparisons of two different people matches."""

    fmr: float
    distance: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What there is to know of one network.

    Args:
        name: name of the network and of its folder.
        task: what it does.
        file: name of the network file beside the card.
        sha256: digest of the network file, hexadecimal.
        architecture: name of the torch module, see `model.networks.ARCHITECTURES`.
        dimension: length of an embedding; None for a detector.
        input: shape, colour order, range and alignment of what the network reads, and the order of the landmarks.
        origin: who made it, and which paper describes it.
        source_sha256: digest of the file that it was made from.
        licence: terms of the weights.
        data: what it was trained on.
        figures: measured results and how they were measured.
        thresholds: distance by false match rate, from the largest rate to the smallest; empty for a detector.
    """

    name: str
    task: Literal["detector", "extractor"]
    file: str
    sha256: str
    architecture: str
    dimension: int | None
    input: dict[str, Any]
    origin: str
    source_sha256: str
    licence: str
    data: str
    figures: dict[str, Any] = field(default_factory=dict)
    thresholds: tuple[FmrThreshold, ...] = ()

    @property
    def identity(self) -> str:
        """What a gallery stores to know its extractor again: the name and the first 12 digits of the digest."""
        return f"{self.name}@{self.sha256[:12]}"


def file_sha256(path: Path) -> str:
    """The SHA-256 digest of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_thresholds(thresholds: Sequence[FmrThreshold], part: str) -> None:
    """Check that distances for wanted rates can be read from a table.

    Args:
        thresholds: the table.
        part: what it is of, for the sentence.

    Raises:
        ModelFileError: fewer than two rows, a rate twice or out of range, or a distance that grows as the rate falls.
    """
    rows = sorted(thresholds, key=lambda row: row.fmr, reverse=True)
    ordered = all(one.fmr > two.fmr and one.distance >= two.distance for one, two in pairwise(rows))
    within = all(0 < row.fmr <= 1 and 0 <= row.distance <= 2 for row in rows)
    if len(rows) < 2 or not ordered or not within:
        raise ModelFileError(
            f"the thresholds of {part} cannot be used: expected two rows or more, rates within 0 and 1, each once, and "
            f"distances from 0 to 2 that shrink with the rate, but there are {len(rows)} rows"
        )


def read_card(folder: Path) -> ModelCard:
    """Read a network's card and check that the network file beside it is the one that the card means.

    Raises:
        ModelFileError: the card or the network file is missing, damaged or another one, or an extractor's card has no
            thresholds to decide by.
    """
    path = folder / CARD_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        thresholds = tuple(FmrThreshold(**row) for row in values.pop("thresholds"))
        card = ModelCard(**values, thresholds=thresholds)
        if card.task == "extractor":
            check_thresholds(thresholds, f"the model card {path}")
    except FileNotFoundError as error:
        there = sorted(card.parent.name for card in folder.parent.glob(f"*/{CARD_FILE}"))
        advice = f"the networks there are {', '.join(there)}" if there else "run `facemodel import`"
        raise ModelFileError(f"there is no network {folder.name!r}: {path} is missing; {advice}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(f"the model card {path} cannot be read ({error}); restore it") from error
    network = folder / card.file
    if not network.is_file():
        raise ModelFileError(f"the network file {network} is missing; restore it or run `facemodel import`")
    if file_sha256(network) != card.sha256:
        raise ModelFileError(f"the network file {network} is not the one of its card; restore both from one version")
    return card


def write_card(card: ModelCard, folder: Path) -> Path:
    """Write a card beside its network file, in one step, and return its path; same card, same bytes."""
    path = folder / CARD_FILE
    text = json.dumps(asdict(card), indent=2, sort_keys=True, ensure_ascii=False)
    with replaced_file(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")
    return path
