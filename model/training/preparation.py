"""From raw photos to training data: every face is detected, aligned and embedded once.

Folders whose names are the same word by word are one person's. An output folder holds `crops/PERSON/FILE.png` (112×112,
RGB; `FILE.2.png` where a second folder of the person has a file of that name), `manifest.csv` with a row for every
photo, whether it was taken or refused, `embeddings.npy` (float32, L2-normalised, a row for each row of the manifest,
NaN where there is no crop) and `preparation.json`, which says by which networks. `people/PERSON.npz` is what an
interrupted run goes on from.
"""

import csv
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.alignment import CROP_SIZE, align_face
from model.errors import FacegalleryError
from model.image import decode_image
from model.photo_folder import DatasetError, Photo, list_photos
from model.pipeline import Networks
from model.replaced_file import replaced_file
from model.training.embedding_set import central_face
from model.training.label_checks import flag_photos

MANIFEST = "manifest.csv"
EMBEDDINGS = "embeddings.npy"
PREPARATION = "preparation.json"


@dataclass(frozen=True, slots=True)
class PreparedPhoto:
    """A row of the manifest.

    Args:
        person: who the folder says it is.
        file: the photo, relative to the folder of raw photos.
        sha256: digest of the photo's bytes.
        x, y, width, height: box of the face in pixels of the photo, with orientation applied; 0 if refused.
        score: of the detection, 0 to 1.
        faces: how many faces were found.
        crop: the aligned crop, relative to the output folder; empty if refused.
        refused: why there is no crop; empty if there is one.
        flag: why the label or the photo should not be trusted (see `model.training.label_checks`); empty if nothing
            is suspicious.
    """

    person: str
    file: str
    sha256: str
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    score: float = 0.0
    faces: int = 0
    crop: str = ""
    refused: str = ""
    flag: str = ""


@dataclass(frozen=True, slots=True)
class PreparedFolder:
    """What `prepare` left behind: rows of the manifest and an embedding for each, float32, (N, D)."""

    folder: Path
    photos: tuple[PreparedPhoto, ...]
    embeddings: NDArray[np.float32]
    extractor: str

    @property
    def usable(self) -> NDArray[np.int64]:
        """The rows that have a crop and no flag."""
        rows = [row for row, photo in enumerate(self.photos) if photo.crop and not photo.flag]
        return np.array(rows, np.int64)


def name_words(name: str) -> tuple[str, ...]:
    """The words of a name whatever joins them: `Tom_Cruise` and `tom cruise` are one person.

    Letters with their marks, in whatever form of Unicode, digits and symbols make words; blanks, underscores and other
    punctuation stand between them. A name of punctuation alone is one word, so that no name is empty.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
    spaced = "".join(" " if unicodedata.category(letter)[0] in "PZ" else letter for letter in folded)
    return tuple(spaced.split()) or (folded.strip(),)


def prepare(
    source: Path,
    output: Path,
    networks: Networks,
    *,
    left_out: Iterable[str] = (),
    prefix: str = "",
    workers: int = 1,
    start: Callable[[int], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
) -> PreparedFolder:
    """Prepare a folder of people; a second run goes on where the first one stopped.

    Args:
        source: a folder of photos for each person.
        output: gets crops and manifest.
        networks: detector and extractor; another extractor means another output folder.
        left_out: names of people who are not prepared.
        prefix: taken off the front of the folders' names.
        workers: threads.
        start: told how many photos there are.
        advance: told how many more photos are done.

    Raises:
        DatasetError: no photos, or the output folder was made by other networks.
    """
    identity = {"extractor": networks.extractor.card.identity, "detector": networks.detector.card.identity}
    output.mkdir(parents=True, exist_ok=True)
    _claim(output, identity)
    without = {name_words(name) for name in left_out}
    names: dict[tuple[str, ...], str] = {}  # of folders of one person the first one's is taken
    people: dict[str, list[Photo]] = {}
    for photo in list_photos(source):
        name = " ".join(photo.subject.removeprefix(prefix).replace("_", " ").split()) or photo.subject
        words = name_words(name)
        if words not in without:
            people.setdefault(names.setdefault(words, name), []).append(photo)
    start(sum(map(len, people.values())))

    with ThreadPoolExecutor(workers) as pool:
        futures = {
            pool.submit(_prepare_person, person, photos, source, output, networks, advance): person
            for person, photos in people.items()
        }
        try:
            results = {futures[future]: future.result() for future in as_completed(futures)}
        finally:
            pool.shutdown(cancel_futures=True)
    photos = [photo for person in people for photo in results[person][0]]
    dimension = networks.extractor.dimension
    embeddings = np.concatenate([np.empty((0, dimension), np.float32), *(results[person][1] for person in people)])
    flags = flag_photos(
        [photo.person for photo in photos],
        [photo.width for photo in photos],
        embeddings,
        lambda row: read_crop(output / photos[row].crop),
        [photo.sha256 for photo in photos],
    )
    photos = [replace(photo, flag=flag) for photo, flag in zip(photos, flags, strict=True)]
    write_manifest(output, photos, embeddings)
    return PreparedFolder(output, tuple(photos), embeddings, identity["extractor"])


def read_prepared(folder: Path) -> PreparedFolder:
    """Read what `prepare` wrote.

    Raises:
        DatasetError: the folder was not prepared, or not to the end.
    """
    try:
        with (folder / MANIFEST).open(encoding="utf-8", newline="") as file:
            photos = tuple(_from_row(row) for row in csv.DictReader(file))
        embeddings = np.load(folder / EMBEDDINGS, mmap_mode="r")
        identity = json.loads((folder / PREPARATION).read_text(encoding="utf-8"))
        extractor = str(identity["extractor"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{folder} is no prepared folder ({error}); run `facemodel prepare`") from error
    if len(embeddings) != len(photos):
        raise DatasetError(f"{folder} has {len(photos)} photos but {len(embeddings)} embeddings; prepare it again")
    return PreparedFolder(folder, photos, embeddings, extractor)


def read_crop(path: Path) -> NDArray[np.uint8]:
    """Read an aligned crop, (112, 112, 3), uint8, RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _claim(output: Path, identity: dict[str, str]) -> None:
    path = output / PREPARATION
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier != identity:
            raise DatasetError(f"{output} was prepared by {earlier}; choose another folder")
    else:
        with replaced_file(path) as draft:
            draft.write_text(json.dumps(identity, indent=2), encoding="utf-8")


def _prepare_person(
    person: str, photos: Sequence[Photo], source: Path, output: Path, networks: Networks, advance: Callable[[int], None]
) -> tuple[list[PreparedPhoto], NDArray[np.float32]]:
    kept = output / "people" / f"{person}.npz"
    names = _distinct([photo.path.name for photo in photos])
    stamp = "\n".join(f"{name} {photo.path.stat().st_size}" for name, photo in zip(names, photos, strict=True))
    earlier = _read_person(kept, stamp)
    if earlier is not None:
        advance(len(photos))
        return earlier
    rows, crops = [], []
    (output / "crops" / person).mkdir(parents=True, exist_ok=True)
    for name, photo in zip(names, photos, strict=True):
        row, crop = _prepare_photo(person, photo, source, f"crops/{person}/{name}.png", networks)
        if crop is not None:
            Image.fromarray(crop).save(output / row.crop)
            crops.append(crop)
        rows.append(row)
        advance(1)
    embeddings = np.full((len(rows), networks.extractor.dimension), np.nan, np.float32)
    embeddings[[bool(row.crop) for row in rows]] = networks.extractor.embed(
        np.array(crops, np.uint8).reshape(-1, CROP_SIZE, CROP_SIZE, 3)
    )
    kept.parent.mkdir(exist_ok=True)
    with replaced_file(kept) as draft, draft.open("wb") as file:
        np.savez(file, stamp=stamp, rows=json.dumps([asdict(row) for row in rows]), embeddings=embeddings)
    return rows, embeddings


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of files, numbered from the second of a name on: several folders of one person may have the same ones."""
    counts: Counter[str] = Counter()
    distinct = []
    for name in names:
        counts[name] += 1
        distinct.append(name if counts[name] == 1 else f"{name}.{counts[name]}")
    return distinct


def _prepare_photo(
    person: str, photo: Photo, source: Path, crop: str, networks: Networks
) -> tuple[PreparedPhoto, NDArray[np.uint8] | None]:
    data = photo.path.read_bytes()
    row = PreparedPhoto(person, photo.path.relative_to(source).as_posix(), hashlib.sha256(data).hexdigest())
    try:
        pixels = decode_image(data)
    except FacegalleryError as error:
        return replace(row, refused=error.detail), None
    faces = networks.detector.detect(pixels)
    face = central_face(faces, pixels.shape[1], pixels.shape[0])
    if face is None:
        return replace(row, refused="no face was found"), None
    x, y, width, height = (round(side, 1) for side in face.box)
    found = replace(row, x=x, y=y, width=width, height=height, score=round(face.score, 4), faces=len(faces), crop=crop)
    return found, align_face(pixels, face.landmarks)


def _read_person(path: Path, stamp: str) -> tuple[list[PreparedPhoto], NDArray[np.float32]] | None:
    try:
        with np.load(path) as arrays:
            if str(arrays["stamp"]) != stamp:
                return None
            rows = [PreparedPhoto(**row) for row in json.loads(str(arrays["rows"]))]
            return rows, arrays["embeddings"]
    except (OSError, ValueError, KeyError, TypeError, BadZipFile):  # cut off or of another version: prepared anew
        return None


def write_manifest(output: Path, photos: Sequence[PreparedPhoto], embeddings: NDArray[np.float32]) -> None:
    """Write the rows and their embeddings (N, D), in the place of what was there."""
    with replaced_file(output / EMBEDDINGS) as draft, draft.open("wb") as file:
        np.save(file, embeddings)
    with replaced_file(output / MANIFEST) as draft, draft.open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, [field.name for field in fields(PreparedPhoto)])
        writer.writeheader()
        writer.writerows(asdict(photo) for photo in photos)


def _from_row(row: dict[str, str]) -> PreparedPhoto:
    numbers = {name: float(row[name]) for name in ("x", "y", "width", "height", "score")}
    values: dict[str, Any] = {**row, **numbers, "faces": int(row["faces"])}
    return PreparedPhoto(**values)
