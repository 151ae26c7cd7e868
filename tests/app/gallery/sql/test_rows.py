"""What the stores share."""

from app.gallery.sql.rows import in_parts


def test_many_values_are_asked_for_some_hundred_at_a_time() -> None:
    assert [(part[0], part[-1]) for part in in_parts(range(1200))] == [(0, 499), (500, 999), (1000, 1199)]
