import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.training import identification
from model.training.error_rates import distances_between
from model.training.identification import best_template, identify_open_set


def on_circle(*degrees: float) -> NDArray[np.float32]:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


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


def test_nobody_to_enroll_or_no_stranger_gives_nothing() -> None:
    embeddings = on_circle(0, 1, 90, 91)

    assert identify_open_set(embeddings, np.arange(4), enrolled=1) is None
    assert identify_open_set(embeddings, np.array([0, 0, 1, 1]), enrolled=1) is None


def test_the_nearest_template_speaks_for_its_subject() -> None:
    distances = best_template(on_circle(0), on_circle(30, 60, 90), np.array([0, 2]))

    assert distances == pytest.approx(2 * np.sin(np.deg2rad([[15, 45]])), abs=1e-5)


def test_blocks_of_probes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    embeddings = rng.normal(size=(200, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    subjects = rng.integers(0, 90, 200)
    whole = identify_open_set(embeddings, subjects, enrolled=1, rates=(0.1,))

    monkeypatch.setattr(identification, "_BLOCK_PROBES", 7)

    assert identify_open_set(embeddings, subjects, enrolled=1, rates=(0.1,)) == whole
