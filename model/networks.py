"""The networks as torch modules: YuNet, which finds faces, and SFace, which tells them apart."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Shape = tuple[int | str, ...]
"""Of a tensor; a side with a name is dynamic."""


class _Pointwise(nn.Sequential):
    """A 1×1 convolution, a depthwise 3×3 convolution, and a ReLU if wanted: YuNet's only building block."""

    def __init__(self, inputs: int, outputs: int, *, activation: bool = True) -> None:
        layers: list[tuple[str, nn.Module]] = [
            ("pointwise", nn.Conv2d(inputs, outputs, 1)),
            ("depthwise", nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs)),
        ]
        super().__init__(OrderedDict([*layers, ("activation", nn.ReLU())] if activation else layers))


class YuNet(nn.Module):
    """The face detector YuNet (Wu, Peng, Yu; Machine Intelligence Research 2023).

    Input: shape (N, 3, height, width), float32, BGR, 0 to 255; both sides multiples of 32.
    Output: twelve tensors (N, cells, channels): class scores, objectness, boxes and landmarks, each at strides 8, 16
    and 32, cells row by row; 1, 1, 4 and 10 channels.
    """

    input_shape = ("batch", 3, "height", "width")
    output_shapes: Mapping[str, Shape] = {
        f"{kind}_{stride}": ("batch", f"cells_{stride}", channels)
        for kind, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10))
        for stride in (8, 16, 32)
    }

    def __init__(self) -> None:
        super().__init__()
        self.stage2 = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(3, 16, 3, stride=2, padding=1), activation=nn.ReLU(), block=_Pointwise(16, 16))
        )
        self.stage4 = nn.Sequential(_Pointwise(16, 16), _Pointwise(16, 32), _Pointwise(32, 32), _Pointwise(32, 64))
        self.stage8 = nn.Sequential(_Pointwise(64, 64), _Pointwise(64, 64))
        self.stage16 = nn.Sequential(_Pointwise(64, 64), _Pointwise(64, 64))
        self.stage32 = nn.Sequential(_Pointwise(64, 64), _Pointwise(64, 64))
        self.pool = nn.MaxPool2d(2)
        self.lateral32 = _Pointwise(64, 64)
        self.lateral16 = _Pointwise(64, 64)
        self.lateral8 = _Pointwise(64, 64)
        self.upsample = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.cls = self._heads(1)
        self.bbox = self._heads(4)
        self.obj = self._heads(1)
        self.kps = self._heads(10)

    @staticmethod
    def _heads(channels: int) -> nn.ModuleList:
        return nn.ModuleList([_Pointwise(64, channels, activation=False) for _ in range(3)])

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Scores, boxes and landmarks of every cell."""
        deep8 = self.stage8(self.pool(self.stage4(self.pool(self.stage2(pixels)))))
        deep16 = self.stage16(self.pool(deep8))
        level32 = self.lateral32(self.stage32(self.pool(deep16)))
        level16 = self.lateral16(deep16 + self.upsample(level32))
        level8 = self.lateral8(deep8 + self.upsample(level16))
        levels = (level8, level16, level32)
        scores = [
            torch.sigmoid(_rows(head(level)))
            for heads in (self.cls, self.obj)
            for head, level in zip(heads, levels, strict=True)
        ]
        places = [
            _rows(head(level)) for heads in (self.bbox, self.kps) for head, level in zip(heads, levels, strict=True)
        ]
        return (*scores, *places)


def _rows(grid: Tensor) -> Tensor:
    return torch.flatten(grid, 2).transpose(1, 2)


class _ConvUnit(nn.Sequential):
    """A convolution without bias, batch normalisation and PReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False),
                norm=nn.BatchNorm2d(outputs, eps=1e-3),
                activation=nn.PReLU(outputs),
            )
        )


class SFace(nn.Module):
    """The extractor of OpenCV Zoo's SFace, a chain of 27 convolutions (Zhong et al., SFace, IEEE TIP 2021).

    Input: shape (N, 3, 112, 112), float32, RGB, 0 to 255, aligned (`model.alignment`); the module itself takes it to
    (x − 127.5) / 128.
    Output: shape (N, dimension), float32, not yet of unit length.

    ``convolutions`` holds the 27 units in order, so that the first of them can be frozen for fine-tuning.
    """

    input_shape = ("batch", 3, 112, 112)
    _channels = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    _halving = (3, 5, 7, 13)

    def __init__(self, dimension: int = 128, dropout: float = 0.4) -> None:
        super().__init__()
        self.output_shapes: Mapping[str, Shape] = {"embedding": ("batch", dimension)}
        units = [_ConvUnit(3, self._channels[0], 3)]
        for number, (inputs, outputs) in enumerate(zip(self._channels, self._channels[1:], strict=False), start=2):
            units.append(_ConvUnit(inputs, inputs, 3, stride=2 if number in self._halving else 1, groups=inputs))
            units.append(_ConvUnit(inputs, outputs, 1))
        self.convolutions = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(self._channels[-1], eps=2e-5)
        self.dropout = nn.Dropout(dropout)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(self._channels[-1] * 7 * 7, dimension)
        self.fc_norm = nn.BatchNorm1d(dimension, eps=2e-5)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings before normalisation to unit length."""
        features = self.convolutions((pixels - 127.5) * (1 / 128))
        embedding: Tensor = self.fc_norm(self.fc(self.flatten(self.dropout(self.norm(features)))))
        return embedding


class _ResidualUnit(nn.Module):
    """Two 3×3 convolutions beside a way past them (He et al., CVPR 2016; the order of ArcFace's: norm first)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same or half the sides."""
        sum_: Tensor = self.body(features) + self.shortcut(features)
        return sum_


class ResidualFace(nn.Module):
    """A residual network to train from scratch, small enough for a processor: 15 convolutions, 4.6 million weights.

    Input and output are `SFace`'s.
    """

    input_shape = ("batch", 3, 112, 112)
    _stages = ((48, 1), (96, 2), (192, 2), (256, 1))  # channels and units; each stage halves the sides once

    def __init__(self, dimension: int = 128, dropout: float = 0.4) -> None:
        super().__init__()
        self.output_shapes: Mapping[str, Shape] = {"embedding": ("batch", dimension)}
        channels = 32
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.PReLU(channels)
        )
        units: list[nn.Module] = []
        for number, (outputs, count) in enumerate(self._stages):
            for unit in range(count):
                units.append(_ResidualUnit(channels, outputs, 2 if unit == 0 and number < 3 else 1))
                channels = outputs
        self.units = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels * 7 * 7, dimension)
        self.fc_norm = nn.BatchNorm1d(dimension)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings before normalisation to unit length."""
        features = self.units(self.stem((pixels - 127.5) * (1 / 128)))
        embedding: Tensor = self.fc_norm(self.fc(self.flatten(self.dropout(self.norm(features)))))
        return embedding


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {"YuNet": YuNet, "SFace": SFace, "ResidualFace": ResidualFace}
"""The torch module of each architecture that a network file or a card may name."""
