"""A file of rows by name, which a later run takes up again."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from model.replaced_file import replaced_file

Rows = dict[str, NDArray[np.float32]]


def read_rows(path: Path | None) -> Rows:
    """Read the rows of a file, none where it is missing, cut off or foreign: they are then computed anew."""
    if path is None or not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return dict(zip(arrays["stamps"].tolist(), arrays["rows"], strict=True))
    except (OSError, ValueError, KeyError, BadZipFile):
        return {}


def write_rows(path: Path | None, rows: Rows) -> None:
    """Write rows of one length and type, in one step; nowhere without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as draft, draft.open("wb") as file:
        np.savez(file, stamps=np.array(list(rows), np.str_), rows=np.array(list(rows.values())))
