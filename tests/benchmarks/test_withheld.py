import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PERIOD, USUAL = 0.003, 0.0001


@pytest.fixture
def withheld(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("withheld")


def samples(seconds: list[float], late: dict[int, float]) -> tuple[Any, Any]:
    """When a watcher is woken and done, whose calculations take so long and which is woken late now and then."""
    woken, done, now = [], [], 100.0
    for number, one in enumerate(seconds):
        woken.append(now + PERIOD + late.get(number, 0.0))
        done.append(now := woken[-1] + one)
    return np.array(woken), np.array(done)


def test_nothing_is_withheld_from_a_core_that_is_as_fast_as_usual(withheld: Any) -> None:
    watched = withheld.Watched.of(*samples([USUAL, 1.5 * USUAL] * 50, {}))
    assert watched.lost.max() == 0


def test_a_late_waking_is_withheld_from_the_searches_that_met_it(withheld: Any) -> None:
    woken, done = samples([USUAL] * 100, {50: 0.03})
    watched = withheld.Watched.of(woken, done)
    marks = np.array([done[0], done[49], woken[50], done[-1]])
    before, within, after = watched.withheld(marks)
    assert (before, after) == pytest.approx((0, 0), abs=2e-4)
    assert within == pytest.approx(0.03, abs=1e-3)


def test_a_core_at_a_quarter_of_its_speed_withholds_three_quarters_of_the_time(withheld: Any) -> None:
    woken, done = samples([USUAL] * 40 + [4 * USUAL] * 20 + [USUAL] * 40, {})
    watched = withheld.Watched.of(woken, done)
    (slow,) = watched.withheld(done[[39, 59]])
    assert slow == pytest.approx(0.75 * (done[59] - done[39]), rel=0.02)
    assert watched.lost[-1] == pytest.approx(slow, rel=0.02)


def test_one_slow_calculation_tells_nothing_about_the_core(withheld: Any) -> None:
    watched = withheld.Watched.of(*samples([USUAL] * 50 + [9 * USUAL] + [USUAL] * 50, {}))
    assert watched.lost[-1] == 0


def test_a_real_core_is_watched(withheld: Any) -> None:
    with withheld.watching({min(os.sched_getaffinity(0))}) as found:
        sum(range(10**6))
    for seen in found.values():  # none where there is no right to a real-time priority
        assert len(seen.moments) == len(seen.lost) > 1
        assert (np.diff(seen.lost) >= 0).all()
        assert seen.lost[-1] <= seen.moments[-1] - seen.moments[0]
