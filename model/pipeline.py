"""The two networks that lead from a photo to embeddings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.card import read_card
from model.detector import Detector
from model.extractor import Extractor
from model.runtime import Precision, Runtime, check_runtime

WEIGHTS = Path(__file__).parent / "weights"
"""The networks that come with the package, a folder each."""


@dataclass(frozen=True, slots=True)
class Networks:
    """A detector and an extractor, both safe to share between threads."""

    detector: Detector
    extractor: Extractor


def load_networks(
    *,
    weights: Path = WEIGHTS,
    detector: str = "yunet",
    extractor: str = "sface",
    runtime: Runtime = "openvino",
    threads: int = 0,
    device: str = "cpu",
    precision: Precision = "f32",
) -> Networks:
    """Load both networks.

    Args:
        weights: folder with a folder for each network.
        detector: name of the detector's folder.
        extractor: name of the extractor's folder.
        runtime: see `model.runtime.open_network`, also for the arguments below.
        threads: processor threads for one call; 0: all.
        device: torch's name of the device.
        precision: of the arithmetic.

    Raises:
        ModelFileError: a network or its card is missing, damaged, or of the other kind.
    """
    return Networks(
        Detector.load(weights / detector, runtime=runtime, threads=threads, device=device, precision=precision),
        Extractor.load(weights / extractor, runtime=runtime, threads=threads, device=device, precision=precision),
    )


def check_networks(
    *, weights: Path = WEIGHTS, detector: str = "yunet", extractor: str = "sface", runtime: Runtime = "openvino"
) -> None:
    """Look at cards and files as `load_networks` does, without loading the networks.

    Raises:
        ModelFileError: a network or its card is missing, damaged, or of the other kind.
        RuntimeMissing: the runtime is not installed.
    """
    check_runtime(runtime)
    Detector(_not_loaded, read_card(weights / detector))
    Extractor(_not_loaded, read_card(weights / extractor))


def _not_loaded(batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    raise NotImplementedError(f"a network that was not loaded cannot read {len(batch)} pictures")
