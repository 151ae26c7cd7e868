"""What learns in a training run: network and losses as one module, what of it is frozen, and how fast it moves."""

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.losses import CenterLoss, CosineMarginClassifier, JointLoss, LearnedCenterLoss, LinearClassifier
from model.training.config import ConfigError, LossConfig, TrainingConfig


class Learner(nn.Module):
    """Network and losses as one module, so that all their gradients are averaged over the processes alike."""

    def __init__(self, network: nn.Module, joint: JointLoss, pull: float) -> None:
        super().__init__()
        self.network = network
        self.joint = joint
        self.pull = pull
        self.embed: Callable[[Tensor], Tensor] = network

    def forward(self, crops: Tensor, labels: Tensor, targets: Tensor, step: int) -> tuple[Tensor, ...]:
        """The loss, of it softmax, center loss and pull, and the features, of crops (B, 3, 112, 112), float32."""
        features = self.embed(crops).float()
        joint, softmax, center = self.joint(features, labels, step)
        pull = torch.zeros(())
        if self.pull:
            pull = (1 - (F.normalize(features) * targets).sum(1)).mean()
            joint = joint + self.pull * pull
        return joint, softmax, center, pull.detach(), features.detach()


def freeze(network: nn.Module, config: TrainingConfig) -> None:
    """Take the first convolutions out of training.

    Raises:
        ConfigError: the network is no chain of so many convolutions.
    """
    frozen = config.network.frozen_convolutions
    if not frozen:
        return
    units = getattr(network, "convolutions", None)
    if units is None or frozen > len(units):
        raise ConfigError(f"{type(network).__name__} has no {frozen} convolutions in a row to freeze")
    for unit in units[:frozen]:
        unit.requires_grad_(False)


def set_training(network: nn.Module, config: TrainingConfig) -> None:
    """Put a network in training mode, but in evaluation mode what of it stays: means and variances move of themselves.

    Those are the frozen convolutions, and with ``frozen_statistics`` all batch normalisation.
    """
    network.train()
    if config.network.frozen_convolutions:
        for unit in network.convolutions[: config.network.frozen_convolutions]:  # type: ignore[index]
            unit.eval()
    if config.network.frozen_statistics:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def feature_dimension(network: nn.Module, device: torch.device) -> int:
    """How many features the network gives for a crop."""
    training = network.training
    with torch.inference_mode():
        dimension = int(network.eval()(torch.zeros(1, 3, 112, 112, device=device)).shape[1])
    network.train(training)
    return dimension


def build_losses(config: TrainingConfig, classes: int, dimension: int) -> JointLoss:
    """The joint loss of a config for so many people and features."""
    loss = config.loss
    classifier: nn.Module
    if loss.classifier == "softmax":
        classifier = LinearClassifier(dimension, classes)
    else:
        classifier = CosineMarginClassifier(
            dimension, classes, kind=loss.classifier, scale=loss.scale, margin=loss.margin
        )
    center: CenterLoss | LearnedCenterLoss | None = None
    if loss.center == "paper":
        center = CenterLoss(classes, dimension, alpha=loss.center_rate)
    elif loss.center == "learned":
        center = LearnedCenterLoss(classes, dimension)
    return JointLoss(
        classifier, center, weight=loss.center_weight, warmup_steps=loss.center_warmup, normalised=loss.normalised
    )


def start_at_means(joint: JointLoss, features: Tensor, labels: Tensor, classes: int, config: LossConfig) -> None:
    """Put centers and classifier where the classes' features (N, D) with labels (N,) lie."""
    drawn = F.normalize(features) if config.normalised else features
    if joint.center_loss is not None:
        joint.center_loss.centers.data.copy_(_means(drawn, labels, classes))
    means = _means(features, labels, classes)
    if isinstance(joint.classifier, LinearClassifier):
        # Nearest mean as a linear classifier, flattened so that the first gradients are small but not zero.
        flat = 8 / float(means.square().sum(1).mean())
        joint.classifier.weight.data.copy_(flat * means)
        joint.classifier.bias.data.copy_(-0.5 * flat * means.square().sum(1))
    else:
        cast(CosineMarginClassifier, joint.classifier).weight.data.copy_(means)


def _means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return torch.zeros(classes, features.shape[1]).index_add_(0, labels, features) / counts[:, None]


def build_optimizer(
    network: nn.Module, joint: JointLoss, config: TrainingConfig
) -> tuple[torch.optim.Optimizer, tuple[float, ...]]:
    """The optimizer of network and classifier, and the learning rates of its groups; centers have their own."""
    options = config.optimizer
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        {"params": list(joint.classifier.parameters()), "weight_decay": options.weight_decay},
    ]
    rates = (options.rate, options.rate, options.classifier_rate)
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    if options.kind == "adamw":
        return torch.optim.AdamW(groups), rates
    return torch.optim.SGD(groups, lr=options.rate, momentum=0.9), rates


def rate_share(step: int, config: TrainingConfig) -> float:
    """The share of the learning rate at a step, counted from 0: a linear rise, then a cosine down to the last step."""
    options, steps = config.optimizer, config.run.steps
    if step < options.warmup:
        return (step + 1) / options.warmup
    progress = (step - options.warmup) / max(1, steps - options.warmup - 1)
    return options.final_rate + (1 - options.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move an average of the weights towards a network's: decay · average + (1 − decay) · network."""
    for slow, fast in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)
