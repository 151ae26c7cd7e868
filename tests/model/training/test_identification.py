import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.training import identification
from model.training.identification import FPIRS, LEAST_STRANGERS, SPLITS, Identification, divide, identify, search
from model.training.pair_distances import distances_between
from model.training.template_rules import best_template


def on_circle(*degrees: float) -> NDArray[np.float32]:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def identify_open_set(
    embeddings: NDArray[np.float32],
    subjects: NDArray[np.int64],
    *,
    enrolled: int,
    rates: tuple[float, ...] = FPIRS,
    probes: NDArray[np.float32] | None = None,
) -> Identification | None:
    divisions = divide([str(photo) for photo in range(len(subjects))], subjects, enrolled)
    found = [
        search(embeddings, embeddings if probes is None else probes, subjects, division, best_template)
        for division in divisions
    ]
    searches = [one for one in found if one is not None]
    return identify(searches, enrolled=enrolled, rule="best", rates=rates) if searches else None


@pytest.fixture(autouse=True)
def few_strangers_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "LEAST_STRANGERS", 0)


def search_one_by_one(
    embeddings: NDArray[np.float32], subjects: NDArray[np.int64], enrolled: int, rate: float
) -> tuple[float, float | None]:
    """Rank one and FNIR by loops over photos."""
    gallery: dict[int, list[int]] = {}
    mated, strangers = [], []
    for photo, subject in enumerate(subjects):
        if int((subjects == subject).sum()) <= enrolled:
            strangers.append(photo)
        elif len(gallery.setdefault(int(subject), [])) < enrolled:
            gallery[int(subject)].append(photo)
        else:
            mated.append(photo)

    def distance(photo: int, subject: int) -> float:
        table = distances_between(embeddings[[photo]], embeddings[gallery[subject]])
        return min((float(d) for d in table[0] if not np.isnan(d)), default=float("inf"))

    nearest = sorted(min(distance(photo, subject) for subject in gallery) for photo in strangers)
    hits = []
    for photo in mated:
        own = distance(photo, int(subjects[photo]))
        if all(own < distance(photo, other) for other in gallery if other != subjects[photo]) and own < float("inf"):
            hits.append(own)
    rank = int(rate * len(strangers) + 1e-9)
    if rank < 1:
        return len(hits) / len(mated), None
    threshold = nearest[rank] if rank < len(nearest) else float("inf")
    return len(hits) / len(mated), 1 - sum(own < threshold for own in hits) / len(mated)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 8), min_size=12, max_size=40),
    st.integers(1, 3),
    st.sampled_from([0.1, 0.3]),
    st.integers(0, 9999),
)
def test_rates_equal_those_of_loops(sizes: list[int], enrolled: int, rate: float, seed: int) -> None:
    subjects = np.array(sizes, np.int64)
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(len(subjects), 3)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings[rng.random(len(subjects)) < 0.1] = np.nan

    measured = identify_open_set(embeddings, subjects, enrolled=enrolled, rates=(rate,))
    if measured is None:
        return
    rank_one, fnir = search_one_by_one(embeddings, subjects, enrolled, rate)

    assert measured.rank_one == pytest.approx(rank_one)
    assert [point.fnir for point in measured.points] == ([] if fnir is None else [pytest.approx(fnir)])


def test_a_hand_computed_search() -> None:
    #          enrolled 0  probe 0   enrolled 1   probes 1    strangers
    embeddings = on_circle(0, 10, 90, 60, 200, 130, 150)
    subjects = np.array([0, 0, 1, 1, 1, 2, 3])

    measured = identify_open_set(embeddings, subjects, enrolled=1, rates=(0.5,))

    # Strangers are 40° and 60° from subject 1; one alarm in two is allowed, so the threshold is just below 60°.
    # Probe 0 is 10° from its own, subject 1's first probe 30°; its second is 110° from subject 1, 160° from subject 0.
    assert measured is not None
    assert (measured.subjects, measured.templates, measured.mated_probes, measured.non_mated_probes) == (2, 2, 3, 2)
    assert measured.rank_one == 1.0
    assert measured.points[0].distance == pytest.approx(2 * np.sin(np.deg2rad(30)), abs=1e-5)
    assert measured.points[0].fnir == pytest.approx(1 / 3)


def test_the_first_photos_are_enrolled_and_people_with_no_more_are_strangers() -> None:
    embeddings = on_circle(0, 1, 2, 3, 90, 91, 92, 180)
    subjects = np.array([0, 0, 0, 0, 1, 1, 1, 2])

    measured = identify_open_set(embeddings, subjects, enrolled=3, rates=())

    assert measured is not None
    assert (measured.subjects, measured.templates, measured.mated_probes, measured.non_mated_probes) == (1, 3, 1, 4)


def test_failures_to_acquire_are_misses_but_no_alarms() -> None:
    embeddings = on_circle(0, 1, 2, 90, 91, 180, 181)
    embeddings[[2, 3, 5]] = np.nan
    subjects = np.array([0, 0, 0, 1, 1, 2, 3])

    measured = identify_open_set(embeddings, subjects, enrolled=1, rates=(0.5,))

    # Subject 1 has no template, so its probe is missed, as is subject 0's second one without a face.
    assert measured is not None
    assert (measured.subjects, measured.mated_probes, measured.non_mated_probes) == (1, 3, 2)
    assert measured.rank_one == pytest.approx(1 / 3)
    assert measured.points[0].distance == 2.0


def test_probes_may_be_copies_of_the_photos() -> None:
    clean, copies = on_circle(0, 10, 90, 100, 200), on_circle(180, 80, 180, 95, 180)

    measured = identify_open_set(clean, np.array([0, 0, 1, 1, 2]), enrolled=1, probes=copies, rates=())

    assert measured is not None
    assert measured.rank_one == 0.5  # photo 1's copy is at 80°, nearer to the clean photo at 90°


def test_nobody_to_enroll_or_no_stranger_gives_nothing() -> None:
    photos = ["a", "b", "c", "d"]

    assert divide(photos, np.arange(4), 1) == ()
    assert divide(photos, np.array([0, 0, 0, 0]), 1) == ()
    assert identify_open_set(np.full((3, 2), np.nan, np.float32), np.array([0, 0, 1]), enrolled=1) is None


def test_where_everybody_has_many_photos_half_are_strangers_many_times_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "LEAST_STRANGERS", LEAST_STRANGERS)
    subjects = np.repeat(np.arange(7), 4)
    photos = [f"{subject}/{number}" for number, subject in enumerate(subjects)]

    divisions = divide(photos, subjects, 3)

    assert len(divisions) == SPLITS
    for division in divisions:
        assert (division.enrolled.astype(int) + division.mated + division.strangers == 1).all()
        assert (int(division.enrolled.sum()), int(division.mated.sum()), int(division.strangers.sum())) == (12, 4, 12)
        assert len(np.unique(subjects[division.strangers])) == 3
    assert len({division.enrolled.tobytes() for division in divisions}) == SPLITS
    again = divide(photos, subjects, 3)
    assert [one.enrolled.tobytes() for one in again] == [one.enrolled.tobytes() for one in divisions]


def test_several_searches_give_the_mean_of_their_rates() -> None:
    embeddings, subjects = on_circle(0, 10, 90, 60, 200, 130, 150), np.array([0, 0, 1, 1, 1, 2, 3])
    one = divide([str(photo) for photo in range(7)], subjects, 1)[0]
    swapped = identification.Division(np.roll(one.mated, 1) & one.mated, one.enrolled, one.strangers)
    searches = [search(embeddings, embeddings, subjects, division, best_template) for division in (one, swapped)]
    found = [each for each in searches if each is not None]

    together = identify(found, enrolled=1, rule="best", rates=(0.5,))
    apart = [identify([each], enrolled=1, rule="best", rates=(0.5,)) for each in found]

    assert together.divisions == 2
    assert together.rank_one == pytest.approx(np.mean([each.rank_one for each in apart]))
    assert together.points[0].fnir == pytest.approx(np.mean([each.points[0].fnir for each in apart]))


def test_blocks_of_probes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    embeddings = rng.normal(size=(200, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    subjects = rng.integers(0, 90, 200)
    whole = identify_open_set(embeddings, subjects, enrolled=1, rates=(0.1,))

    monkeypatch.setattr(identification, "_BLOCK_PROBES", 7)

    assert identify_open_set(embeddings, subjects, enrolled=1, rates=(0.1,)) == whole
