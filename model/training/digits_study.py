"""The study on digits: what is trained, in how many processes, and what is measured of it."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.training.digits import Digits, Setting, Trained, train_digits

WEIGHTS = (0.001, 0.01, 0.1, 1.0)
"""λ of the plane's rows, for both forms; 0 is added for learned centers."""
SHOWN_WEIGHT = 0.01
"""λ of the learned centers whose training is drawn beside softmax alone."""
SEEN = 8
"""The open-set rows learn the digits below this one; pairs of the others are verified."""
FRAMES = 48


@dataclass(frozen=True, slots=True)
class Extent:
    """How much to train: epochs of the plane's rows and of the open-set rows, and seeds of the latter."""

    seed: int = 0
    epochs: int = 10
    open_epochs: int = 4
    open_seeds: int = 3


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one training, on the test digits.

    ``own_mean`` is the mean distance of a digit to the mean of its class, ``between`` the mean distance between the
    means of two classes, both Euclidean on raw features and over the learned classes. ``error_raw`` and
    ``error_normalised`` are equal error rates over all pairs of the digits that were not learned, by Euclidean distance
    on raw and on L2-normalised features; None where every digit was learned.
    """

    setting: Setting
    accuracy: float
    own_mean: float
    between: float
    error_raw: float | None
    error_normalised: float | None

    @property
    def ratio(self) -> float:
        """How many times farther apart the classes are than their digits from their means."""
        return self.between / self.own_mean


def plane_settings(extent: Extent) -> tuple[Setting, ...]:
    """Return the rows with two features and all ten digits: softmax alone, then each form by rising λ."""
    losses = [("softmax", 0.0), ("learned", 0.0)]
    losses += [(form, weight) for form in ("learned", "paper") for weight in WEIGHTS]
    return tuple(Setting(form, weight, 2, 10, extent.seed, extent.epochs) for form, weight in losses)  # type: ignore[arg-type]


def open_settings(extent: Extent) -> tuple[Setting, ...]:
    """Return the rows that learn some digits and are tested on the others, each with every seed."""
    plane = (("softmax", 0.0), ("learned", 0.1))
    wide = (("softmax", 0.0), ("learned", 0.01), ("learned", 0.1), ("paper", 1.0))
    losses = [(2, *loss) for loss in plane] + [(32, *loss) for loss in wide]
    seeds = range(extent.seed, extent.seed + extent.open_seeds)
    return tuple(
        Setting(form, weight, dimension, SEEN, seed, extent.open_epochs)  # type: ignore[arg-type]
        for dimension, form, weight in losses
        for seed in seeds
    )


def is_shown(setting: Setting) -> bool:
    """Whether the training itself is drawn, not only what came of it."""
    in_plane = setting.dimension == 2 and setting.classes == 10
    return in_plane and (setting.form, setting.weight) in (("softmax", 0.0), ("learned", SHOWN_WEIGHT))


def frame_steps(steps: int) -> tuple[int, ...]:
    """Return the steps to draw, 0 and last one included, closer to each other early, when most moves."""
    return tuple(int(step) for step in np.unique(np.geomspace(1, steps + 1, FRAMES).round().astype(int) - 1))


def measure(trained: Trained, labels: NDArray[np.int64]) -> Row:
    """Measure a training on the test digits with these labels (N,)."""
    setting = trained.setting
    features = torch.from_numpy(trained.features).double()
    targets = torch.from_numpy(labels)
    means = class_means(trained.features, labels, setting.classes)
    known = targets < setting.classes
    own = (features[known] - torch.from_numpy(means)[targets[known]]).norm(dim=1).mean()
    between = torch.pdist(torch.from_numpy(means)).mean()
    unseen, unseen_targets = features[~known], targets[~known]
    return Row(
        setting,
        trained.accuracy,
        float(own),
        float(between),
        equal_error_rate(unseen, unseen_targets) if len(unseen) else None,
        equal_error_rate(F.normalize(unseen), unseen_targets) if len(unseen) else None,
    )


def class_means(features: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return the mean features (C, D) of each class; all classes must be among the labels."""
    return np.stack([features[labels == each].mean(axis=0, dtype=np.float64) for each in range(classes)])


def equal_error_rate(features: Tensor, labels: Tensor) -> float:
    """Return the equal error rate over all pairs of features (N, D) by Euclidean distance, whatever their length.

    It is the mean of both error rates where they differ least (`error_rates.verify` on normalised ones).
    """
    distances = torch.pdist(features)
    first, second = torch.triu_indices(len(features), len(features), 1)
    same = labels[first] == labels[second]
    mated, non_mated = distances[same].sort().values, distances[~same].sort().values
    thresholds = distances.sort().values
    false_non_match = 1 - torch.searchsorted(mated, thresholds, right=True).double() / len(mated)
    false_match = torch.searchsorted(non_mated, thresholds, right=True).double() / len(non_mated)
    nearest = int((false_match - false_non_match).abs().argmin())
    return float((false_match[nearest] + false_non_match[nearest]) / 2)


def train_all(
    digits: Digits, settings: Sequence[Setting], *, workers: int, report: Callable[[int], None]
) -> tuple[Trained, ...]:
    """Train every setting, each in one thread of one of several processes, so that their number changes no figure.

    Args:
        digits: all of them.
        settings: what to train.
        workers: processes.
        report: called now and then with the number of steps done so far.
    """
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    # The longest first, so that no process works alone at the end.
    order = sorted(settings, key=lambda setting: -setting.steps(digits))
    with ProcessPoolExecutor(workers, context, _start_worker, (digits, done, stop)) as pool:
        futures: dict[Setting, Future[Trained]] = {setting: pool.submit(_train, setting) for setting in order}
        try:
            pending = set(futures.values())
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                report(done.value)
                for future in finished:
                    future.result()
            return tuple(futures[setting].result() for setting in settings)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


class _Worker:
    """What a process of the pool works with, set once when it starts."""

    digits: Digits
    done: "Synchronized[int]"
    stop: Event


def _start_worker(digits: Digits, done: "Synchronized[int]", stop: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's affair, which sets `stop`
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    _Worker.digits, _Worker.done, _Worker.stop = digits, done, stop


def _train(setting: Setting) -> Trained:
    moments = frame_steps(setting.steps(_Worker.digits)) if is_shown(setting) else ()
    return train_digits(_Worker.digits, setting, moments=moments, advance=_count)


def _count() -> None:
    if _Worker.stop.is_set():
        raise RuntimeError("stopped")
    with _Worker.done.get_lock():
        _Worker.done.value += 1
