"""What `index.py` measures of one engine at one size."""

import ctypes
import gc
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from index_changes import REST_SECONDS, beside, beside_all_changes, writing
from index_data import TEMPLATES, Population
from index_engines import DIMENSION, ENGINES, Engine, Ids, Ours, Vectors
from index_servers import MilvusServer, Postgresql
from numpy.typing import NDArray
from withheld import Watched, watching

from app.gallery.index import use_no_huge_pages
from app.gallery.matching import DEFAULT_RULE, subject_distances
from app.gallery.policy import DEFAULT_POLICY, threshold_for
from model.card import read_card
from model.pipeline import WEIGHTS

COUNT = 72  # templates that the default rule asks an index for
_SHORTLIST = 32  # subjects that the default rule compares
_PEOPLE = 20_000  # drawn at a time
_TIMED, _TIMED_SECONDS = 20, 6.0  # as many searches at least, and as long
_COMPARED_SECONDS = 30.0
_ON_DEVICE = 2**17  # templates that a device compares at a time
_BUSY_SECONDS = 10.0
_CHANGED = 1000
STOP = 0.02
"""Seconds more than the median alone from which a search counts as stopped."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """The files of one size: templates, probes (the first half mated), and what the exact index decides on them."""

    folder: Path
    size: int

    def array(self, name: str) -> NDArray[np.float32]:
        """`templates` (N, D), `probes` (Q, D), or `fresh` (M, D): templates of others."""
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r"))

    @property
    def decided(self) -> NDArray[np.int64]:
        """Subject of each probe, or -1 for unknown, (Q,)."""
        return np.asarray(np.load(self.folder / "decided.npy"))

    @property
    def threshold(self) -> float:
        """Distance of the default policy for so many subjects, by the extractor's card."""
        return threshold_for(DEFAULT_POLICY, read_card(WEIGHTS / "sface").thresholds, self.size // TEMPLATES)


def draw(gallery: Gallery, probes: int, device: str = "") -> None:
    """Write the files of a gallery with so many mated probes, or one of each person, and as many non-mated ones.

    The exact index's decisions, too, which take a core many minutes for ten million templates; with a device,
    torch's name of it, a product of matrices there.
    """
    population, people = Population.fitted(), -(-gallery.size // TEMPLATES)
    shape = people * TEMPLATES, DIMENSION
    templates = np.lib.format.open_memmap(gallery.folder / "templates.npy", "w+", np.float32, shape)
    mated, seed = [], 10
    for start in range(0, people, _PEOPLE):
        faces = population.draw(min(_PEOPLE, people - start), TEMPLATES + 1, seed=(seed := seed + 1))
        templates[start * TEMPLATES : (start + len(faces)) * TEMPLATES] = faces[:, 1:].reshape(-1, DIMENSION)
        mated.append(faces[:: max(1, people // probes), 0])
    own = np.concatenate(mated)
    own = own[np.random.default_rng(0).permutation(len(own))[:probes]]
    strangers = population.draw(len(own), 1, seed=1)[:, 0]
    np.save(gallery.folder / "probes.npy", np.concatenate([own, strangers]))
    np.save(gallery.folder / "fresh.npy", population.draw(20_000, 1, seed=2)[:, 0])
    exact = partial(_nearest_on, device) if device else lambda *arrays: faiss.knn(*arrays)[1]
    nearest = exact(gallery.array("probes"), np.asarray(templates), COUNT)
    np.save(gallery.folder / "decided.npy", decide(gallery, np.arange(len(nearest)), nearest))


def _nearest_on(device: str, probes: Vectors, templates: Vectors, count: int) -> Ids:
    """The nearest templates (Q, count) of each probe (Q, D), nearest first, by torch on a device, in float32."""
    import torch

    asked = torch.from_numpy(np.array(probes)).to(device)
    distances = torch.full((len(asked), count), torch.inf, device=device)
    nearest = torch.full((len(asked), count), -1, dtype=torch.int64, device=device)
    for start in range(0, len(templates), _ON_DEVICE):
        some = torch.from_numpy(np.array(templates[start : start + _ON_DEVICE])).to(device)
        found = (some.square().sum(1) - 2 * asked @ some.T).topk(min(count, len(some)), largest=False)
        both = torch.cat([distances, found.values], 1), torch.cat([nearest, found.indices + start], 1)
        distances, order = both[0].topk(count, largest=False)
        nearest = both[1].gather(1, order)
    return np.asarray(nearest.cpu().numpy())


def decide(gallery: Gallery, numbers: NDArray[np.intp], nearest: Ids) -> NDArray[np.int64]:
    """The subject, or -1, that the default rule names for some probes from their nearest templates (Q, K)."""
    templates, probes, threshold = gallery.array("templates"), gallery.array("probes"), gallery.threshold
    decided = np.full(len(numbers), -1, np.int64)
    for place, (number, ids) in enumerate(zip(numbers, nearest, strict=True)):
        subjects, distances = compared(probes[number], templates, ids)
        if distances[0] <= threshold:
            decided[place] = subjects[0]
    return decided


def compared(probe: Vectors, templates: Vectors, nearest: Ids) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The subjects (S,) of a probe's nearest templates (K,) by the default rule, nearest first, and their distances."""
    subjects = np.array(list(dict.fromkeys((nearest[nearest >= 0] // TEMPLATES).tolist()))[:_SHORTLIST], np.int64)
    rows = (subjects[:, None] * TEMPLATES + np.arange(TEMPLATES)).ravel()
    distances = subject_distances(probe, templates[rows], np.arange(0, len(rows), TEMPLATES), DEFAULT_RULE)
    order = distances.argsort(kind="stable")
    return subjects[order], distances[order]


def measure(name: str, gallery: Gallery, build_cores: int = 1) -> dict[str, float]:
    """All figures of an engine, in a process of its own; those that it does not have are left out.

    On one core, but for the building of FAISS's own indexes, pgvector's and of Milvus's server, which may have the
    first so many.
    """
    cores, own = build_cores if ENGINES[name].built_on_more else 1, os.sched_getaffinity(0)
    if cores > 1:
        os.sched_setaffinity(0, range(cores))
    faiss.omp_set_num_threads(cores)
    templates, probes, fresh = gallery.array("templates"), gallery.array("probes"), gallery.array("fresh")
    ids = np.arange(len(templates))
    engine = ENGINES[name].make()
    try:
        if isinstance(engine, Ours):
            use_no_huge_pages()  # as the service does
        if isinstance(engine, Postgresql):
            engine.build_cores = cores
        before, start = _anonymous_memory(), time.perf_counter()
        engine.build(ids, templates)
        figures = {"build_s": time.perf_counter() - start, "build_cores": float(cores)}
        faiss.omp_set_num_threads(1)
        if cores > 1:
            _give([os.getpid(), *(engine.processes() if isinstance(engine, Postgresql | MilvusServer) else ())], own)
        gc.collect()
        held = engine.bytes_held()
        figures["bytes"] = (_anonymous_memory() - before if held is None else held) / len(templates)
        figures |= _search_times(engine, probes)
        figures |= _agreement(engine, gallery)
        if isinstance(engine, Ours):
            figures |= _busy(engine, templates, probes, fresh)
        added = np.arange(len(templates) + 10**8, len(templates) + 10**8 + _CHANGED)
        start = time.perf_counter()
        engine.add(added, fresh[-_CHANGED:])
        figures["add_s"] = time.perf_counter() - start
        if engine.removes:
            start = time.perf_counter()
            engine.remove(np.random.default_rng(0).choice(ids, _CHANGED, replace=False))
            figures["remove_s"] = time.perf_counter() - start
        if isinstance(engine, Ours):
            with tempfile.TemporaryDirectory(dir=gallery.folder) as folder:
                figures["save_s"], figures["restart_s"] = engine.restart(Path(folder), probes[:1])
        return figures
    finally:
        engine.close()


def _give(processes: list[int], cores: set[int]) -> None:
    """Let all threads of processes have these cores from now on, and no others."""
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            with suppress(ProcessLookupError):  # it ended
                os.sched_setaffinity(int(thread.name), cores)


def _anonymous_memory() -> int:
    """Bytes of the process that are no mapped files, without what the allocator keeps for later."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


@dataclass(frozen=True, slots=True)
class _Times:
    """Searches one after the other: the moments between them, (S + 1,), in seconds of `time.perf_counter`."""

    marks: NDArray[np.float64]

    @property
    def wall(self) -> NDArray[np.float64]:
        """Seconds of each, (S,)."""
        return np.diff(self.marks)

    def given(self, watched: Watched) -> NDArray[np.float64]:
        """Seconds of each that the machine gave to this core, (S,)."""
        return self.wall - watched.withheld(self.marks)

    def quantile(self, share: float) -> float:
        """The time within which such a share of the searches was done."""
        return float(np.quantile(self.wall, share))


def _timed(search: Callable[[Vectors], object], probes: Vectors, going: Callable[[int, float], bool]) -> _Times:
    """Search one probe after the other as long as it is going on by number and time."""
    marks = [time.perf_counter()]
    while going(len(marks) - 1, marks[-1] - marks[0]):
        search(probes[(len(marks) - 1) % len(probes)][None])
        marks.append(time.perf_counter())
    return _Times(np.array(marks))


def _search_times(engine: Engine, probes: Vectors) -> dict[str, float]:
    mixed = np.ascontiguousarray(probes[np.random.default_rng(0).permutation(len(probes))])
    engine.search(mixed[-3:], COUNT)
    seconds = _timed(
        lambda probe: engine.search(probe, COUNT),
        mixed,
        lambda done, passed: done < _TIMED or passed < _TIMED_SECONDS,
    )
    return {"p50_s": seconds.quantile(0.5), "p99_s": seconds.quantile(0.99)}


def _agreement(engine: Engine, gallery: Gallery) -> dict[str, float]:
    """Share of probes on which the engine's nearest templates lead to the exact index's decision."""
    probes, decided = gallery.array("probes"), gallery.decided
    half, start = len(probes) // 2, time.perf_counter()
    same: dict[str, list[NDArray[np.bool_]]] = {"mated": [], "non_mated": []}
    for first in range(0, half, 16):
        for kind, offset in (("mated", 0), ("non_mated", half)):
            numbers = np.arange(first, min(first + 16, half)) + offset
            found = decide(gallery, numbers, engine.search(np.ascontiguousarray(probes[numbers]), COUNT))
            same[kind].append(found == decided[numbers])
        if time.perf_counter() - start > _COMPARED_SECONDS:
            break
    agreed = {kind: np.concatenate(parts) for kind, parts in same.items()}
    figures = {f"{kind}_agreement": float(part.mean()) for kind, part in agreed.items()}
    named = {"mated_named": float((decided[:half] >= 0).mean()), "non_mated_named": float((decided[half:] >= 0).mean())}
    return {**figures, **named, "compared": float(len(agreed["mated"]))}


def _busy(engine: Ours, templates: Vectors, probes: Vectors, fresh: Vectors) -> dict[str, float]:
    """Search times alone, beside writers, and beside everything that an index does in the background.

    The core is watched, and a stop that the machine makes the watcher meets, too: what was withheld from the core is
    taken off each search that it met. Searches beside nothing follow for as long, after a rest in which the machine may
    deal with what the rounds let go of: what stops those, no change to the index does.
    """
    index, probes = engine.index, np.ascontiguousarray(probes[::7])

    def search(probe: Vectors) -> object:
        return index.search(probe, COUNT)

    gc.freeze()  # as the service does
    with watching() as cores:
        alone = _timed(search, probes, lambda _, passed: passed < _BUSY_SECONDS / 2)
        with beside(partial(writing, index, fresh, len(templates))):
            busy = _timed(search, probes, lambda _, passed: passed < _BUSY_SECONDS)
        rounds = beside_all_changes(
            index, templates, fresh, lambda going: _timed(search, probes, lambda _, __: going())
        )
        time.sleep(REST_SECONDS)
        as_long = sum(one.wall.sum() for one in rounds)
        still = _timed(search, probes, lambda _, passed: passed < as_long)
    limit = alone.quantile(0.5) + STOP
    wall = np.concatenate([one.wall for one in rounds])
    figures = {
        "busy_p50_s": busy.quantile(0.5),
        "busy_p99_s": busy.quantile(0.99),
        "longest_alone_s": alone.wall.max(),
        "longest_busy_s": busy.wall.max(),
        "longest_upkeep_s": wall.max(),
        "rounds": float(len(rounds)),
        "upkeep_searches": float(len(wall)),
        "upkeep_stops": float((wall > limit).sum()),
        "still_searches": float(len(still.wall)),
        "longest_still_s": still.wall.max(),
        "still_stops": float((still.wall > limit).sum()),
    }
    if len(cores) == 1:
        (core,) = cores.values()
        given, still_given = np.concatenate([one.given(core) for one in rounds]), still.given(core)
        figures |= {
            "busy_p99_given_s": float(np.quantile(busy.given(core), 0.99)),
            "longest_given_s": given.max(),
            "given_stops": float((given > limit).sum()),
            "longest_still_given_s": still_given.max(),
            "still_given_stops": float((still_given > limit).sum()),
            "withheld_share": core.lost[-1] / (core.moments[-1] - core.moments[0]),
            "longest_pause_s": core.late.max(),
        }
    return figures
