"""Who is named as a gallery grows: enrolled people and strangers, at the default policy and at one fixed distance.

    taskset -c 0 python benchmarks/growing.py [--subjects 1000,10000,100000,333000]

People are drawn as `index_data.py` says, three templates each. Two more photos of each of the first thousand are the
mated probes, one photo each of two thousand others the strangers; both are the same at every size. Each probe is
compared with every subject by the service's default rule. The fixed distance is that of FMR 1e-5 on the card.
"""

import argparse

import numpy as np
from index_data import Population
from numpy.typing import NDArray

from app.gallery.matching import DEFAULT_RULE
from app.gallery.policy import DEFAULT_POLICY, distance_at, threshold_for
from model.card import read_card
from model.pipeline import WEIGHTS

_EACH, _PROBES_EACH, _STRANGERS = 3, 2, 2000
_AT_ONCE = 1000  # people that are drawn and compared together
_FIXED_FMR = 1e-5

Cosines = NDArray[np.float32]


def main() -> None:
    """Print a row of a Markdown table for each size, as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", default="1000,10000,100000,333000", help="sizes, each a multiple of 1,000")
    sizes = sorted(int(size) for size in parser.parse_args().subjects.split(","))
    if sizes[0] < _AT_ONCE or any(size % _AT_ONCE for size in sizes):
        parser.error(f"--subjects: each size is a multiple of {_AT_ONCE}")
    assert DEFAULT_RULE == "both"
    table = read_card(WEIGHTS / "sface").thresholds
    fixed = distance_at(_FIXED_FMR, table)
    population = Population.fitted()
    first = population.draw(_AT_ONCE, _EACH + _PROBES_EACH, seed=_seed(0))
    mated, own = first[:, _EACH:].reshape(-1, first.shape[2]), np.repeat(np.arange(_AT_ONCE), _PROBES_EACH)
    probes = np.concatenate([mated, population.draw(_STRANGERS, 1, seed=1)[:, 0]])
    nearest, who = np.full(len(probes), -1, np.float32), np.full(len(probes), -1, np.int64)
    print("| subjects | threshold | named rightly | unknown | named as another | strangers named | fixed: ", end="")
    print("unknown | strangers named |\n| ---: |" + 7 * " ---: |")
    for start in range(0, sizes[-1], _AT_ONCE):
        people = first[:, :_EACH] if start == 0 else population.draw(_AT_ONCE, _EACH, seed=_seed(start))
        found = compared(probes, people)
        best = found.argmax(axis=1)
        cosines = found[np.arange(len(probes)), best]
        nearer = cosines > nearest
        nearest[nearer], who[nearer] = cosines[nearer], start + best[nearer]
        if (subjects := start + _AT_ONCE) in sizes:
            distances, right = np.sqrt(2 - 2 * nearest), who[: len(own)] == own
            shares = []
            for limit in (threshold_for(DEFAULT_POLICY, table, subjects), fixed):
                named, strangers = distances[: len(own)] <= limit, distances[len(own) :] <= limit
                shares.append([(named & right).mean(), (~named).mean(), (named & ~right).mean(), strangers.mean()])
            ours, theirs = shares
            cells = [f"{100 * share:.2f} %" for share in (*ours, theirs[1], theirs[3])]
            limit = threshold_for(DEFAULT_POLICY, table, subjects)
            print(f"| {subjects:,} | {limit:.4f} | {' | '.join(cells)} |", flush=True)


def compared(probes: NDArray[np.float32], people: NDArray[np.float32]) -> Cosines:
    """Cosines (Q, P) of probes (Q, D) and people (P, T, D) by the rule `both`.

    That is the mean of the cosine to the nearest template and of the one to the normalised mean of all.
    """
    count, each, dimension = people.shape
    best = (probes @ people.reshape(-1, dimension).T).reshape(len(probes), count, each).max(axis=2)
    means = people.sum(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray((best + probes @ means.T) / 2, np.float32)


def _seed(start: int) -> int:
    return 10 + start // _AT_ONCE


if __name__ == "__main__":
    main()
