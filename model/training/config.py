"""What a training run is told, read from TOML; unknown or impossible values are refused before anything starts."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import FacegalleryError

Share = Annotated[float, Field(ge=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Table):
    """Prepared folders and who of them is kept out of training."""

    folders: Annotated[tuple[Path, ...], Field(min_length=1)]
    validation_people: Annotated[int, Field(ge=0)] = 20  # of each folder: steer the run
    test_people: Annotated[int, Field(ge=0)] = 0  # of each folder: looked at once, at the end
    split_seed: int = 0
    people_per_batch: Annotated[int, Field(ge=1)] = 16
    photos_per_person: Annotated[int, Field(ge=1)] = 4
    workers: Annotated[int, Field(ge=0)] = 1


class NetworkConfig(_Table):
    """The network and what of it stays as it is."""

    base: str = ""  # name or folder of an extractor; empty: from scratch
    architecture: Literal["SFace", "ResidualFace"] = "ResidualFace"  # from scratch only
    frozen_convolutions: Annotated[int, Field(ge=0)] = 0  # the first so many, of a chain of convolutions
    frozen_statistics: bool = False  # batch normalisation keeps the base's means and variances


class LossConfig(_Table):
    """Softmax, center loss and the pull towards the base."""

    classifier: Literal["softmax", "cosface", "arcface"] = "softmax"
    scale: Annotated[float, Field(gt=0)] = 30.0  # of the cosines, cosface and arcface
    margin: Annotated[float, Field(ge=0)] = 0.35  # cosface: a cosine; arcface: radians
    center: Literal["none", "paper", "learned"] = "paper"
    center_weight: Annotated[float, Field(ge=0)] = 0.01  # λ
    center_rate: Annotated[float, Field(gt=0)] = 0.5  # α of the paper's rule, or the learned centers' learning rate
    center_warmup: Annotated[int, Field(ge=0)] = 0  # steps until λ has its full value
    normalised: bool = False  # center loss on features of unit length
    pull: Annotated[float, Field(ge=0)] = 0.0  # weight of the distance to the base's embedding of the clean crop


class AugmentationConfig(_Table):
    """How likely each change of a crop is; see `model.training.augmentation`."""

    flip: Share = 0.5
    affine: Share = 0.3
    colour: Share = 0.3
    degraded: Share = 0.33  # one of low resolution, blur, darkness, JPEG and occlusion


class OptimizerConfig(_Table):
    """AdamW or SGD, with a learning rate that rises linearly and falls along a cosine."""

    kind: Literal["adamw", "sgd"] = "adamw"
    rate: Annotated[float, Field(gt=0)] = 1e-3
    classifier_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Annotated[int, Field(ge=0)] = 0
    final_rate: Share = 0.01  # of the learning rate, at the end
    clip: Annotated[float, Field(ge=0)] = 0.0  # largest norm of the gradient; 0: any
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay a step of the average of the weights; 0: none


class RunConfig(_Table):
    """How long, how fast, how often."""

    steps: Annotated[int, Field(ge=1)]
    seed: int = 0
    precision: Literal["f32", "bf16"] = "f32"
    channels_last: bool = True
    compile: bool = False
    device: str = "cpu"
    checkpoint_every: Annotated[int, Field(ge=1)] = 250
    validate_every: Annotated[int, Field(ge=1)] = 1000
    validation_photos: Annotated[int, Field(ge=4)] = 40  # of each person at most


class TrainingConfig(_Table):
    """All of a training run."""

    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig


class ConfigError(FacegalleryError):
    """A training config cannot be read, or says something impossible."""

    slug = "config"


def read_config(path: Path) -> TrainingConfig:
    """Read a TOML file; relative folders count from the working directory.

    Raises:
        ConfigError: no such file, no TOML, or a value that is unknown or out of range.
    """
    try:
        return TrainingConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        places = [f"{'.'.join(map(str, item['loc']))}: {item['msg'].lower()}" for item in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(places)}") from error
