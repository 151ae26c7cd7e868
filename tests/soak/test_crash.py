"""A short run of what `make soak` does at length."""

import json
from pathlib import Path

import pytest

from tests.soak.crashing import Acknowledged, State, crash_rounds


def test_no_acknowledged_write_is_lost_to_kill_9(database_url: str, tmp_path: Path) -> None:
    survived = crash_rounds(database_url, tmp_path, 7)
    assert survived.in_start > 0
    assert survived.snapshots > 1
    assert survived.calls["enrolment"] > 0
    assert sum(survived.calls.values()) > survived.calls["enrolment"]


def test_a_call_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text(json.dumps({"broken": "a call failed: OSError()"}) + "\n")
    known = Acknowledged()
    known.read(tmp_path / "journal")
    with pytest.raises(AssertionError, match="a call failed"):
        known.check({})


@pytest.mark.parametrize(
    ("before", "after", "first", "then", "told"),
    [
        (["a-0"], None, {}, {"a": ["a-0"]}, "erased and back"),
        (None, ["a-0"], {"a": ["a-0"]}, {}, "acknowledged and lost"),
        (None, ["a-0"], {}, {"a": ["a-0"]}, "erased and back"),
        (["a-0", "a-1"], ["a-0"], {"a": ["a-0"]}, {"a": ["a-0", "a-1"]}, "acknowledged and lost"),
    ],
)
def test_what_was_in_doubt_stays_as_it_was_seen(
    tmp_path: Path,
    before: list[str] | None,
    after: list[str] | None,
    first: dict[str, list[str]],
    then: dict[str, list[str]],
    told: str,
) -> None:
    begun: dict[str, int | State] = {"thread": 0, "before": {"a": before}, "after": {"a": after}}
    (tmp_path / "journal").write_text(json.dumps(begun) + "\n")
    known = Acknowledged()
    known.read(tmp_path / "journal")
    for _ in range(2):
        known.check(first)
    with pytest.raises(AssertionError, match=told):
        known.check(then)
