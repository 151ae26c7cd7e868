"""What a training run leaves behind, and whether another config can take it up."""

from pathlib import Path
from typing import Any

import torch

from model.errors import ModelFileError

CHECKPOINT = "checkpoint.pt"


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
