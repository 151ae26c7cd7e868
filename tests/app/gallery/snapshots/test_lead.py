"""Who leads, and the file that says so."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.gallery.snapshots.lead import SnapshotLead


def test_two_threads_that_resign_close_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lead, closed, real = SnapshotLead(tmp_path), list[int](), os.close
    assert lead.take()

    def close(handle: int) -> None:
        """Meanwhile another thread resigns; after that the number may be that of another file, of the database even."""
        closed.append(handle)
        if len(closed) == 1:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(lead.resign).result(60)
            real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", close)
        lead.resign()
    assert len(closed) == 1


def test_who_has_resigned_does_not_take_the_lead_back(tmp_path: Path) -> None:
    first, second = SnapshotLead(tmp_path), SnapshotLead(tmp_path)
    assert first.take()
    first.resign()
    assert not first.take()
    assert second.take()
    second.resign()
