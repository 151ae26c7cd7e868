"""Whether decisions stay exact when people come who are unlike those that the codes were trained with.

    python benchmarks/shift.py [--people 130000]

The codebook of a compressed index is trained once, with the first 20,000 templates. Here everybody who comes later is
drawn from the same population, or from one that is turned by a random rotation, so that nothing of what was learnt of
single components holds. The nearest template of each probe, if it is within the default policy's threshold, is compared
with that of an exact search.
"""

import argparse

import faiss
import numpy as np
from index_data import Population
from numpy.typing import NDArray
from rich.progress import track

from app.gallery.index import COMPRESS_FROM, SegmentedIndex
from app.gallery.policy import DEFAULT_POLICY, threshold_for
from model.card import read_card
from model.pipeline import WEIGHTS

_DIMENSION, _EACH, _PROBES = 128, 3, 2000


def main() -> None:
    """Measure and print one line for each population and kind of probe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=130_000)
    people = parser.parse_args().people
    random = np.random.default_rng(5)
    turned = np.linalg.qr(random.normal(size=(_DIMENSION, _DIMENSION)))[0].astype(np.float32)
    threshold = threshold_for(DEFAULT_POLICY, read_card(WEIGHTS / "sface").thresholds, people)
    for name, turn in (("the same population", np.eye(_DIMENSION, dtype=np.float32)), ("a turned one", turned)):
        population = Population.fitted()
        first = population.draw((COMPRESS_FROM["auto"] or 0) // _EACH + 1, _EACH, seed=11).reshape(-1, _DIMENSION)
        later = population.draw(people, _EACH + 1, seed=12) @ turn
        templates = np.concatenate([first, later[:, 1:].reshape(-1, _DIMENSION)])
        index = _grown(templates, len(first), name)
        mated = later[random.choice(people, min(people, _PROBES), replace=False), 0]
        for kind, probes in (("mated", mated), ("non-mated", population.draw(_PROBES, 1, seed=13)[:, 0] @ turn)):
            exact = _decided(*faiss.knn(probes, templates, 1), threshold)
            found = [index.search(probe[None], 1)[0] for probe in probes]
            squared = np.array([ranked.distances[:1] ** 2 for ranked in found])
            decided = _decided(squared, np.array([ranked.ids[:1] for ranked in found]), threshold)
            print(
                f"later people of {name}, {kind}: {100 * (decided == exact).mean():.2f} % of {len(probes)} decisions "
                f"as the exact ones, {100 * (exact >= 0).mean():.1f} % named",
                flush=True,
            )


def _grown(templates: NDArray[np.float32], first: int, name: str) -> SegmentedIndex:
    """An index that was trained with the first templates, and took the others in steps."""
    index = SegmentedIndex(_DIMENSION, compress_from=COMPRESS_FROM["auto"])
    ends = [first, *range(first + 5000, len(templates), 5000), len(templates)]
    start = 0
    for end in track(ends, name):
        index.add(np.arange(start, end), templates[start:end])
        while index.maintain():
            pass
        start = end
    return index


def _decided(squared: NDArray[np.float32], ids: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Template of each probe (Q, 1), or -1 for unknown."""
    return np.where(np.sqrt(squared[:, 0]) <= threshold, ids[:, 0], -1)


if __name__ == "__main__":
    main()
