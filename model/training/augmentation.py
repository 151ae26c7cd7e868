"""Changes of a crop that do not change who is on it: what cameras, light and compression do to faces."""

from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from model.training.config import AugmentationConfig


class _Covered(v2.Transform):  # type: ignore[misc]
    """Covers the lower part of the face, as a mask or a scarf does, or a rectangle of it."""

    def transform(self, inpt: Tensor, _params: dict[str, object]) -> Tensor:
        height, width = inpt.shape[-2:]
        colour = torch.randint(0, 256, (3, 1, 1), dtype=inpt.dtype)
        covered = inpt.clone()
        if torch.rand(()) < 0.6:
            covered[:, height - int(height * _between(0.3, 0.55)) :] = colour
            return covered
        tall, wide = int(height * _between(0.15, 0.4)), int(width * _between(0.2, 0.6))
        top, left = int(_between(0, height - tall)), int(_between(0, width - wide))
        covered[:, top : top + tall, left : left + wide] = colour
        return covered


class _LowResolution(v2.Transform):  # type: ignore[misc]
    """Takes the crop down to a side of 14 to 44 pixels and back."""

    def transform(self, inpt: Tensor, _params: dict[str, object]) -> Tensor:
        side = int(_between(14, 45))
        small = v2.functional.resize(inpt, [side, side], antialias=True)
        resized: Tensor = v2.functional.resize(small, list(inpt.shape[-2:]), antialias=True)
        return resized


class _Jpeg(v2.Transform):  # type: ignore[misc]
    """Compresses the crop at a quality of 8 to 40 (torchvision's own JPEG is deprecated)."""

    def transform(self, inpt: Tensor, _params: dict[str, object]) -> Tensor:
        file = BytesIO()
        v2.functional.to_pil_image(inpt).save(file, "JPEG", quality=int(_between(8, 41)))
        compressed: Tensor = v2.functional.pil_to_tensor(Image.open(file))
        return compressed


class Augmentation:
    """Flip, small affine change, colour, and with some probability one degradation.

    Reads and returns uint8, (3, 112, 112), RGB. Randomness is torch's, so a seed set before a call decides the result.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        grey = v2.InterpolationMode.BILINEAR
        affine = v2.RandomAffine(5, translate=(0.03, 0.03), scale=(0.94, 1.06), interpolation=grey, fill=0)
        colour = v2.Compose([v2.ColorJitter(0.3, 0.3, 0.3, 0.03), v2.RandomGrayscale(0.15)])
        degradation = v2.RandomChoice(
            [
                _LowResolution(),
                v2.GaussianBlur(11, (1.0, 3.5)),
                v2.ColorJitter(brightness=(0.12, 0.5), contrast=(0.6, 1.0)),
                _Jpeg(),
                _Covered(),
            ],
            p=[0.3, 0.2, 0.1, 0.15, 0.25],
        )
        self._steps = v2.Compose(
            [
                v2.RandomHorizontalFlip(config.flip),
                v2.RandomApply([affine], config.affine),
                v2.RandomApply([colour], config.colour),
                v2.RandomApply([degradation], config.degraded),
            ]
        )

    def __call__(self, crop: Tensor) -> Tensor:
        """Return a changed copy."""
        changed: Tensor = self._steps(crop)
        return changed


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
