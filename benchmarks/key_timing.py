"""Time what a near miss of a key takes, beside a far one and an unknown id: does the time tell how near it was?

    python benchmarks/key_timing.py [--rounds 20000]

Each kind is timed once a round, in an order drawn anew, so that what the machine does meanwhile meets all alike: one
call of the comparison, and one of the whole gate with its look into the database. For each kind it prints the median
with the 95 % confidence interval of its order statistics, and the probability that Mann and Whitney's rank test finds a
difference at least as large from the first kind where there is none.
"""

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.access.errors import Unauthorized
from app.access.gate import Gate
from app.access.key_store import KeyStore
from app.access.keys import KeyHasher, Scope, new_key, new_key_id
from app.access.pepper import Pepper
from app.gallery.database import open_engine
from app.gallery.journal import NoJournal
from app.gallery.migrations import migrate
from app.gallery.tables import now


def main() -> None:
    """Print a row for each kind of wrong key."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20_000)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(f"sqlite:///{Path(folder).as_posix()}/keys.db", timeout=10)
        migrate(engine)
        hasher = KeyHasher(Pepper("x" * 32))
        keys = KeyStore(engine, hasher, NoJournal())
        made, key = keys.create("target", [Scope.READ])
        stored, gate, at = keys.find(made.id), Gate(keys, hasher, None), now()
        wrong = _wrong(key)
        known = {kind: stored if text.startswith(f"fg_{made.id}") else None for kind, text in wrong.items()}

        def compare(kind: str) -> None:
            if hasher.matches(wrong[kind], known[kind], at=at):
                raise AssertionError(kind)

        def knock(kind: str) -> None:
            try:
                gate.admit(f"Bearer {wrong[kind]}", address="203.0.113.5", request_id="")
            except Unauthorized:
                return
            raise AssertionError(kind)

        print("| wrong key | compared: median (95 %) in µs | p | whole gate: median (95 %) in µs | p |")
        print("| --- | --- | --- | --- | --- |")
        compared, gated = _timed(compare, wrong, rounds), _timed(knock, wrong, rounds // 10)
        first = next(iter(wrong))
        for kind in wrong:
            cells = [
                cell
                for times in (compared, gated)
                for cell in (
                    _median(times[kind]),
                    "" if kind == first else f"{_rank_test(times[first], times[kind]):.2f}",
                )
            ]
            print(f"| {kind} | {' | '.join(cells)} |")
        engine.dispose()


def _wrong(key: str) -> Mapping[str, str]:
    """Wrong keys by what is right about them."""
    start = key.rindex("_") + 1

    def differs_from(place: int) -> str:
        rest = "".join("1" if digit == "0" else "0" for digit in key[place:])
        return key[:place] + rest

    return {
        "no character right": differs_from(start),
        "half of them right": differs_from(start + 32),
        "all but the last right": differs_from(len(key) - 1),
        "an id that there is not": new_key(new_key_id()),
    }


def _timed(call: Callable[[str], None], kinds: Mapping[str, str], rounds: int) -> dict[str, NDArray[np.int64]]:
    """Nanoseconds of each kind in each round, after a tenth that is thrown away."""
    order, times = list(kinds), {kind: np.empty(rounds, np.int64) for kind in kinds}
    for number in range(-rounds // 10, rounds):
        random.shuffle(order)
        for kind in order:
            begin = time.perf_counter_ns()
            call(kind)
            taken = time.perf_counter_ns() - begin
            if number >= 0:
                times[kind][number] = taken
    return times


def _median(times: NDArray[np.int64]) -> str:
    """The median and its interval, from the binomial distribution of how many values lie below it."""
    ordered, half = np.sort(times) / 1000, 0.98 * math.sqrt(len(times))
    low, high = (ordered[round(len(times) / 2 + sign * half)] for sign in (-1, 1))
    return f"{np.median(ordered):.2f} ({low:.2f} to {high:.2f})"


def _rank_test(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Two-sided p of the Mann-Whitney U test, by its normal approximation with the correction for ties."""
    both = np.concatenate([first, second])
    values, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m, total = len(first), len(second), len(both)
    u = ranks[:n].sum() - n * (n + 1) / 2
    ties = float((counts.astype(float) ** 3 - counts).sum()) / (total * (total - 1))
    deviation = math.sqrt(n * m / 12 * (total + 1 - ties))
    return math.erfc(abs(u - n * m / 2) / deviation / math.sqrt(2))


if __name__ == "__main__":
    main()
