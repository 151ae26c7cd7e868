"""The figures that steer a run: how well people who are kept out of it are told apart, clean and degraded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.photo_folder import DatasetError
from model.training.degradation import degrade_mixed
from model.training.error_rates import allowed, just_below
from model.training.pair_distances import distances_between
from model.training.preparation import read_crop
from model.training.training_set import LabelledCrops

ENROLLED = 3
SPLITS = 20
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Condition:
    """Probes in one condition against clean photos: FNIR at an FPIR of 1 %, TAR at an FMR of 1e-4, equal error rate."""

    fnir: float
    tar: float
    eer: float


@dataclass(frozen=True, slots=True)
class Steering:
    """Both conditions, and their mean FNIR, which is what a run should lower."""

    clean: Condition
    degraded: Condition

    @property
    def fnir(self) -> float:
        """The mean of both FNIRs."""
        return (self.clean.fnir + self.degraded.fnir) / 2


def some_photos(crops: LabelledCrops, most: int) -> LabelledCrops:
    """At most so many photos of each person, spread evenly over those there are."""
    rows = np.sort(
        np.concatenate(
            [
                person[np.linspace(0, len(person) - 1, min(most, len(person))).astype(np.int64)]
                for person in crops.rows_by_person()
            ]
        )
    )
    return crops.only(rows)


def can_steer(labels: NDArray[np.int64]) -> bool:
    """Whether photos give the figures: two people at least, and of one of them more photos than are enrolled."""
    photos = np.bincount(labels)
    return int(np.count_nonzero(photos)) >= 2 and int(photos.max()) > ENROLLED


def read_crops(crops: LabelledCrops) -> NDArray[np.uint8]:
    """All crops, (N, 112, 112, 3), uint8."""
    return np.stack([read_crop(path) for path in crops.paths])


@torch.inference_mode()
def crop_features(network: nn.Module, crops: NDArray[np.uint8], device: str = "cpu") -> NDArray[np.float32]:
    """What a torch network in evaluation mode makes of crops (N, 112, 112, 3): (N, D), float32, of any length."""
    training = network.training
    network.eval()
    parts = []
    for start in range(0, len(crops), _BATCH):
        batch = torch.from_numpy(crops[start : start + _BATCH]).to(device).permute(0, 3, 1, 2).float()
        parts.append(network(batch).cpu().numpy())
    network.train(training)
    return np.concatenate(parts)


def embed_crops(network: nn.Module, crops: NDArray[np.uint8], device: str = "cpu") -> NDArray[np.float32]:
    """Embed crops (N, 112, 112, 3) with a torch network in evaluation mode: (N, D), float32, L2-normalised."""
    return nn.functional.normalize(torch.from_numpy(crop_features(network, crops, device))).numpy()


def steer_by(photos: LabelledCrops, embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Steering:
    """Measure an extractor on photos and on copies of them, each degraded in the way that its file's name decides.

    Args:
        photos: of people who are kept out.
        embed: takes crops (N, 112, 112, 3) to embeddings (N, D), L2-normalised.
    """
    clean = read_crops(photos)
    degraded = degrade_mixed(clean, [path.name for path in photos.paths])
    return steer(embed(clean), embed(degraded), photos.labels)


def steer(clean: NDArray[np.float32], degraded: NDArray[np.float32], labels: NDArray[np.int64]) -> Steering:
    """Measure both conditions.

    The people are divided `SPLITS` times into enrolled and strangers; FNIR is the mean over those divisions in which
    somebody enrolled has a photo left to be searched for.

    Args:
        clean: embeddings of the clean photos, (N, D).
        degraded: embeddings of degraded copies of the same photos, (N, D).
        labels: who is on each, (N,).

    Raises:
        DatasetError: there is one person alone, or nobody enrolled has more photos than are enrolled.
    """
    if not can_steer(labels):
        raise DatasetError(f"these figures need two people, one of them with more than {ENROLLED} photos")
    return Steering(_condition(clean, clean, labels), _condition(clean, degraded, labels))


def _condition(gallery: NDArray[np.float32], probes: NDArray[np.float32], labels: NDArray[np.int64]) -> Condition:
    distances = distances_between(probes, gallery)
    same = labels[:, None] == labels[None, :]
    other_photo = ~np.eye(len(labels), dtype=np.bool_)
    rates = [_fnir(distances, labels, np.random.default_rng(split)) for split in range(SPLITS)]
    measured = [rate for rate in rates if rate is not None]
    if not measured:
        raise DatasetError(f"too few people have more than {ENROLLED} photos: none of them was ever enrolled")
    return Condition(
        float(np.mean(measured)),
        _tar(distances[same & other_photo], distances[~same], 1e-4),
        _eer(distances[same & other_photo], distances[~same]),
    )


def _fnir(distances: NDArray[np.float32], labels: NDArray[np.int64], random: np.random.Generator) -> float | None:
    """The share of mated probes that are missed; None where nobody enrolled has a photo left to be a probe."""
    people = random.permutation(np.unique(labels))
    enrolled = people[: len(people) // 2]
    photos = [random.permutation(np.flatnonzero(labels == person)) for person in enrolled]
    nearest = np.stack([distances[:, rows[:ENROLLED]].min(axis=1) for rows in photos])  # (subjects, probes)
    strangers = np.sort(nearest[:, np.isin(labels, people[len(people) // 2 :])].min(axis=0))
    threshold = just_below(float(strangers[allowed(0.01, len(strangers))]))
    misses, mated = 0, 0
    for subject, rows in enumerate(photos):
        found = nearest[:, rows[ENROLLED:]]
        own, others = found[subject], np.delete(found, subject, axis=0).min(axis=0, initial=np.inf)
        misses += int(((own > threshold) | (others <= own)).sum())  # a tie for rank one counts against the subject
        mated += len(own)
    return misses / mated if mated else None


def _tar(mated: NDArray[np.float32], non_mated: NDArray[np.float32], rate: float) -> float:
    rank = allowed(rate, len(non_mated))
    threshold = just_below(float(np.partition(non_mated, rank)[rank]))
    return float((mated <= threshold).mean())


def _eer(mated: NDArray[np.float32], non_mated: NDArray[np.float32]) -> float:
    """The rate at which as many mated pairs are beyond a threshold as non-mated pairs are within it."""
    thresholds, others = np.sort(mated), np.sort(non_mated)
    missed = 1 - np.arange(1, len(thresholds) + 1) / len(thresholds)
    false = np.searchsorted(others, thresholds, side="right") / len(others)
    place = int(np.argmin(np.abs(missed - false)))
    return float(missed[place] + false[place]) / 2
