"""One training of the study on digits: a light network, softmax alone or with center loss, features that can be seen.

The experiment of Wen et al. (ECCV 2016, figures 2 and 3): with two features before the classifier, every image is a
point in the plane.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.losses import CenterLoss, JointLoss, LearnedCenterLoss, LinearClassifier, center_optimizer

Form = Literal["softmax", "learned", "paper"]

BATCH = 256
RATE = 1e-2
CENTER_RATE = 0.5
"""Step of the learned centers, and the paper's α."""
DRAWN = 2_000
"""So many test digits are drawn at a moment."""

_TEST_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Digits:
    """MNIST: images (N, 1, 28, 28), 0 to 255, and labels (N,), 0 to 9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained: the loss, λ, the number of features, and the digits 0 to ``classes`` − 1 (10 or fewer).

    λ weighs each form as its paper writes it: *learned* beside the mean cross-entropy of the batch; *paper* beside
    its sum, so that beside the mean it is divided by the size of the batch.
    """

    form: Form
    weight: float
    dimension: int
    classes: int
    seed: int
    epochs: int

    def steps(self, digits: Digits) -> int:
        """How many batches the training takes; a last one that is not full is left out."""
        return self.epochs * max(1, int((digits.labels < self.classes).sum()) // BATCH)


@dataclass(frozen=True, slots=True)
class Moment:
    """The first ``DRAWN`` test digits after some steps: features (M, D), and centers (C, D) if there are any."""

    step: int
    features: NDArray[np.float32]
    centers: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gave: features (N, D) of all test digits, also of those that were not learned.

    ``accuracy`` is that of the classifier on the test digits of the learned classes, 0 to 1.
    """

    setting: Setting
    features: NDArray[np.float32]
    accuracy: float
    moments: tuple[Moment, ...]


class DigitNetwork(nn.Module):
    """Three strided 3×3 convolutions and a hidden layer, with BatchNorm and PReLU; (B, 1, 28, 28) to (B, D)."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.PReLU(after)]
        hidden = [nn.Linear(64 * 4 * 4, 128, bias=False), nn.BatchNorm1d(128), nn.PReLU(128)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(128, dimension))

    def forward(self, images: Tensor) -> Tensor:
        """Features of images of zero mean and unit deviation."""
        features: Tensor = self.layers(images)
        return features


def train_digits(
    digits: Digits, setting: Setting, *, moments: Sequence[int] = (), advance: Callable[[], None] = lambda: None
) -> Trained:
    """Train one setting; the same setting gives the same numbers on the same machine with the same number of threads.

    Args:
        digits: all of them; those that the setting does not learn are only tested.
        setting: what to train.
        moments: after which steps to keep the features, 0 is before the first one.
        advance: called after each step.
    """
    chosen = digits.labels < setting.classes
    images, labels = torch.from_numpy(digits.images[chosen]), torch.from_numpy(digits.labels[chosen])
    steps = setting.steps(digits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        network = DigitNetwork(setting.dimension).to(memory_format=torch.channels_last)
        classifier = LinearClassifier(setting.dimension, setting.classes)
        # Last, so that the network starts from the same numbers whatever the loss is.
        center_loss = _center_loss(setting)
    joint_loss = JointLoss(classifier, center_loss, weight=_weight_beside_the_mean(setting))
    parameters = [*network.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    optimizers: list[torch.optim.Optimizer] = [optimizer]
    if isinstance(center_loss, LearnedCenterLoss):
        optimizers.append(center_optimizer(center_loss, rate=CENTER_RATE))

    wanted, kept = frozenset(moments), []
    if 0 in wanted:
        kept.append(_moment(0, network, center_loss, digits))
    for step, batch in enumerate(_batches(len(labels), setting)):
        network.train()
        features = network(_standard(images[batch]))
        loss, _, _ = joint_loss(features, labels[batch], step)
        for each in optimizers:
            each.zero_grad()
        loss.backward()
        for each in optimizers:
            each.step()
        schedule.step()
        joint_loss.update(features, labels[batch])
        if step + 1 in wanted:
            kept.append(_moment(step + 1, network, center_loss, digits))
        advance()
    features = _embed(network, digits.test_images)
    with torch.no_grad():
        predicted = classifier(torch.from_numpy(features)).argmax(1).numpy()
    known = digits.test_labels < setting.classes
    accuracy = float((predicted == digits.test_labels)[known].mean())
    return Trained(setting, features, accuracy, tuple(kept))


def _center_loss(setting: Setting) -> CenterLoss | LearnedCenterLoss | None:
    if setting.form == "learned":
        return LearnedCenterLoss(setting.classes, setting.dimension)
    if setting.form == "paper":
        return CenterLoss(setting.classes, setting.dimension, alpha=CENTER_RATE)
    return None


def _weight_beside_the_mean(setting: Setting) -> float:
    return setting.weight / BATCH if setting.form == "paper" else setting.weight


def _batches(count: int, setting: Setting) -> Iterator[Tensor]:
    """Yield the indices of each batch, shuffled anew every epoch."""
    generator = torch.Generator().manual_seed(setting.seed)
    for _ in range(setting.epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, max(1, count - BATCH + 1), BATCH):
            yield order[start : start + BATCH]


def _standard(images: Tensor) -> Tensor:
    """Zero mean and unit deviation, those of MNIST's training set."""
    return (images.float() / 255 - 0.1307) / 0.3081


def _embed(network: DigitNetwork, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    network.eval()
    with torch.no_grad():
        parts = [network(_standard(part)) for part in torch.split(torch.from_numpy(images), _TEST_BATCH)]
    features: NDArray[np.float32] = torch.cat(parts).numpy()
    return features


def _moment(
    step: int, network: DigitNetwork, center_loss: CenterLoss | LearnedCenterLoss | None, digits: Digits
) -> Moment:
    centers = None if center_loss is None else center_loss.centers.detach().numpy().copy()
    return Moment(step, _embed(network, digits.test_images[:DRAWN]), centers)
