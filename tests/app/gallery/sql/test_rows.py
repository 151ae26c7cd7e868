"""What the stores share."""

from sqlalchemy import create_engine
from structlog.testing import capture_logs

from app.gallery.sealing.encryption import PlainRows, RowIdentity, SealedRow
from app.gallery.sql.rows import Sessions, in_parts, open_embeddings


def test_many_values_are_asked_for_some_hundred_at_a_time() -> None:
    assert [(part[0], part[-1]) for part in in_parts(range(1200))] == [(0, 499), (500, 999), (1000, 1199)]


def test_an_embedding_of_another_length_than_its_gallerys_is_damage() -> None:
    rows = [(many, SealedRow(None, RowIdentity("template", 1, 2, ""), bytes(4 * many))) for many in (7, 8, 9)]
    no_tables = Sessions(create_engine("sqlite://"))  # nobody is asked whether somebody was erased
    with capture_logs() as logs:
        assert open_embeddings(rows, PlainRows(), dimension=8, sessions=no_tables) == [None, bytes(4 * 8), None]
    assert [(line["event"], line["template"]) for line in logs] == [("template.tampered", 7), ("template.tampered", 9)]
    assert open_embeddings(rows, PlainRows(), dimension=0) == [row.data for _, row in rows]
