import importlib
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("index_measure"), "_ON_DEVICE", 100)
    return importlib.import_module("index_measure")


@pytest.mark.parametrize("count", [1, 40, 120])
def test_a_device_finds_the_templates_that_faiss_finds(measuring: Any, count: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = np.random.default_rng(0)
    probes, templates = (random.normal(size=(size, 128)).astype(np.float32) for size in (30, 450))

    found = measuring._nearest_on(device, probes, templates, count)

    np.testing.assert_array_equal(found, faiss.knn(probes, templates, count)[1])
