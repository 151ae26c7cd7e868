"""A short run of what `make soak` does at length."""

from pathlib import Path

from tests.soak.crashing import crash_rounds


def test_no_acknowledged_write_is_lost_to_kill_9(database_url: str, tmp_path: Path) -> None:
    survived = crash_rounds(database_url, tmp_path, 7)
    assert survived.in_start == 2
    assert survived.subjects > 0
