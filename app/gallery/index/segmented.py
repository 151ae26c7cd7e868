"""The index that galleries are searched with: exact while it is small, compressed and re-ranked when it has grown."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from app.gallery.index import snapshot
from app.gallery.index.codebook import LEAST_TRAINING, Codebook, can_code
from app.gallery.index.contents import Contents, Parts
from app.gallery.index.protocol import RankedTemplates, checked
from app.gallery.index.rows import Rows
from app.gallery.index.search import rank
from app.gallery.index.upkeep import Limits, Work, build, due, training_sample

_STANDARD = Limits()
_LONG = 16  # times as much as is due
_PIECES = 16  # of work that a snapshot waits for at most


class SegmentedIndex:
    """Segments of compressed rows, and a tail of blocks with what was added since, which is searched exactly.

    Codes of four bits propose rows, and exact distances of the proposed ones decide. Nobody who searches waits: readers
    take no lock. Writers take a short one, and `maintain` makes segments out of blocks, and larger ones out of small
    ones, beside what is searched, and switches.

    Args:
        dimension: D.
        compress_from: number of templates from which rows are compressed, at least `LEAST_TRAINING`; none: never,
            nor where codes do not fit the dimension (`can_code`).
        half: keep compressed rows as float16. Their distances, and what `vectors` answers, are those of the rounded
            embeddings then, so the caller decides on the embeddings that it reads from elsewhere.
        limits: when work is due.
    """

    def __init__(
        self, dimension: int, *, compress_from: int | None, half: bool = False, limits: Limits = _STANDARD
    ) -> None:
        compress_from = compress_from if can_code(dimension) else None
        self._dimension = dimension
        self._compress_from = None if compress_from is None else max(compress_from, LEAST_TRAINING)
        self._half = half and compress_from is not None
        self._limits = limits
        self._codebook: Codebook | None = None
        self._contents = Contents(dimension, limits.block)
        self._maintaining = threading.Lock()

    @property
    def dimension(self) -> int:
        """D."""
        return self._dimension

    @property
    def exact_vectors(self) -> bool:
        """Whether embeddings are kept as they were added, so that distances are exact.

        With `half` they are until codes are trained, which comes before the first rounded row.
        """
        return not (self._half and self.compressed)

    @property
    def compressed(self) -> bool:
        """Whether a codebook is trained."""
        return self._codebook is not None

    @property
    def memory(self) -> int:
        """Bytes that embeddings, ids, marks and codes take, in this process or in files that it has mapped."""
        return sum(rows.memory for rows in self._contents.parts.rows)

    @property
    def neglected(self) -> bool:
        """Whether so much is due that nobody can have called `maintain` for long."""
        parts, limits = self._contents.parts, self._limits
        new = sum(block.rows.size for block in parts.blocks)
        dead = sum(segment.rows.dead for segment in parts.segments)
        return new > _LONG * limits.tail or dead > 2 * limits.dead_share * max(len(self), _LONG * limits.least_dead)

    def __len__(self) -> int:
        """Number of templates."""
        return self._contents.size

    def ids(self) -> NDArray[np.int64]:
        """Ids of all templates, ascending."""
        return self._contents.consistently(lambda parts: _living_ids(parts.rows), _are_distinct)

    def add(self, ids: NDArray[np.int64], embeddings: NDArray[np.float32]) -> None:
        """As `TemplateIndex.add`."""
        self._contents.add(np.asarray(ids, np.int64), checked(embeddings, self._dimension, count=len(ids)))

    def remove(self, ids: NDArray[np.int64]) -> int:
        """As `TemplateIndex.remove`."""
        return self._contents.remove(np.asarray(ids, np.int64))

    def search(self, probes: NDArray[np.float32], count: int, *, thorough: bool = False) -> list[RankedTemplates]:
        """As `TemplateIndex.search`; see `half` for the distances."""
        vectors = checked(probes, self._dimension)
        wanted = min(count, self._contents.size)
        with _one_thread():  # a probe is too short a piece of work to be shared out
            return self._contents.consistently(
                lambda parts: rank(parts.rows, vectors, count, thorough=thorough),
                lambda found: all(len(ranked.ids) >= wanted and _are_distinct(np.sort(ranked.ids)) for ranked in found),
            )

    def vectors(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `TemplateIndex.vectors`; see `half`."""
        wanted = np.asarray(ids, np.int64)
        return self._contents.consistently(lambda parts: self._vectors(parts, wanted))

    def maintain(self) -> bool:
        """Do one piece of the work that is due, and say whether there was one; one thread at a time does it.

        Searches, additions and removals go on meanwhile. FAISS runs on one thread of the processor.
        """
        with self._maintaining, _one_thread():
            return self._maintain()

    def rewrite_erased(self) -> None:
        """Write anew what holds something of the templates removed so far in its codes or saved files.

        A new snapshot in the place of the old one holds nothing of them then. Each segment is written once: what is
        removed meanwhile is the next one's business, so that this ends.
        """
        with self._maintaining, _one_thread():
            for segment in self._contents.parts.segments:
                if segment.left_on_disk:
                    self._build(Work((segment,), ()))

    def save(self, folder: Path) -> None:
        """Write a snapshot into an empty folder; afterwards the segments are mapped from its files.

        It holds the index as it is at one moment near the end; additions, removals and searches go on meanwhile. What
        is due is done first, but for what writers add faster than that goes. Files of segments that were saved or
        loaded before are linked, so that only new ones are written. The caller names the folder by its final name when
        it is complete, and tells it to `moved`.

        Raises:
            OSError: the disk is full or does not take it; the index is as it was.
        """
        with self._maintaining, _one_thread():
            for _ in range(_PIECES):  # what becomes due meanwhile goes into the tail
                if not self._maintain():
                    break
            contents = self._contents
            segments = contents.parts.segments
            with contents.writing:  # whoever removes holds it until the rows are written over
                erased = [segment.rows.dead for segment in segments]
            saved = [snapshot.write_segment(folder, *each) for each in zip(segments, erased, strict=True)]
            with contents.writing:
                alive = [segment.rows.alive.copy() for segment in segments]
                tail = _copy_of([block.rows for block in contents.parts.blocks], self._dimension)
            written = list(zip(saved, alive, strict=True))
            snapshot.write_state(folder, self._dimension, self._codebook, written, tail)
            mapped = [snapshot.map_rows(files, self._dimension) for files in saved]
            with contents.writing:
                for segment, files, rows in zip(segments, saved, mapped, strict=True):
                    segment.move_to(*rows)
                    segment.saved = files

    def moved(self, before: Path, now: Path) -> None:
        """The folder of a snapshot was renamed: the next one links the files from where they are now."""
        with self._contents.writing:
            for segment in self._contents.parts.segments:
                if segment.saved is not None and segment.saved.folder == before:
                    segment.saved = replace(segment.saved, folder=now)

    @classmethod
    def load(
        cls,
        folder: Path,
        dimension: int,
        *,
        compress_from: int | None,
        half: bool = False,
        limits: Limits = _STANDARD,
    ) -> "SegmentedIndex":
        """The index of a snapshot, whose embeddings stay in its files.

        Processes that load one snapshot share the memory of what they do not change.

        Args:
            folder: that `save` wrote into.
            dimension: D, and so on: as for a new index. What was compressed stays so only if it may be.

        Raises:
            SnapshotDamaged: a file is missing, has another digest than it was written with, or is of another kind.
            OSError: a file cannot be read, though nothing is known to be wrong with it.
        """
        index = cls(dimension, compress_from=compress_from, half=half, limits=limits)
        held = snapshot.read(folder, dimension, half=index._half)
        if index._compress_from is not None:
            index._codebook = held.codebook
        else:
            for segment in held.segments:
                segment.rows.codes = None
        index._contents.start_with(held.segments)
        index._contents.add(held.tail.ids, held.tail.vectors)
        return index

    def _maintain(self) -> bool:
        contents = self._contents
        if self._codebook is None and self._compress_from is not None and contents.size >= self._compress_from:
            sample = training_sample(contents.parts.rows)
            if len(sample) < LEAST_TRAINING:
                return False
            self._codebook = Codebook.train(sample)
            return True
        codes = self._codebook is not None
        parts = contents.parts
        work = due(parts.segments, parts.blocks, codes=codes, limits=self._limits)
        if work is None:
            return False
        self._build(work)
        return True

    def _build(self, work: Work) -> None:
        """Make one segment of some parts, beside what is searched, and switch."""
        with self._contents.building(work.segments, work.blocks) as switch:
            sources = Parts(work.segments, work.blocks).rows
            half = self._half and self.compressed
            switch(build(sources, self._codebook, half=half, listed_from=self._limits.listed))

    def _vectors(self, parts: Parts, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.full((len(ids), self._dimension), np.nan, np.float32)
        for part in parts.all:
            rows = part.find(ids)
            places = np.flatnonzero(rows >= 0)
            if not len(places):
                continue
            own = part.rows.gather(rows[places])
            own[~part.rows.alive.take(rows[places])] = np.nan  # asked after the rows were read, see `Rows`
            found[places] = own
        return found


def _living_ids(parts: Sequence[Rows]) -> NDArray[np.int64]:
    living = [rows.ids[rows.living_rows()] for rows in parts]
    return np.sort(np.concatenate([*living, np.empty(0, np.int64)]))


def _are_distinct(ordered: NDArray[np.int64]) -> bool:
    return bool(np.all(ordered[1:] > ordered[:-1]))


def _copy_of(parts: Sequence[Rows], dimension: int) -> snapshot.Tail:
    """All living rows."""
    living = [rows.living_rows() for rows in parts]
    ids = np.concatenate([np.empty(0, np.int64), *(rows.ids[own] for rows, own in zip(parts, living, strict=True))])
    own_rows = [rows.gather(own) for rows, own in zip(parts, living, strict=True)]
    vectors = np.concatenate([np.empty((0, dimension), np.float32), *own_rows])
    order = np.argsort(ids)
    return snapshot.Tail(ids[order], vectors[order])


class _one_thread:  # noqa: N801 - used as a function; a generator would take longer than what it does
    """FAISS on one thread of the processor, as set for the calling thread alone."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = faiss.omp_get_max_threads()
        if self._before != 1:
            faiss.omp_set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self._before != 1:
            faiss.omp_set_num_threads(self._before)
