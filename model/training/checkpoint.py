"""What a training run leaves behind, and whether another config can take it up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.errors import ModelFileError
from model.training.config import ConfigError, TrainingConfig

CHECKPOINT = "checkpoint.pt"

_HELD = (("network", "frozen_convolutions"), ("loss", "classifier"), ("loss", "center"), ("optimizer", "kind"))
"""The settings that decide what a checkpoint holds; all others may change in the middle of a run."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what a training run saved, onto the processor: there AdamW's counters stay.

    Raises:
        ModelFileError: no checkpoint of this project, or damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not state.keys() >= {"average", "architecture", "config", "step"}:
            raise KeyError("average")
    except Exception as error:  # torch, pickle and zip each have their own
        raise ModelFileError(f"{path} is not a checkpoint of `facemodel train` ({type(error).__name__})") from error
    return state


def check_resumable(
    path: Path, state: dict[str, Any], config: TrainingConfig, *, architecture: str, base: str, people: Sequence[str]
) -> None:
    """Check that a run can be taken up.

    Args:
        path: of the checkpoint, for the sentence.
        state: what was read of it.
        config: of the run that takes it up.
        architecture: of that run's network.
        base: identity of the extractor that the network is of; empty: from scratch.
        people: who is trained on.

    Raises:
        ConfigError: the checkpoint is of another network, other losses, another optimizer or other people, or it is
            already beyond the last step.
    """
    held = config.model_dump(mode="json")
    pairs = [("the network", state["architecture"], architecture), ("the base", state.get("base", base), base)]
    for table, name in _HELD:
        now = held[table][name]
        pairs.append((f"{table}.{name}", state["config"].get(table, {}).get(name, now), now))
    for name, then, now in pairs:
        if then != now:
            raise ConfigError(f"{path} was trained with {name} {then!r}, not {now!r}; choose another output folder")
    if state.get("people") != list(people):
        raise ConfigError(f"{path} was trained on other people; choose another output folder")
    if state["step"] > config.run.steps:
        raise ConfigError(f"{path} has {state['step']} steps already, which is more than run.steps, {config.run.steps}")
