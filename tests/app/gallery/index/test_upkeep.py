import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.index import upkeep
from app.gallery.index.codebook import Codebook
from app.gallery.index.parts import Block, Segment
from app.gallery.index.rows import Rows
from app.gallery.index.upkeep import Limits, build, due, training_sample
from tests.app.gallery.index.test_segmented import strangers

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
    removed = due(
        [], [block(100, dead=100), block(0)], codes=codes, limits=LIMITS
    )  # what is empty takes what comes next
    assert removed is not None
    assert [one.rows.size for one in removed.blocks] == [100]


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
    work = due([Segment(rows_of(400, 300))], [block(100)], codes=True, limits=LIMITS)  # it is as large as its rows
    assert work is not None
    assert work.segments == ()
    half_dead = Segment(rows_of(8000, 4000))
    work = due([half_dead], [block(6000)], codes=True, limits=LIMITS)
    assert work is not None
    assert work.segments == (half_dead,)
    almost_dead = Segment(rows_of(300, 250))
    work = due([*segments(700), almost_dead], [block(100)], codes=True, limits=LIMITS)
    assert work is not None
    assert work.segments == (almost_dead,)
    work = due([], [block(6000), block(8000, dead=4000)], codes=True, limits=LIMITS)
    assert work is not None
    assert [one.rows.size for one in work.blocks] == [6000, 8000]


def test_no_segment_grows_beyond_the_limit() -> None:
    assert merged_with(5000, 6000) == []
    assert merged_with(5000, 5000) == [5000]
    assert merged_with(5000, 6000, 4000) == [4000]
    work = due([], [block(6000), block(4000), block(1)], codes=True, limits=LIMITS)
    assert work is not None
    assert [one.rows.size for one in work.blocks] == [6000, 4000]
    work = due([], [block(20_000), block(1)], codes=True, limits=LIMITS)  # by itself, else it would never be sealed
    assert work is not None
    assert [one.rows.size for one in work.blocks] == [20_000]


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


EVERY = np.arange(5000)  # more than is copied at a time


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("cuts", [[], [2000, 2100]], ids=["one source", "three sources"])
@pytest.mark.parametrize(
    "ids",
    [EVERY, EVERY[::-1], np.roll(EVERY[::-1], 1), np.random.default_rng(0).permutation(EVERY)],
    ids=["ascending", "descending", "descending but for the first", "shuffled"],
)
def test_a_new_segment_has_the_living_rows_of_all_sources_in_the_order_of_their_ids(
    ids: NDArray[np.int64], cuts: list[int], half: bool
) -> None:
    vectors, sources = np.random.default_rng(1).normal(size=(5000, 3)).astype(np.float32), list[Rows]()
    for own in np.split(ids, cuts):
        alive = own % 7 != 3
        sources.append(Rows(vectors[own], own, alive, None, len(own), int((~alive).sum())))
    built = build(sources, None, half=half, listed_from=1)
    assert built is not None
    wanted = np.flatnonzero(EVERY % 7 != 3)
    np.testing.assert_array_equal(built.rows.ids, wanted)
    np.testing.assert_array_equal(built.rows.vectors, vectors[wanted].astype(np.float16 if half else np.float32))
    assert (built.rows.size, built.rows.dead, bool(built.rows.alive.all())) == (len(wanted), 0, True)


def test_of_no_living_rows_there_is_no_segment() -> None:
    assert build([], None, half=False, listed_from=1) is None
    assert build([rows_of(5, 5), Block.empty(4, 1).rows], None, half=False, listed_from=1) is None


@pytest.mark.parametrize(("listed_from", "listed"), [(1025, True), (1026, False)])
def test_codes_lie_in_lists_from_so_many_rows_on(listed_from: int, listed: bool) -> None:
    vectors = strangers(1025, seed=0)
    rows = Rows(vectors, np.arange(1025), np.ones(1025, np.bool_), None, size=1025)
    built = build([rows], Codebook.train(vectors), half=True, listed_from=listed_from)
    assert built is not None
    assert built.rows.codes is not None
    assert isinstance(built.rows.codes, faiss.IndexIVFPQFastScan) == listed
    assert built.rows.codes.ntotal == 1025


def test_no_more_embeddings_are_sampled_than_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "MOST_TRAINING", 50)
    sources = [rows_of(100, dead=40), rows_of(80)]
    sources[0].vectors[:, 0], sources[1].vectors[:, 0] = np.arange(100), np.arange(100, 180)
    sample = training_sample(sources)[:, 0].tolist()
    assert len(sample) == len(set(sample)) == 50
    assert 40 <= min(sample) < 100 <= max(sample)
    assert training_sample(sources)[:, 0].tolist() == sample
