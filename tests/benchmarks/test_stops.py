import importlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("stops")


def test_each_stop_has_one_cause_and_what_the_process_did_itself_comes_first(stops: Any) -> None:
    limit = 0.02
    wall = np.array([0.001, 0.03, 0.03, 0.03, 0.03, 0.05])
    process = np.array([0.001, 0.025, 0.001, 0.001, 0.001, 0.04])
    waits = np.array([1, 0, 1, 1, 0, 1])
    reads = np.array([1, 0, 2, 0, 0, 1])
    causes = stops.Searches(wall, process, waits, reads).causes(limit)
    assert causes == {"process": 2, "disk": 1, "waiting": 1, "machine": 1}


def test_the_kernel_tells_a_wait_from_work(stops: Any) -> None:
    def busy(_probe: Any) -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    lock = threading.Event()
    probes = np.zeros((2, 1), np.float32)
    worked = stops._watched(busy, probes, lambda: False)
    waited = stops._watched(lambda _probe: lock.wait(0.05), probes, lambda: False)
    assert worked.process.min() >= 0.02
    assert waited.wall.min() >= 0.05
    assert waited.process.max() < 0.05
    assert waited.waits.min() > 0
