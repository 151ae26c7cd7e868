"""What an index that compares codes may change about decisions, on embeddings that lie as the extractor's do."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.index import SegmentedIndex
from app.gallery.index.codebook import LEAST_TRAINING
from app.gallery.index.upkeep import Limits
from app.gallery.matching import Candidate, VectorsOf, decide, find_candidates
from app.gallery.policy import DEFAULT_POLICY, distance_at, threshold_for
from app.gallery.views.owners import TemplateOwners
from model.card import read_card
from model.pipeline import WEIGHTS

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"
PEOPLE, EACH, PROBES, TOP_K = 30_000, 3, 600, 5
THRESHOLDS = read_card(WEIGHTS / "sface").thresholds
USUAL, LOOSE = threshold_for(DEFAULT_POLICY, THRESHOLDS, PEOPLE), distance_at(1e-5, THRESHOLDS)

Candidates = list[list[Candidate]]


@dataclass(frozen=True)
class Drawn:
    """Templates of people, photos of as many enrolled ones as strangers, and whom the exact index finds for them."""

    templates: NDArray[np.float32]
    probes: NDArray[np.float32]
    owners: TemplateOwners
    wanted: Candidates


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(BENCHMARKS))
        from index_data import Population

        population = Population.fitted()
        faces = population.draw(PEOPLE, EACH + 1, seed=0)
        strangers = population.draw(PROBES, 1, seed=1)[:, 0]
        sys.modules.pop("index_data")
    templates = np.ascontiguousarray(faces[:, :EACH].reshape(-1, faces.shape[2]))
    probes = np.concatenate([faces[:PROBES, EACH], strangers])
    ids = np.arange(len(templates))
    owners = TemplateOwners(ids, ids // EACH)
    exact = SegmentedIndex(templates.shape[1], compress_from=None)  # which the contract compares with numpy
    exact.add(ids, templates)
    return Drawn(templates, probes, owners, find_candidates(exact, owners, probes, top_k=TOP_K))


@pytest.fixture(scope="module", params=[(True, False), (True, True), (False, False)], ids=["lists", "half", "no lists"])
def index(request: pytest.FixtureRequest, drawn: Drawn) -> SegmentedIndex:
    in_lists, half = request.param
    limits = Limits() if in_lists else replace(Limits(), listed=10**9)
    made = SegmentedIndex(drawn.templates.shape[1], compress_from=LEAST_TRAINING, half=half, limits=limits)
    made.add(np.arange(len(drawn.templates)), drawn.templates)
    while made.maintain():
        pass
    (segment,) = made._contents.parts.segments
    assert isinstance(segment.rows.codes, faiss.IndexIVFPQFastScan) == in_lists
    return made


def found(index: SegmentedIndex, drawn: Drawn, *, thorough: bool) -> Candidates:
    exact: VectorsOf | None = None if index.exact_vectors else drawn.templates.__getitem__
    return find_candidates(index, drawn.owners, drawn.probes, top_k=TOP_K, thorough=thorough, exact_vectors=exact)


def decisions(candidates: Candidates, threshold: float) -> NDArray[np.int64]:
    """Of each probe the subject, or -1."""
    best = [decide(one, threshold) for one in candidates]
    return np.array([-1 if one is None else one.subject_id for one in best])


def others(candidates: Candidates, drawn: Drawn, threshold: float) -> int:
    """How many decisions are not the exact index's."""
    wanted = decisions(drawn.wanted, threshold)
    assert np.mean(wanted[:PROBES] >= 0) > 0.9
    assert 0.02 < np.mean(wanted[PROBES:] >= 0) < 0.5
    return int(np.count_nonzero(decisions(candidates, threshold) != wanted))


def recall(candidates: Candidates, drawn: Drawn) -> float:
    """Share of the five nearest people who are among those found."""
    subjects = [[{one.subject_id for one in each} for each in lists] for lists in (candidates, drawn.wanted)]
    return float(np.mean([len(there & wanted) / TOP_K for there, wanted in zip(*subjects, strict=True)]))


def test_decisions_at_the_default_policys_threshold_are_those_of_the_exact_index(
    drawn: Drawn, index: SegmentedIndex
) -> None:
    quick = found(index, drawn, thorough=False)
    assert others(quick, drawn, USUAL) <= 1
    assert 0.8 < recall(quick, drawn) < 0.95  # with fewer rows compared it is less; with more, a search takes longer


def test_a_thorough_search_decides_so_at_looser_thresholds_too_and_finds_the_nearest_people(
    drawn: Drawn, index: SegmentedIndex
) -> None:
    thorough = found(index, drawn, thorough=True)
    assert others(thorough, drawn, LOOSE) == 0
    assert recall(thorough, drawn) > 0.99
