"""Where a network runs: OpenVINO on the processor, or torch on processor or GPU."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelFileError, RuntimeMissing

if TYPE_CHECKING:  # who chooses torch goes without it
    import openvino

Runtime = Literal["openvino", "torch"]
Precision = Literal["f32", "bf16"]


class Network(Protocol):
    """A loaded network that any number of threads may call at the same time."""

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run the network.

        Args:
            batch: shape (N, channels, height, width), N ≥ 1, float32.

        Returns:
            Its outputs in the order of the network file, N rows each; the caller owns them.
        """
        ...


@cache
def _core() -> "openvino.Core":
    """OpenVINO for the life of the process.

    Its CPU plugin gives the thread that loads it a stack for signal handlers, and takes the memory back, but not the
    setting, when the last network is freed: the next Ctrl-C would then end the process with a segmentation fault.
    """
    import openvino

    return openvino.Core()


class OpenVinoNetwork:
    """A network file compiled for the processor; calls at the same time have buffers of their own.

    These are kept here and not by the calling threads: a thread that ends while the interpreter does would free them in
    OpenVINO's code, where it must not be stopped, and abort the process.
    """

    def __init__(self, path: Path, *, threads: int = 0, precision: Precision = "f32") -> None:
        options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            self._compiled = _core().compile_model(path, "CPU", options)
        except RuntimeError as error:
            raise ModelFileError(f"the network file {path} cannot be read by OpenVINO; restore it") from error
        self._free = list["openvino.InferRequest"]()
        self._first_run()

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """See `Network`."""
        try:
            request = self._free.pop()
        except IndexError:  # as many calls at the same time as never before
            request = self._compiled.create_infer_request()
        request.infer([batch], share_inputs=True)
        outputs = tuple(tensor.data.copy() for tensor in request.output_tensors)
        self._free.append(request)
        return outputs

    def _first_run(self) -> None:
        """Run once on one thread: two threads whose first runs meet can lock each other out for ever.

        OpenVINO's binding sets up its numpy types on the first run, behind a lock under which it gives up and takes the
        interpreter's.
        """
        _batch, *sides = self._compiled.input(0).partial_shape
        shape = [1, *(32 if side.is_dynamic else side.get_length() for side in sides)]
        self(np.zeros(shape, np.float32))


def open_network(
    path: Path, *, runtime: Runtime = "openvino", threads: int = 0, device: str = "cpu", precision: Precision = "f32"
) -> Network:
    """Load a network file.

    Args:
        path: file in the project's form, see `model.network_file`.
        runtime: openvino needs nothing but the packages of serving; torch needs the extra `train`.
        threads: processor threads for one call; 0: all. With torch the setting is the process's.
        device: torch's name of the device, for example ``cuda``; OpenVINO runs on the processor.
        precision: of the arithmetic; bf16 is faster where the processor has it.

    Raises:
        ModelFileError: the file is missing, damaged, or not of the project's form.
        DeviceError: torch cannot compute on the device.
        RuntimeMissing: torch is not installed.
    """
    if not path.is_file():
        raise ModelFileError(f"the network file {path} is missing; restore it or run `facemodel import`")
    if runtime == "openvino":
        return OpenVinoNetwork(path, threads=threads, precision=precision)
    try:
        from model.torch_runtime import TorchNetwork  # serving goes without torch unless it is chosen
    except ModuleNotFoundError as error:
        raise _missing(error.name) from error
    return TorchNetwork(path, threads=threads, device=device, precision=precision)


def check_runtime(runtime: Runtime) -> None:
    """Make sure that the runtime is installed, without the seconds that it takes to import it.

    Raises:
        RuntimeMissing: torch is not.
    """
    if runtime == "torch" and importlib.util.find_spec("torch") is None:
        raise _missing("torch")


def _missing(package: str | None) -> RuntimeMissing:
    return RuntimeMissing(
        f"the runtime torch needs the package {package}; install `facegallery[train]`, or choose openvino"
    )
