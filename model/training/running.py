"""Puts a training run together from its config, in one process or in one of several."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from model.card import read_card
from model.network_file import read_network
from model.networks import ARCHITECTURES
from model.training.config import ConfigError, TrainingConfig
from model.training.loop import Training
from model.training.preparation import read_prepared
from model.training.training_set import split_by


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes where torchrun started several; nothing otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        yield
    finally:
        dist.destroy_process_group()


def open_training(
    config: TrainingConfig, output: Path, folder_of: Callable[[str], Path], *, resume: bool = False
) -> Training:
    """Read data and base, and make a run that is ready to go.

    Args:
        config: of the run.
        output: gets what the run writes.
        folder_of: the folder of an extractor's name.
        resume: go on from the checkpoint in ``output``.

    Raises:
        ConfigError: the config does not fit network or data.
        DatasetError: a folder was not prepared.
        ModelFileError: the base is missing or damaged.
    """
    folders = [read_prepared(folder) for folder in config.data.folders]
    split = split_by(config.data, folders)
    torch.manual_seed(config.run.seed)
    identity = ""
    if config.network.base:
        base = folder_of(config.network.base)
        card = read_card(base)
        identity = card.identity
        network = read_network(base / card.file)
        if config.loss.pull and any(folder.extractor != card.identity for folder in folders):
            raise ConfigError(f"pull needs folders prepared with {card.identity}; prepare them again")
    else:
        network = ARCHITECTURES[config.network.architecture]()
    training = Training(network, split, config, output, base=identity)
    if resume and training.resume():
        return training
    if config.network.base:
        training.start_from_class_means()
    return training
