"""The training loop: softmax + center loss on batches of people, resumable, on one process or many."""

import json
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from model.losses import LearnedCenterLoss, center_optimizer
from model.replaced_file import replaced_file
from model.torch_device import open_device
from model.training.augmentation import Augmentation
from model.training.checkpoint import CHECKPOINT, check_resumable, read_checkpoint
from model.training.config import ConfigError, TrainingConfig
from model.training.interruption import interruptible, without_interruption
from model.training.learner import (
    Learner,
    build_losses,
    build_optimizer,
    feature_dimension,
    follow,
    freeze,
    rate_share,
    set_training,
    start_at_means,
)
from model.training.steering import (
    ENROLLED,
    Steering,
    can_steer,
    crop_features,
    embed_crops,
    read_crops,
    some_photos,
    steer_by,
)
from model.training.training_set import AugmentedCrops, IdentitySplit, PersonBatches

LOG = "log.jsonl"
LEAST_STEERING = 4
"""People that steering needs at least."""

_STARTING_PHOTOS = 8


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did: the losses, and what share of its time it waited for data."""

    number: int
    loss: float
    softmax: float
    center: float
    pull: float
    images_per_second: float
    waited: float


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told of what happens in a run."""

    stepped: Callable[[Step], None] = lambda _: None
    validated: Callable[[int, Steering], None] = lambda *_: None


class Training:
    """A run: network, losses, optimizers and the step it is at.

    Args:
        network: takes crops (N, 3, 112, 112), float32, 0 to 255.
        split: who is trained on and who steers.
        config: of the run.
        output: gets checkpoints and the log.
        base: identity of the extractor that the network is of; empty: from scratch.

    Raises:
        ConfigError: the config asks for what the network or the data do not have.
    """

    def __init__(
        self, network: nn.Module, split: IdentitySplit, config: TrainingConfig, output: Path, *, base: str = ""
    ) -> None:
        self.config = config
        self.split = split
        self.output = output
        self.base = base
        self.step = 0
        self._rank, self._processes = _place()
        self._stopping = False
        torch.manual_seed(config.run.seed)
        device = open_device(config.run.device)
        memory_format = torch.channels_last if config.run.channels_last else torch.contiguous_format
        self.network: nn.Module = network.to(device).to(memory_format=memory_format)
        freeze(self.network, config)
        self.joint = build_losses(config, len(split.train.people), feature_dimension(self.network, device)).to(device)
        learner = Learner(self.network, self.joint, config.loss.pull)
        if config.loss.pull and split.train.targets.shape[1] != self.joint_dimension:
            raise ConfigError("pull needs prepared folders whose embeddings have the network's dimension")
        if config.run.compile:
            learner.embed = torch.compile(self.network)
        self._learner: nn.Module = learner
        if self._processes > 1:
            # Buffers: statistics of batch normalisation may differ in the last digits, the paper's centers never do.
            self._learner = DistributedDataParallel(learner, broadcast_buffers=False)
        self._optimizer, self._rates = build_optimizer(self.network, self.joint, config)
        center = self.joint.center_loss
        self._centers = (
            center_optimizer(center, rate=config.loss.center_rate) if isinstance(center, LearnedCenterLoss) else None
        )
        self.average = deepcopy(self.network).requires_grad_(False) if config.optimizer.ema else self.network
        enough = len(split.validation.people) >= LEAST_STEERING and can_steer(split.validation.labels)
        self._steering_photos = some_photos(split.validation, config.run.validation_photos) if enough else None

    @property
    def steers(self) -> bool:
        """Whether the people kept out for it are enough to steer by; without them a run has no figures on the way."""
        return self._steering_photos is not None

    @property
    def joint_dimension(self) -> int:
        """Of the features."""
        return int(cast(Tensor, self.joint.classifier.weight).shape[1])

    def start_from_class_means(self) -> None:
        """Put the centers, and a softmax classifier, where the people's features are before the first step."""
        rows = np.concatenate([person[:_STARTING_PHOTOS] for person in self.split.train.rows_by_person()])
        few = self.split.train.only(rows)
        features = torch.from_numpy(crop_features(self.network, read_crops(few), self.config.run.device))
        start_at_means(self.joint, features, torch.from_numpy(few.labels), len(few.people), self.config.loss)

    def resume(self) -> bool:
        """Take up the checkpoint of the output folder; False where there is none.

        Raises:
            ConfigError: it is of a run that this config cannot go on with.
            ModelFileError: it is damaged, or none.
        """
        path = self.output / CHECKPOINT
        if not path.is_file():
            return False
        state = read_checkpoint(path)
        architecture, people = type(self.network).__name__, self.split.train.people
        check_resumable(path, state, self.config, architecture=architecture, base=self.base, people=people)
        decays = [group["weight_decay"] for group in self._optimizer.param_groups]
        try:
            self.network.load_state_dict(state["network"])
            self.joint.load_state_dict(state["joint"])
            self._optimizer.load_state_dict(state["optimizer"])
            if self.config.optimizer.ema:
                self.average.load_state_dict(state["average"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ConfigError(f"{path} does not fit this config: {str(error).splitlines()[0]}") from error
        for group, decay in zip(self._optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # the config's, as the rates are, not the checkpoint's
        self.step = int(state["step"])
        return True

    def save(self) -> None:
        """Write the checkpoint beside the earlier one and put it in its place; only the first process does."""
        if self._rank:
            return
        self.output.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "people": list(self.split.train.people),
            "network": self.network.state_dict(),
            "joint": self.joint.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self.average.state_dict(),
            "architecture": type(self.network).__name__,
            "base": self.base,
            "config": self.config.model_dump(mode="json"),
        }
        with replaced_file(self.output / CHECKPOINT) as draft:
            torch.save(state, draft)

    def run(self, watch: Watch = Watch()) -> bool:
        """Train to the last step; False if it was interrupted, with a checkpoint of where it got to."""
        run = self.config.run
        with interruptible(self._stop):
            began = time.perf_counter()
            for crops, labels, targets in self._batches():
                waited = time.perf_counter() - began
                losses = self._train(crops.to(run.device), labels.to(run.device), targets.to(run.device))
                seconds = time.perf_counter() - began
                step = Step(self.step, *losses, len(crops) * self._processes / seconds, waited / seconds)
                self._log({"step": step.number, **asdict(step)})
                watch.stepped(step)
                last = self.step == run.steps
                saved = last or self.step % run.checkpoint_every == 0
                if saved:  # before anything is measured: what was trained is there whatever becomes of the figures
                    self.save()
                if self.steers and (last or self.step % run.validate_every == 0):
                    self._validate(watch)
                if self._stop_everywhere():  # asked once: what comes after it waits for the next step
                    if not saved:
                        self.save()
                    break
                began = time.perf_counter()
        return self.step == run.steps

    def validate(self) -> Steering:
        """Measure the (averaged) network on the people who steer."""
        if self._steering_photos is None:
            raise ConfigError(
                f"steering needs at least {LEAST_STEERING} validation people, one with more than {ENROLLED} photos"
            )
        return steer_by(self._steering_photos, lambda crops: embed_crops(self.average, crops, self.config.run.device))

    def _validate(self, watch: Watch) -> None:
        if self._rank == 0:
            steering = self.validate()
            self._log({"step": self.step, "steering": asdict(steering)})
            watch.validated(self.step, steering)
        if self._processes > 1:
            dist.barrier()

    def _train(self, crops: Tensor, labels: Tensor, targets: Tensor) -> tuple[float, float, float, float]:
        config = self.config
        torch.manual_seed(hash((config.run.seed, self.step, self._rank)) % 2**62)  # dropout
        scale = rate_share(self.step, config)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * scale
        set_training(self.network, config)
        self._optimizer.zero_grad(set_to_none=True)
        if self._centers is not None:
            self._centers.zero_grad(set_to_none=True)
        pixels = crops.float()
        if config.run.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(crops.device.type, torch.bfloat16, enabled=config.run.precision == "bf16"):
            loss, softmax, center, pull, features = self._learner(pixels, labels, targets, self.step)
        loss.backward()
        if config.optimizer.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), config.optimizer.clip)
        self._optimizer.step()
        if self._centers is not None:
            self._centers.step()
        self.joint.update(features, labels)
        self.step += 1
        if config.optimizer.ema:
            decay = min(config.optimizer.ema, self.step / (self.step + 10))
            follow(self.average, self.network, decay)
        return float(loss.detach()), float(softmax), float(center), float(pull)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        data, run = self.config.data, self.config.run
        draws = PersonBatches(
            self.split.train,
            people=data.people_per_batch,
            photos=data.photos_per_person,
            steps=range(self.step, run.steps),
            seed=run.seed,
            rank=self._rank,
            processes=self._processes,
        )
        loader: DataLoader[Any] = DataLoader(
            AugmentedCrops(self.split.train, Augmentation(self.config.augmentation)),
            batch_sampler=cast(Any, draws),
            num_workers=data.workers,
            multiprocessing_context="spawn" if data.workers else None,
            worker_init_fn=_single_threaded if data.workers else None,
        )
        with without_interruption():  # the workers start here
            return iter(loader)

    def _log(self, entry: dict[str, Any]) -> None:
        if self._rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            with (self.output / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _stop(self) -> None:
        self._stopping = True

    def _stop_everywhere(self) -> bool:
        if self._processes == 1:
            return self._stopping
        asked = torch.tensor(int(self._stopping), device=self.config.run.device)
        dist.all_reduce(asked)
        return bool(asked)


def _place() -> tuple[int, int]:
    started = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if started else (0, 1)


def _single_threaded(_number: int) -> None:
    """A worker decodes and augments on one thread."""
    torch.set_num_threads(1)
