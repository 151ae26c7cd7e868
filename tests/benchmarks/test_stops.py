import importlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BALLOON = Path("/sys/bus/virtio/drivers/virtio_balloon")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("stops")


def test_each_stop_has_one_cause_and_the_first_that_it_met_counts(stops: Any) -> None:
    began = np.array([0.0, 2, 4, 6, 8, 10, 12, 14, 16])
    wall = np.array([0.001, 0.03, 0.03, 0.03, 0.03, 0.05, 0.05, 0.05, 0.05])
    process = np.array([0.001, 0.025, 0.001, 0.001, 0.001, 0.04, 0.04, 0.04, 0.04])
    own = np.array([0.001, 0.001, 0.001, 0.001, 0.001, 0.001, 0.04, 0.04, 0.04])
    waits = np.array([1, 0, 1, 1, 0, 1, 0, 0, 0])
    reads = np.array([1, 0, 2, 0, 0, 1, 0, 0, 0])
    searches = stops.Searches(began, wall, process, own, waits, reads)
    none = searches.causes(0.02, np.empty(0))
    assert searches.causes(0.02, None) == none
    assert (
        stops._row("", 1, "", searches, 0.02, None)["by host"],
        stops._row("", 1, "", searches, 0.02, [])["by host"],
    ) == ("", "0")
    assert none == {"host": 0, "process": 5, "disk": 1, "waiting": 1, "machine": 1}
    reports = np.array([0.0005, 9.9, 11.5, 14.02, 14.9, 16.06])
    assert searches.reported(reports).tolist() == [True, False, False, False, False, True, True, True, False]
    assert searches.causes(0.02, reports) == none | {"host": 2, "process": 3}


def test_the_kernel_tells_when_the_machine_reports_memory_to_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    host_reports = importlib.import_module("host_reports")
    with host_reports.host_reports() as told:
        start = time.perf_counter()
        if told is None:
            pytest.skip("the kernel does not tell this process")
        memory = np.ones(2**28, np.uint8)  # whose pages the system has again afterwards
        del memory
        while not len(told()) and time.perf_counter() < start + (15 if reporting() else 0):
            time.sleep(0.1)
        reports = told()
        kept = list(host_reports._INSTANCES.glob(f"host_reports_{os.getpid()}"))
        assert len(kept) == 1
    assert not kept[0].exists()
    assert reports.dtype == np.float64
    assert ((start <= reports) & (reports <= time.perf_counter())).all()
    assert len(reports) or not reporting()


def reporting() -> bool:
    """Whether the machine has a host that it tells of free memory: VIRTIO_BALLOON_F_REPORTING."""
    return any(features.read_text()[5] == "1" for features in BALLOON.glob("virtio*/features"))


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
