"""Snapshots of an index on disk: files of segments that never change, what changes beside them, a table of digests."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from app.gallery.index.codebook import Codebook, Codes, codes_from
from app.gallery.index.memory import mapped
from app.gallery.index.parts import SavedFile, SavedSegment, Segment, read_through
from app.gallery.index.rows import Rows
from app.gallery.small_pieces import read_whole, write_whole
from model.replaced_file import flush_folder

TABLE = "index.json"
"""Name of the file that lists all others with their sizes and digests; it is written last."""

_FORMAT = 1
_PRECISIONS = tuple(np.dtype(one).str for one in (np.float32, np.float16))
_Marks = NDArray[np.bool_]
_Mapped = tuple[NDArray[np.float32] | NDArray[np.float16], NDArray[np.int64]]


class SnapshotDamaged(ValueError):
    """A snapshot cannot be used: a file is missing, was changed, or belongs to another kind of index."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What was not in a segment: ids (N,), ascending, and embeddings (N, D), float32."""

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Held:
    """What a snapshot holds; the segments' rows are mapped from its files."""

    codebook: Codebook | None
    segments: tuple[Segment, ...]
    tail: Tail


def write_segment(folder: Path, segment: Segment, erased: int) -> SavedSegment:
    """Link the files of what never changes from where they were saved last, or write them.

    Args:
        folder: of the snapshot.
        segment: which.
        erased: how many of its rows were written over, by now or before.
    """
    return _link(folder, segment.saved) or _write_segment(folder, segment, erased)


def write_state(
    folder: Path,
    dimension: int,
    codebook: Codebook | None,
    segments: Sequence[tuple[SavedSegment, _Marks]],
    tail: Tail,
) -> None:
    """Write what changes, and the table of all files last.

    Args:
        folder: with the files of the segments.
        dimension: D.
        codebook: of the codes, if there is one.
        segments: each as it was written, with the marks of its living rows.
        tail: the other rows.
    """
    described = []
    for saved, marks in segments:
        files = {**saved.files, "alive": _write(folder / f"{saved.name}.alive", np.packbits(marks))}
        described.append({**asdict(saved), "folder": None, "rows": len(marks), "files": _as_dicts(files)})
    files = {"ids": _write(folder / "tail.ids", tail.ids), "vectors": _write(folder / "tail.vectors", tail.vectors)}
    table: dict[str, Any] = {
        "format": _FORMAT,
        "dimension": dimension,
        "codebook": None,
        "segments": described,
        "tail": {"rows": len(tail.ids), "files": _as_dicts(files)},
    }
    if codebook is not None:
        table["codebook"] = asdict(_write(folder / "codebook", faiss.serialize_index(codebook.empty)))
    _write(folder / TABLE, np.frombuffer(json.dumps(table, indent=1).encode(), np.uint8))
    flush_folder(folder)


def map_rows(saved: SavedSegment, dimension: int) -> _Mapped:
    """Embeddings and ids of a saved segment, mapped so that changes stay in the process, and read once."""
    rows = saved.files["ids"].size // np.dtype(np.int64).itemsize
    vectors = mapped(saved.path("vectors"), rows, dimension, saved.precision)
    ids = mapped(saved.path("ids"), rows, 1, np.int64).reshape(rows)
    read_through(vectors)
    return vectors, ids


def read(folder: Path, dimension: int, *, half: bool) -> Held:
    """Read a snapshot; see `SegmentedIndex.load`.

    Raises:
        SnapshotDamaged: it is not whole, or of another kind.
        OSError: it cannot be read, though nothing is known to be wrong with it.
    """
    try:
        table = json.loads((folder / TABLE).read_bytes())
        if table["format"] != _FORMAT or table["dimension"] != dimension:
            raise SnapshotDamaged(f"{folder} is of another format or dimension")
        segments = tuple(_read_segment(folder, described, dimension, half=half) for described in table["segments"])
        rows, files = table["tail"]["rows"], _from_dicts(table["tail"]["files"])
        ids = _read(folder / "tail.ids", files["ids"]).view(np.int64)
        vectors = _read(folder / "tail.vectors", files["vectors"]).view(np.float32)
        tail = Tail(ids.reshape(rows), vectors.reshape(rows, dimension))
        codebook = None
        if table["codebook"] is not None:
            data = _read(folder / "codebook", SavedFile(**table["codebook"]))
            codebook = Codebook(_codes(data, 0, dimension))
    except SnapshotDamaged:
        raise
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SnapshotDamaged(f"{folder} cannot be read: {error}") from error
    return Held(codebook, segments, tail)


def _read_segment(folder: Path, described: dict[str, Any], dimension: int, *, half: bool) -> Segment:
    files, rows = _from_dicts(described["files"]), described["rows"]
    marks = _read(folder / f"{described['name']}.alive", files.pop("alive"))
    saved = SavedSegment(folder, described["name"], described["precision"], files, described["erased"])
    if saved.precision not in _PRECISIONS:
        raise SnapshotDamaged(f"{folder} holds embeddings of a precision {saved.precision!r}")
    for ending in ("ids", "vectors"):
        _check(saved.path(ending), files[ending])
    vectors, ids = map_rows(saved, dimension)
    if vectors.dtype == np.float16 and not half:
        raise SnapshotDamaged(f"{folder} holds embeddings of half precision")
    alive = np.unpackbits(marks, count=rows).astype(np.bool_)
    if not len(ids) == len(alive) == rows:
        raise SnapshotDamaged(f"{folder} holds {len(ids)} ids for {rows} rows")
    codes = _codes(_read(saved.path("codes"), files["codes"]), rows, dimension) if "codes" in files else None
    return Segment(Rows(vectors, ids, alive, codes, size=rows, dead=rows - int(alive.sum())), saved)


def _codes(data: NDArray[np.uint8], rows: int, dimension: int) -> Codes:
    codes = codes_from(data)
    if (codes.ntotal, codes.d) != (rows, dimension):
        raise SnapshotDamaged(f"the codes are not those of {rows} rows of {dimension} components")
    return codes


def _link(folder: Path, saved: SavedSegment | None) -> SavedSegment | None:
    """The segment in the new folder, or None where its files are not to be had."""
    if saved is None:
        return None
    linked = SavedSegment(folder, saved.name, saved.precision, saved.files, saved.erased)
    try:
        for ending in saved.files:
            try:
                os.link(saved.path(ending), linked.path(ending))
            except FileNotFoundError:
                raise
            except OSError:  # another disk, or one that knows no links
                shutil.copyfile(saved.path(ending), linked.path(ending))
                flush_folder(linked.path(ending))
    except FileNotFoundError:
        for ending in saved.files:
            linked.path(ending).unlink(missing_ok=True)
        return None
    return linked


def _write_segment(folder: Path, segment: Segment, erased: int) -> SavedSegment:
    rows = segment.rows
    # Codes still say something of a row whose embedding was written over.
    fresh = 0 if rows.codes is not None else erased
    gone = fresh if segment.saved is None else segment.saved.erased
    name = f"segment-{uuid.uuid4().hex[:16]}"
    files = {
        "ids": _write(folder / f"{name}.ids", rows.ids),
        "vectors": _write(folder / f"{name}.vectors", rows.vectors),
    }
    if rows.codes is not None:
        files["codes"] = _write(folder / f"{name}.codes", faiss.serialize_index(rows.codes))
    return SavedSegment(folder, name, rows.vectors.dtype.str, files, gone)


def _write(path: Path, array: NDArray[Any]) -> SavedFile:
    """Write an array's bytes; a removal may write over its rows meanwhile."""
    return SavedFile(array.nbytes, write_whole(path, array.reshape(-1).view(np.uint8).data))


def _check(path: Path, file: SavedFile) -> None:
    if path.stat().st_size != file.size or _digest(path) != file.sha256:
        raise SnapshotDamaged(f"{path} is not as it was written")


def _read(path: Path, file: SavedFile) -> NDArray[np.uint8]:
    data = read_whole(path)
    if len(data) != file.size or hashlib.sha256(data.data).hexdigest() != file.sha256:
        raise SnapshotDamaged(f"{path} is not as it was written")
    return data


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_dicts(files: dict[str, SavedFile]) -> dict[str, Any]:
    return {ending: asdict(file) for ending, file in files.items()}


def _from_dicts(files: dict[str, Any]) -> dict[str, SavedFile]:
    return {ending: SavedFile(**file) for ending, file in files.items()}
