"""Runs network files with torch, on the processor or on a GPU."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.network_file import read_network
from model.torch_device import open_device


class TorchNetwork:
    """A network file as a torch module that only infers; threads may share it, for nothing in it changes."""

    def __init__(self, path: Path, *, threads: int = 0, device: str = "cpu", precision: str = "f32") -> None:
        if threads:
            torch.set_num_threads(threads)
        self._device = open_device(device)
        self._bf16 = precision == "bf16"
        self._module = read_network(path).to(self._device)

    @torch.inference_mode()
    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """See `model.runtime.Network`."""
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            results = self._module(torch.from_numpy(batch).to(self._device))
        tensors = results if isinstance(results, tuple) else (results,)
        return tuple(tensor.float().cpu().numpy() for tensor in tensors)
