from pathlib import Path

import numpy as np

from model.training.row_cache import read_rows, write_rows


def test_rows_come_back_by_their_names(tmp_path: Path) -> None:
    rows = {"Ann/1.jpg 5": np.array([1.5, np.nan], np.float32), "Bob/ä.jpg 7": np.array([0.25, 2], np.float32)}

    write_rows(tmp_path / "deeper" / "rows.npz", rows)

    back = read_rows(tmp_path / "deeper" / "rows.npz")
    assert list(back) == list(rows)
    assert all(np.array_equal(back[name], row, equal_nan=True) for name, row in rows.items())
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["rows.npz"]


def test_what_cannot_be_read_is_empty(tmp_path: Path) -> None:
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut off")
    np.savez(tmp_path / "foreign.npz", something=np.zeros(3))

    assert read_rows(tmp_path / "cut.npz") == {}
    assert read_rows(tmp_path / "foreign.npz") == {}
    assert read_rows(tmp_path / "none.npz") == {}
    assert read_rows(None) == {}


def test_nowhere_to_write_is_no_error() -> None:
    write_rows(None, {"Ann": np.zeros(2, np.float32)})
