"""Rate and time left of a long command."""

from app.commands.progress import Pace


def test_what_was_passed_over_is_left_out_of_the_rate() -> None:
    moments = iter([0.0, 1.0, 3.0, 5.0, 6.0])
    pace = Pace(1000, lambda: next(moments))
    pace.advance(600, 600)
    assert str(pace) == "600 of 1000"
    pace.advance(64, 24)  # 40 in two seconds
    assert str(pace) == "664 of 1000, 20.0/s, 17 s left"
    pace.advance(60, 0)
    assert str(pace) == "724 of 1000, 25.0/s, 11 s left"
    pace.advance(76, 76)
    assert str(pace) == "800 of 1000, 25.0/s, 8 s left"
