"""The device that torch computes on."""

import torch

from model.errors import FacegalleryError


class DeviceError(FacegalleryError):
    """There is no such device, or torch cannot use it."""

    slug = "device"


def open_device(name: str) -> torch.device:
    """The device of torch's name, for example ``cpu`` or ``cuda``; float32 is float32 on it from now on.

    A GPU's convolutions would round float32 to ten bits of mantissa (TF32) otherwise; who wants that speed asks for
    bf16.

    Raises:
        DeviceError: there is no such device, or its driver is missing.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        reason = str(error).splitlines()[0]
        raise DeviceError(f"torch cannot compute on the device {name!r}: {reason}") from error
    return device
