"""What the stores share."""

import numpy as np
import pytest
from sqlalchemy import create_engine
from structlog.testing import capture_logs

from app.gallery.sealing.encryption import PlainRows, RowIdentity, SealedRow
from app.gallery.sql.rows import Sessions, in_parts, open_embeddings


def test_many_values_are_asked_for_some_hundred_at_a_time() -> None:
    assert [(part[0], part[-1]) for part in in_parts(range(1200))] == [(0, 499), (500, 999), (1000, 1199)]


def sealed(values: dict[int, bytes]) -> list[tuple[int, SealedRow]]:
    return [(one, SealedRow(None, RowIdentity("template", 1, 2, ""), value)) for one, value in values.items()]


def test_an_embedding_of_another_dimension_than_its_gallerys_is_damage() -> None:
    rows = sealed({many: np.eye(1, many, dtype="<f4").tobytes() for many in (7, 8, 9)})
    no_tables = Sessions(create_engine("sqlite://"))  # nobody is asked whether somebody was erased
    with capture_logs() as logs:
        assert open_embeddings(rows, PlainRows(), dimension=8, sessions=no_tables) == [None, rows[1][1].data, None]
    assert [(line["event"], line["template"]) for line in logs] == [("template.tampered", 7), ("template.tampered", 9)]
    assert open_embeddings(rows, PlainRows(), dimension=0) == [row.data for _, row in rows]


@pytest.mark.parametrize("length", [0, 0.998, 1.002, 1e30, np.inf, np.nan])
def test_what_no_index_takes_is_left_out(length: float) -> None:
    good = np.eye(2, 8, dtype="<f4")
    bad = np.full(8, length / np.sqrt(8), "<f4")
    rows = sealed({1: good[0].tobytes(), 2: bad.tobytes(), 3: good[1].tobytes()})
    with capture_logs() as logs:
        assert open_embeddings(rows, PlainRows(), dimension=8) == [rows[0][1].data, None, rows[2][1].data]
    assert [(line["event"], line["template"]) for line in logs] == [("template.not_normalised", 2)]
