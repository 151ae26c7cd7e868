import importlib
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.text import Annotation

ROOT = Path(__file__).parents[2]


def test_labels_stay_inside_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("index_report")
    mpl.use("agg")
    rows = report.read_csv(ROOT / "docs" / "index.csv")
    figure = report.memory_figure(rows, {row["engine"]: "black" for row in rows}, set())
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [one for one in axes.texts if isinstance(one, Annotation)]
    assert labels
    assert [one.get_text() for one in labels if one.get_window_extent().x1 > axes.bbox.x1] == []
    importlib.import_module("matplotlib.pyplot").close(figure)


def test_the_picture_says_how_it_is_called() -> None:
    command = [sys.executable, "benchmarks/picture.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": "."}, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:18]) == (0, "usage: picture.py ")


def test_half_precision_and_what_is_exact_by_default_are_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("index_report")
    slow = {"busy_p50_s": 0.001, "busy_p99_s": 0.004, "p50_s": 0.001, "longest_upkeep_s": 0.05}
    for size, engines in ((10_000, {"flat", "compressed, half"}), (100_000, {"compressed, half"})):
        rows = [{"engine": engine, "templates": size, **slow} for engine in ("flat", "compressed, half")]
        missed = {one.sentence for one in report.wanted(rows) if one.line.startswith("- NOT MET")}
        assert missed == {
            f"{size:,} templates, {engine}: {aim}"
            for engine in engines
            for aim in ("p99 beside writers within 3 × p50", "ms that a search was stopped at most")
        }
