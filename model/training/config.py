"""What a training run is told, read from TOML; unknown or impossible values are refused before anything starts."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import FacegalleryError


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Table):
    """Prepared folders and who of them is kept out of training."""

    folders: Annotated[tuple[Path, ...], Field(min_length=1, description="prepared folders")]
    validation_people: Annotated[int, Field(ge=0, description="people of each folder kept out to steer by")] = 20
    test_people: Annotated[int, Field(ge=0, description="people of each folder kept out for the end")] = 0
    split_seed: Annotated[int, Field(description="draws who is kept out")] = 0
    people_per_batch: Annotated[int, Field(ge=1, description="P of a batch, over all processes")] = 16
    photos_per_person: Annotated[int, Field(ge=1, description="K of a batch")] = 4
    workers: Annotated[int, Field(ge=0, description="processes that decode and augment")] = 1


class NetworkConfig(_Table):
    """The network and what of it stays as it is."""

    base: Annotated[str, Field(description="name or folder of the extractor to start from; empty: from scratch")] = ""
    architecture: Annotated[
        Literal["SFace", "ResidualFace"], Field(description="from scratch only: `ResidualFace`, `SFace`")
    ] = "ResidualFace"
    frozen_convolutions: Annotated[int, Field(ge=0, description="the first so many stay as they are")] = 0
    frozen_statistics: Annotated[bool, Field(description="batch normalisation keeps its means and variances")] = False


class LossConfig(_Table):
    """Softmax, center loss and the pull towards the base."""

    classifier: Annotated[
        Literal["softmax", "cosface", "arcface"],
        Field(description="`softmax`; over cosines with a margin `cosface`, `arcface`"),
    ] = "softmax"
    scale: Annotated[float, Field(gt=0, description="of the cosines, cosface and arcface")] = 30.0
    margin: Annotated[float, Field(ge=0, description="a cosine for cosface, radians for arcface")] = 0.35
    center: Annotated[
        Literal["none", "paper", "learned"], Field(description="form of center loss: `paper`, `learned`, `none`")
    ] = "paper"
    center_weight: Annotated[float, Field(ge=0, description="λ")] = 0.01
    center_rate: Annotated[
        float, Field(gt=0, description="α of the paper's rule, or the learned centers' learning rate")
    ] = 0.5
    center_warmup: Annotated[int, Field(ge=0, description="steps until λ has its full value")] = 0
    normalised: Annotated[bool, Field(description="center loss on features of unit length")] = False
    pull: Annotated[
        float, Field(ge=0, description="weight of 1 − cosine with the base's embedding of the clean crop")
    ] = 0.0


class AugmentationConfig(_Table):
    """How likely each change of a crop is; see `model.training.augmentation`."""

    flip: Annotated[float, Field(ge=0, le=1, description="probability of a mirrored crop")] = 0.5
    affine: Annotated[float, Field(ge=0, le=1, description="of a small turn, shift and scale")] = 0.3
    colour: Annotated[float, Field(ge=0, le=1, description="of other brightness, contrast, colour, or grey")] = 0.3
    degraded: Annotated[
        float, Field(ge=0, le=1, description="of one of low resolution, blur, darkness, JPEG, a covered part")
    ] = 0.33


class OptimizerConfig(_Table):
    """AdamW or SGD, with a learning rate that rises linearly and falls along a cosine."""

    kind: Annotated[Literal["adamw", "sgd"], Field(description="`adamw`, `sgd`")] = "adamw"
    rate: Annotated[float, Field(gt=0, description="learning rate of the network")] = 1e-3
    classifier_rate: Annotated[float, Field(gt=0, description="learning rate of the classifier")] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, description="of kernels and matrices")] = 1e-4
    warmup: Annotated[int, Field(ge=0, description="steps in which the rate rises")] = 0
    final_rate: Annotated[
        float, Field(ge=0, le=1, description="share of the rate at the last step, reached along a cosine")
    ] = 0.01
    clip: Annotated[float, Field(ge=0, description="largest norm of the gradient; 0: any")] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1, description="decay a step of the average of the weights; 0: none")] = 0.0


class RunConfig(_Table):
    """How long, how fast, how often."""

    steps: Annotated[int, Field(ge=1, description="batches")]
    seed: Annotated[int, Field(ge=0, description="of everything random")] = 0
    precision: Annotated[
        Literal["f32", "bf16"], Field(description="of the arithmetic, under autocast: `f32`, `bf16`")
    ] = "f32"
    channels_last: Annotated[bool, Field(description="memory order of the features")] = True
    compile: Annotated[bool, Field(description="torch.compile")] = False
    device: Annotated[str, Field(description="torch's name")] = "cpu"
    checkpoint_every: Annotated[int, Field(ge=1, description="steps")] = 250
    validate_every: Annotated[int, Field(ge=1, description="steps")] = 1000
    validation_photos: Annotated[int, Field(ge=4, description="of each person at most, when steering")] = 40


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
