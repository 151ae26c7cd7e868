"""Who is trained on, who is kept out, and which crops make the batch of a step.

Everything random is a function of seed, step and position, so a run that is interrupted goes on with the same numbers,
and so does one that is spread over several processes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from model.photo_folder import DatasetError
from model.training.augmentation import Augmentation
from model.training.config import DataConfig
from model.training.preparation import PreparedFolder, name_words, read_crop


@dataclass(frozen=True, slots=True)
class LabelledCrops:
    """Crops of people.

    ``labels`` (N,), int64, number the ``people``; ``targets`` (N, D), float32, are the embeddings that the crops have
    with the extractor that prepared them.
    """

    people: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    targets: NDArray[np.float32]

    def rows_by_person(self) -> list[NDArray[np.int64]]:
        """The rows of each person."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(order, np.searchsorted(self.labels[order], np.arange(1, len(self.people))))

    def only(self, rows: NDArray[np.int64]) -> "LabelledCrops":
        """Some of the crops; the people keep their numbers."""
        return LabelledCrops(self.people, tuple(self.paths[row] for row in rows), self.labels[rows], self.targets[rows])


@dataclass(frozen=True, slots=True)
class IdentitySplit:
    """Three sets of crops that have no person in common."""

    train: LabelledCrops
    validation: LabelledCrops
    test: LabelledCrops


def split_identities(
    folders: Sequence[PreparedFolder], *, validation_people: int, test_people: int, seed: int
) -> IdentitySplit:
    """Keep people out of training, so many of each folder, drawn by a seeded hash of their names.

    The names are compared word by word: somebody who is in two folders is one person. People with fewer than two
    usable photos are left out before anybody is drawn.

    Raises:
        DatasetError: fewer than two people remain to train on, or the folders' embeddings differ in length.
    """
    lengths = sorted({folder.embeddings.shape[1] for folder in folders})
    if len(lengths) > 1:
        raise DatasetError(
            f"the folders hold embeddings of {' and '.join(map(str, lengths))} numbers; prepare all with one extractor"
        )
    rows: dict[str, list[tuple[PreparedFolder, int]]] = {}
    for folder in folders:
        for row in folder.usable:
            person = " ".join(name_words(folder.photos[row].person))
            rows.setdefault(person, []).append((folder, int(row)))
    rows = {person: photos for person, photos in rows.items() if len(photos) >= 2}
    roles: dict[str, str] = {}
    for folder in folders:
        here = {person for person, photos in rows.items() if any(of is folder for of, _ in photos)}
        order = sorted(here, key=lambda person: _drawn(person, seed))
        for place, person in enumerate(order):
            kept_out = place < validation_people + test_people
            role = "train" if not kept_out else "validation" if place < validation_people else "test"
            # Who was kept out of one folder stays out of all.
            roles[person] = role if roles.get(person, "train") == "train" else roles[person]
    sets = {
        role: _labelled(rows, [person for person in sorted(rows) if roles[person] == role])
        for role in ("train", "validation", "test")
    }
    if len(sets["train"].people) < 2:
        raise DatasetError("fewer than two people remain to train on; keep fewer out")
    return IdentitySplit(**sets)


def split_by(data: DataConfig, folders: Sequence[PreparedFolder]) -> IdentitySplit:
    """As `split_identities`, by a run's config."""
    return split_identities(
        folders, validation_people=data.validation_people, test_people=data.test_people, seed=data.split_seed
    )


def _drawn(person: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{person}".encode()).hexdigest()


def _labelled(rows: dict[str, list[tuple[PreparedFolder, int]]], people: Sequence[str]) -> LabelledCrops:
    chosen = [(label, folder, row) for label, person in enumerate(people) for folder, row in rows[person]]
    dimension = {folder.embeddings.shape[1] for _, folder, _ in chosen} or {0}
    targets = [folder.embeddings[row] for _, folder, row in chosen]
    return LabelledCrops(
        tuple(people),
        tuple(folder.folder / folder.photos[row].crop for _, folder, row in chosen),
        np.array([label for label, _, _ in chosen], np.int64),
        np.array(targets, np.float32).reshape(len(chosen), max(dimension)),
    )


@dataclass(frozen=True, slots=True)
class Draw:
    """A crop of a batch and the seed of its augmentation."""

    row: int
    seed: int


class PersonBatches:
    """The batches of all steps from one on: so many people, so many photos of each (P × K sampling).

    Args:
        crops: what is drawn from.
        people, photos: P and K of the batch of all processes together.
        steps: from the first step to the last but one.
        seed: of the run.
        rank, processes: which part of each batch is this process's.
    """

    def __init__(
        self,
        crops: LabelledCrops,
        *,
        people: int,
        photos: int,
        steps: range,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._rows = crops.rows_by_person()
        self._people, self._photos = min(people, len(self._rows)), photos
        if self._people * photos % processes:
            raise DatasetError(f"a batch of {self._people} × {photos} does not divide by {processes} processes")
        self._steps, self._seed, self._part = steps, seed, (rank, processes)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Draw]]:
        return (self.batch(step) for step in self._steps)

    def batch(self, step: int) -> list[Draw]:
        """The draws of one step that are this process's."""
        random = np.random.default_rng([self._seed, step])
        people = random.choice(len(self._rows), self._people, replace=False)
        rows = [
            random.choice(self._rows[person], self._photos, replace=len(self._rows[person]) < self._photos)
            for person in people
        ]
        seeds = random.integers(0, 2**62, self._people * self._photos)
        rank, processes = self._part
        draws = [Draw(int(row), int(seed)) for row, seed in zip(np.concatenate(rows), seeds, strict=True)]
        return draws[rank::processes]


class AugmentedCrops(Dataset[tuple[Tensor, int, Tensor]]):
    """Maps a draw to the augmented crop (3, 112, 112), uint8, its label, and its target embedding."""

    def __init__(self, crops: LabelledCrops, augmentation: Augmentation) -> None:
        self._crops = crops
        self._augmentation = augmentation

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, Tensor]:
        crop = torch.from_numpy(read_crop(self._crops.paths[draw.row]).transpose(2, 0, 1).copy())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.seed)
            crop = self._augmentation(crop)
        return crop, int(self._crops.labels[draw.row]), torch.from_numpy(self._crops.targets[draw.row])
