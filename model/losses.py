"""Center loss in two forms, cosine-margin softmax, and the joint loss of both.

Wen, Zhang, Li, Qiao: A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016. Softmax makes
features separable; center loss draws the features of a class together, so that people never seen in training can be
told apart by distance.

All sums run in float32 or wider, also under autocast. Counts of a class are those of the whole batch, over all
processes.
"""

import math
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def class_counts(labels: Tensor, classes: int) -> Tensor:
    """How often each class is in the batch of all processes, shape (classes,), int64."""
    counts = torch.bincount(labels, minlength=classes)
    if _processes() > 1:
        dist.all_reduce(counts)
    return counts


class LearnedCenterLoss(nn.Module):
    """Centers as a parameter: L = Σᵢ ‖xᵢ − c_yᵢ‖ / n_yᵢ, the sum over the present classes of the mean distance.

    The gradient of the centers is not scaled by what the loss is multiplied with (see `JointLoss`). Give `centers` to
    an optimizer without momentum and weight decay (`center_optimizer`), or absent classes would move.

    Args:
        classes: C.
        dimension: D of the features.
    """

    def __init__(self, classes: int, dimension: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(classes, dimension) / math.sqrt(dimension))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Loss of features (B, D) with labels (B,), int64; a scalar, float32 or wider.

        In several processes each returns its own share times their number, so that averaged gradients are those of one
        process with the whole batch.
        """
        with torch.autocast(features.device.type, enabled=False):
            distances = _norm(_wide(features) - self.centers[labels])
            counts = class_counts(labels, len(self.centers))[labels]
            return (distances / counts).sum() * _processes()

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Nothing: the optimizer moves the centers."""


class CenterLoss(nn.Module):
    """The paper's form: L = ½ Σᵢ ‖xᵢ − c_yᵢ‖², with centers moved by its own rule.

    `update` moves them: Δc_j = Σᵢ δ(yᵢ = j)(c_j − xᵢ) / (1 + n_j), c_j ← c_j − α·Δc_j. No gradient reaches them, so
    neither λ nor an optimizer's momentum nor weight decay does, and a class that is absent stays where it is.

    Args:
        classes: C.
        dimension: D of the features.
        alpha: rate of the centers, 0 to 1.
    """

    centers: Tensor

    def __init__(self, classes: int, dimension: int, *, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("centers", torch.zeros(classes, dimension))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Loss of features (B, D) with labels (B,), int64; a scalar, float32 or wider (see `LearnedCenterLoss`)."""
        with torch.autocast(features.device.type, enabled=False):
            return 0.5 * (_wide(features) - self.centers[labels]).square().sum() * _processes()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Move the centers of the classes in the batch of all processes."""
        with torch.autocast(features.device.type, enabled=False):
            difference = self.centers[labels] - features.to(self.centers.dtype)
            total = torch.zeros_like(self.centers).index_add_(0, labels, difference)
            if _processes() > 1:
                dist.all_reduce(total)
            counts = class_counts(labels, len(self.centers))
            self.centers -= self.alpha * total / (1 + counts)[:, None]


class CosineMarginClassifier(nn.Module):
    """Scores for a softmax over cosines, harder for the own class by a margin.

    `cosface` (Wang et al., CVPR 2018): s·(cos θ − m). `arcface` (Deng et al., CVPR 2019): s·cos(θ + m), continued
    where θ + m passes π so that it keeps falling.

    Args:
        dimension: D of the features.
        classes: C.
        kind: `cosface` or `arcface`.
        scale: s.
        margin: m, as a cosine for cosface, in radians for arcface.
    """

    def __init__(
        self,
        dimension: int,
        classes: int,
        *,
        kind: Literal["cosface", "arcface"] = "cosface",
        scale: float = 30.0,
        margin: float = 0.35,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dimension) / math.sqrt(dimension))
        self.kind = kind
        self.scale = scale
        self.margin = margin

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scores (B, C), float32 or wider, for a cross-entropy with the labels (B,)."""
        with torch.autocast(features.device.type, enabled=False):
            cosines = F.linear(F.normalize(_wide(features)), F.normalize(self.weight))
            own = cosines.gather(1, labels[:, None])
            return self.scale * cosines.scatter(1, labels[:, None], self._harder(own))

    def _harder(self, cosine: Tensor) -> Tensor:
        if self.kind == "cosface":
            return cosine - self.margin
        # Away from ±1, where the derivative of the arc cosine has no bound.
        angle = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
        falling = cosine - self.margin * math.sin(self.margin)
        return torch.where(angle + self.margin < math.pi, torch.cos(angle + self.margin), falling)


class LinearClassifier(nn.Linear):
    """Scores of plain softmax; takes labels so that it can stand in for `CosineMarginClassifier`."""

    def forward(self, features: Tensor, _labels: Tensor | None = None) -> Tensor:
        """Scores (B, C), float32 or wider, of features (B, D)."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(_wide(features))


class JointLoss(nn.Module):
    """L = L_softmax + λ·L_center, with λ rising linearly from 0 over the first steps.

    λ scales the pull on the features alone: learned centers follow at their own rate whatever λ is, also during the
    warm-up.

    Args:
        classifier: features and labels to scores (B, C).
        center_loss: either form, or None for softmax alone.
        weight: λ.
        warmup_steps: steps until λ has its full value.
        normalised: put center loss on L2-normalised features.
    """

    def __init__(
        self,
        classifier: nn.Module,
        center_loss: CenterLoss | LearnedCenterLoss | None,
        *,
        weight: float,
        warmup_steps: int = 0,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.center_loss = center_loss
        self.weight = weight
        self.warmup_steps = warmup_steps
        self.normalised = normalised

    def weight_at(self, step: int) -> float:
        """λ at a step, counted from 0."""
        return self.weight * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.weight

    def forward(self, features: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The joint loss, and of it softmax's part and center loss before λ (without gradient)."""
        scores = self.classifier(features, labels)
        softmax = F.cross_entropy(_wide(scores), labels)
        if self.center_loss is None:
            return softmax, softmax.detach(), torch.zeros_like(softmax)
        drawn = self._drawn(features)
        pull = _on_features(self.center_loss, drawn, labels)
        follow = self.center_loss(drawn.detach(), labels)
        # `follow` adds nothing to the value; its gradient moves learned centers, unscaled.
        joint = softmax + self.weight_at(step) * pull + (follow - follow.detach())
        return joint, softmax.detach(), pull.detach()

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Move the paper's centers after the optimizer's step."""
        if self.center_loss is not None:
            self.center_loss.update(self._drawn(features.detach()), labels)

    def _drawn(self, features: Tensor) -> Tensor:
        return F.normalize(_wide(features)) if self.normalised else features


def center_optimizer(center_loss: LearnedCenterLoss, *, rate: float) -> torch.optim.Optimizer:
    """Plain gradient steps for learned centers: no momentum, no weight decay, so that absent classes stay."""
    return torch.optim.SGD([center_loss.centers], lr=rate, momentum=0.0, weight_decay=0.0)


def _on_features(center_loss: CenterLoss | LearnedCenterLoss, features: Tensor, labels: Tensor) -> Tensor:
    """The loss with a gradient for the features only."""
    frozen = {"centers": center_loss.centers.detach()}
    result: Tensor = torch.func.functional_call(center_loss, frozen, (features, labels))
    return result


def _wide(values: Tensor) -> Tensor:
    """Float32, or wider if it is."""
    return values if values.dtype == torch.float64 else values.float()


def _norm(rows: Tensor) -> Tensor:
    """Length of each row, with gradient 0 where it is 0, whose derivative is 0/0."""
    squares = rows.square().sum(1)
    present = squares > 0
    return torch.where(present, torch.where(present, squares, 1).sqrt(), 0)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
