"""What an index has to do beside being searched: to seal what is new, to merge, to compact, to erase."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.gallery.index.codebook import MOST_TRAINING, Codebook, Codes
from app.gallery.index.memory import room
from app.gallery.index.parts import Block, Segment
from app.gallery.index.rows import Rows

_CHUNK = 1024  # rows that one call to numpy or FAISS works on, which is for a millisecond or so


@dataclass(frozen=True, slots=True)
class Limits:
    """When work is due; all are numbers of rows, but for the factor and the share.

    Args:
        block: capacity of a block.
        tail: from so many new rows on they become a segment.
        merged: a new segment takes in every segment that is smaller than so many times its size.
        largest: no segment grows beyond, so that no merge takes long or much memory.
        dead_share: from this share of removed rows on a segment is written anew.
        least_dead: but not before there are so many of them.
        listed: from so many rows on a segment's codes lie in lists; to scan them all takes a tenth of a millisecond.
    """

    block: int = 65_536
    tail: int = 4096
    merged: int = 4
    largest: int = 2**21
    dead_share: float = 0.2
    least_dead: int = 1024
    listed: int = 2**16


@dataclass(frozen=True, slots=True)
class Work:
    """Segments and blocks whose living rows become one new segment."""

    segments: tuple[Segment, ...]
    blocks: tuple[Block, ...]


def due(segments: Sequence[Segment], blocks: Sequence[Block], *, codes: bool, limits: Limits) -> Work | None:
    """The most urgent work, or None.

    Args:
        segments: all there are, largest first.
        blocks: all there are.
        codes: whether segments have codes.
        limits: when work is due.
    """
    size = sum(block.rows.size for block in blocks)
    if size >= limits.tail:
        return _with_small_ones(segments, tuple(blocks), limits)
    for segment in segments:
        rows = segment.rows
        wanting = rows.dead >= max(limits.least_dead, limits.dead_share * rows.size) or not rows.living
        if wanting or (codes and rows.codes is None):
            return Work((segment,), ())
    return None


def _with_small_ones(segments: Sequence[Segment], blocks: tuple[Block, ...], limits: Limits) -> Work:
    size, taken, merged = 0, list[Block](), list[Segment]()
    for block in blocks:
        if not block.rows.size:  # which stays the newest: to close it, too, would leave one more at every failure
            continue
        if taken and size + block.rows.living > limits.largest:
            break
        taken.append(block)
        size += block.rows.living
    for segment in reversed(segments):  # smallest first
        if segment.rows.size >= limits.merged * size or size + segment.rows.living > limits.largest:
            break
        merged.append(segment)
        size += segment.rows.living
    return Work(tuple(merged), tuple(taken))


def build(sources: Sequence[Rows], codebook: Codebook | None, *, half: bool, listed_from: int) -> Segment | None:
    """A new segment of all living rows of the sources, or None if there are none.

    Nothing that is searched changes meanwhile, and no step holds the interpreter for more than a few milliseconds.
    Rows that are removed while it runs may be in it or not: the caller removes them again.

    Args:
        sources: no id is alive in two of them.
        codebook: makes codes; none: no codes.
        half: keep the embeddings as float16.
        listed_from: rows from which the codes lie in lists.
    """
    sources = sorted(sources, key=lambda one: int(one.ids[0]))
    living = [source.living_rows() for source in sources]
    count = sum(map(len, living))
    if not count:
        return None
    ids, done = room(count, 1, np.int64).reshape(count), 0
    for source, rows in zip(sources, living, strict=True):
        ids[done : done + len(rows)] = source.ids[rows]
        done += len(rows)
    ranks = _ranks(ids)
    vectors, done = room(count, sources[0].vectors.shape[1], np.float16 if half else np.float32), 0
    vectors.fill(0)  # takes the memory without the interpreter's lock
    for source, rows in zip(sources, living, strict=True):
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            places = slice(done, done + len(chunk))
            vectors[places if ranks is None else ranks[places]] = source.vectors[chunk]
            done += len(chunk)
    ids.sort()
    built = Rows(vectors, ids, np.ones(count, np.bool_), None, size=count)
    if codebook is not None:
        built.codes = _encode(built, codebook, listed_from)
    return Segment(built)


def _ranks(ids: NDArray[np.int64]) -> NDArray[np.intp] | None:
    """The place of each id among all; None where they ascend already, as where newer templates have higher ids."""
    if np.all(ids[:-1] < ids[1:]):
        return None
    order = np.argsort(ids, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def _encode(rows: Rows, codebook: Codebook, listed_from: int) -> Codes:
    if rows.size >= listed_from:
        codes = codebook.no_listed_codes(training_sample([rows]), rows.size)
    else:
        codes = codebook.no_codes()
    for start in range(0, rows.size, _CHUNK):
        codes.add(rows.vectors[start : start + _CHUNK])
    return codes


def training_sample(sources: Sequence[Rows]) -> NDArray[np.float32]:
    """Some living embeddings of all sources, the same ones for the same rows, without those removed meanwhile."""
    living = [source.living_rows() for source in sources]
    ends = np.cumsum([len(rows) for rows in living])
    random = np.random.default_rng(0)
    chosen = np.sort(random.choice(ends[-1], min(ends[-1], MOST_TRAINING), replace=False))
    pieces = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    starts = ends - [len(rows) for rows in living]
    sample = []
    for source, rows, piece, start in zip(sources, living, pieces, starts, strict=True):
        own = rows[piece - start]
        embeddings = source.gather(own)
        sample.append(embeddings[source.alive.take(own)])  # asked after the rows were read, see `Rows`
    return np.concatenate(sample)
