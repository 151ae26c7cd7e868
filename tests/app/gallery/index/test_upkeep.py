import numpy as np
import pytest

from app.gallery.index.parts import Block, Segment
from app.gallery.index.rows import Rows
from app.gallery.index.upkeep import Limits, due

LIMITS = Limits(block=1000, tail=100, merged=4, largest=10_000, dead_share=0.2, least_dead=10)


def rows_of(size: int, dead: int = 0, *, codes: bool = True) -> Rows:
    alive = np.arange(size) >= dead
    return Rows(np.empty((size, 1), np.float32), np.arange(size), alive, "codes" if codes else None, size, dead)


def segments(*sizes: int) -> list[Segment]:
    return [Segment(rows_of(size)) for size in sizes]


def block(size: int, dead: int = 0) -> Block:
    return Block(rows_of(size, dead, codes=False))


def merged_with(tail: int, *sizes: int) -> list[int] | None:
    work = due(segments(*sizes), [block(tail)], codes=True, limits=LIMITS)
    return None if work is None else [segment.rows.size for segment in work.segments]


@pytest.mark.parametrize("codes", [True, False])
def test_a_tail_is_sealed_when_it_is_long(codes: bool) -> None:
    assert due([], [block(99)], codes=codes, limits=LIMITS) is None
    work = due([], [block(100, dead=50)], codes=codes, limits=LIMITS)
    assert work is not None
    assert [one.rows.size for one in work.blocks] == [100]


def test_a_new_segment_takes_in_what_is_smaller_than_four_times_its_size() -> None:
    assert merged_with(99) is None
    assert merged_with(100, 4000, 400) == []
    assert merged_with(100, 4000, 399) == [399]
    assert merged_with(100, 1900, 399, 100) == [100, 399, 1900]
    assert merged_with(100, 2400, 399, 100) == [100, 399]


def test_only_living_rows_count_where_segments_are_merged() -> None:
    work = due(segments(400), [block(200, dead=100)], codes=True, limits=LIMITS)
    assert work is not None
    assert work.segments == ()
    half_dead = Segment(rows_of(8000, 4000))
    work = due([half_dead], [block(6000)], codes=True, limits=LIMITS)
    assert work is not None
    assert work.segments == (half_dead,)


def test_no_segment_grows_beyond_the_limit() -> None:
    assert merged_with(5000, 6000) == []
    assert merged_with(5000, 5000) == [5000]
    assert merged_with(5000, 6000, 4000) == [4000]
    work = due([], [block(6000), block(4000), block(1)], codes=True, limits=LIMITS)
    assert work is not None
    assert [one.rows.size for one in work.blocks] == [6000, 4000]


def test_a_segment_is_compacted_from_a_share_of_removed_rows_on() -> None:
    for size, dead, wanted in ((1000, 199, False), (1000, 200, True), (20, 9, False), (20, 10, True), (5, 5, True)):
        segment = Segment(rows_of(size, dead))
        assert (due([segment], [], codes=True, limits=LIMITS) is not None) == wanted


def test_segments_without_codes_get_codes_when_there_is_a_codebook() -> None:
    plain = Segment(rows_of(1000, codes=False))
    assert due([plain], [], codes=False, limits=LIMITS) is None
    work = due([plain], [], codes=True, limits=LIMITS)
    assert work is not None
    assert work.segments == (plain,)


def test_rows_are_rewritten_a_few_times_and_segments_stay_few() -> None:
    standard, held, written = Limits(), list[Segment](), 0
    for _ in range(1000):
        work = due(held, [block(standard.tail)], codes=True, limits=standard)
        assert work is not None
        size = standard.tail + sum(one.rows.size for one in work.segments)
        held = [*(one for one in held if one not in work.segments), Segment(rows_of(size))]
        held.sort(key=lambda one: one.rows.size, reverse=True)
        written += size
        assert len(held) <= 8
    assert written < 20 * 1000 * standard.tail
