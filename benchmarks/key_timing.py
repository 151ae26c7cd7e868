"""Time what a near miss of a key takes, beside a far one and an unknown id: does the time tell how near it was?

    python benchmarks/key_timing.py [--rounds 20000]

Each kind is timed once a round, with keys made anew before and in an order drawn anew, so that what the machine does
meanwhile, and where a key happens to lie in memory, meet all alike: one call of the comparison, and one of the whole
gate with its look into the database. For each kind it prints the median with the 95 % confidence interval of its
order statistics, and the probability that Mann and Whitney's rank test finds a difference at least as large from the
first kind where there is none.
"""

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.access.errors import Unauthorized
from app.access.gate import Gate
from app.access.key_store import KeyStore
from app.access.keys import KeyHasher, Scope, new_key, new_key_id
from app.access.pepper import Pepper
from app.gallery.journal import NoJournal
from app.gallery.sql.database import open_engine
from app.gallery.sql.migrations import migrate
from app.gallery.tables import now

_RIGHT = {
    "no character right": 0,
    "no character right, as a control": 0,
    "half of them right": 32,
    "all but the last right": 63,
}
_UNKNOWN = "an id that there is not"
KINDS = (*_RIGHT, _UNKNOWN)


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
        known = {kind: None if kind == _UNKNOWN else stored for kind in KINDS}

        def compare(kind: str, wrong: str) -> bool:
            return hasher.matches(wrong, known[kind], at=at)

        def knock(_kind: str, wrong: str) -> bool:
            try:
                gate.admit(f"Bearer {wrong}", address="203.0.113.5", request_id="")
            except Unauthorized:
                return False
            return True

        print("| wrong key | compared: median (95 %) in µs | p | whole gate: median (95 %) in µs | p |")
        print("| --- | --- | --- | --- | --- |")
        compared, gated = _timed(compare, key, rounds), _timed(knock, key, rounds // 10)
        first = KINDS[0]
        for kind in KINDS:
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


def _wrong(key: str, kind: str) -> str:
    """A wrong key of a kind; what is wrong about it is drawn anew."""
    if kind == _UNKNOWN:
        return new_key(new_key_id())
    right = key.rindex("_") + 1 + _RIGHT[kind]
    return key[:right] + "".join(random.choice("0123456789abcdef".replace(digit, "")) for digit in key[right:])


def _timed(call: Callable[[str, str], bool], key: str, rounds: int) -> dict[str, NDArray[np.int64]]:
    """Nanoseconds of each kind in each round, after a tenth that is thrown away."""
    order, times = list(KINDS), {kind: np.empty(rounds, np.int64) for kind in KINDS}
    for number in range(-rounds // 10, rounds):
        wrong = {kind: _wrong(key, kind) for kind in KINDS}
        random.shuffle(order)
        call(KINDS[0], wrong[KINDS[0]])  # the first call of a round finds the processor's caches full of other things
        for kind in order:
            begin = time.perf_counter_ns()
            taken = call(kind, wrong[kind])
            end = time.perf_counter_ns()
            if taken:
                raise AssertionError(kind)
            if number >= 0:
                times[kind][number] = end - begin
    return times


def _median(times: NDArray[np.int64]) -> str:
    """The median and its interval, from the binomial distribution of how many values lie below it."""
    ordered, half = np.sort(times) / 1000, 0.98 * math.sqrt(len(times))
    low, high = (ordered[round(len(times) / 2 + sign * half)] for sign in (-1, 1))
    return f"{np.median(ordered):.2f} ({low:.2f} to {high:.2f})"


def _rank_test(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Two-sided p of the Mann-Whitney U test, by its normal approximation with the correction for ties."""
    both = np.concatenate([first, second])
    _values, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m, total = len(first), len(second), len(both)
    u = ranks[:n].sum() - n * (n + 1) / 2
    ties = float((counts.astype(float) ** 3 - counts).sum()) / (total * (total - 1))
    deviation = math.sqrt(n * m / 12 * (total + 1 - ties))
    return math.erfc(abs(u - n * m / 2) / deviation / math.sqrt(2))


if __name__ == "__main__":
    main()
