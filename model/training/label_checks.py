"""Photos that a training set is better without: doubles, and faces that are probably somebody else's.

The checks read embeddings of an extractor that exists already, so they find what it can see: a wrong label of somebody
who looks very different, not one of a twin.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

DUPLICATE_DISTANCE = 0.45
"""Two photos of one subject are compared pixel by pixel if their embeddings are at most so far apart."""
DUPLICATE_CORRELATION = 0.97
"""Crops whose grey values correlate more than this are one picture."""
OUTLIER_COSINE = 0.25
"""A photo whose cosine with its person's center is lower than this is probably of somebody else or not usable."""
_TRIMMED = 0.3
_THUMBNAIL = 28


def flag_photos(
    people: Sequence[str],
    face_sizes: Sequence[float],
    embeddings: NDArray[np.float32],
    crop_of: Callable[[int], NDArray[np.uint8]],
    digests: Sequence[str],
) -> list[str]:
    """Say for every photo why it should be left out; an empty text where nothing is suspicious.

    - `duplicate of ROW's file digest`: the same picture as another one of this person, whose face is larger.
    - `shared with PERSON`: the same picture stands under two names, so one of them is wrong.
    - `looks like PERSON`: nearer to that person's center than to its own, and far from its own.
    - `far from own center`: like nobody here, its own person included.

    Args:
        people: the name of each photo.
        face_sizes: width of each face in pixels.
        embeddings: shape (N, D), L2-normalised; a row of NaN is a photo without a face, which gets no flag.
        crop_of: the crop of a row, (112, 112, 3), uint8.
        digests: SHA-256 of each photo.
    """
    names, numbers = np.unique(np.array(people, np.str_), return_inverse=True)
    found = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    flags = [""] * len(people)
    if not len(found):
        return flags
    centers = np.stack([_center(embeddings[found[numbers[found] == number]]) for number in range(len(names))])
    for row in found.tolist():
        cosines = centers @ embeddings[row]
        own = cosines[numbers[row]]
        nearest = int(np.argmax(cosines))
        if own < OUTLIER_COSINE:
            stranger = nearest == numbers[row] or cosines[nearest] < OUTLIER_COSINE
            flags[row] = "far from own center" if stranger else f"looks like {names[nearest]}"
    for first, second in _same_pictures(found, embeddings, crop_of, digests):
        if numbers[first] != numbers[second]:
            for row, other in ((first, second), (second, first)):
                flags[row] = flags[row] or f"shared with {people[other]}"
        elif not flags[first] and not flags[second]:
            smaller, larger = sorted((first, second), key=lambda row: (face_sizes[row], -row))
            flags[smaller] = f"duplicate of {digests[larger][:12]}"
    return flags


def _center(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """The direction of a person, from the photos that agree most, so that wrong labels do not draw it away."""
    if not len(embeddings):
        return np.zeros(embeddings.shape[1], np.float32)
    center: NDArray[np.float32] = embeddings.mean(axis=0)
    for _ in range(3):
        cosines = embeddings @ center
        agreeing = cosines >= np.quantile(cosines, _TRIMMED)
        center = embeddings[agreeing].mean(axis=0)
        center /= max(float(np.linalg.norm(center)), 1e-12)
    return center


def _same_pictures(
    found: NDArray[np.int64],
    embeddings: NDArray[np.float32],
    crop_of: Callable[[int], NDArray[np.uint8]],
    digests: Sequence[str],
) -> list[tuple[int, int]]:
    least_cosine = 1 - DUPLICATE_DISTANCE**2 / 2
    thumbnails: dict[int, NDArray[np.float64]] = {}

    def thumbnail(row: int) -> NDArray[np.float64]:
        if row not in thumbnails:
            grey = crop_of(row).astype(np.float64).mean(axis=2)
            side = len(grey) // _THUMBNAIL
            small = grey.reshape(_THUMBNAIL, side, _THUMBNAIL, side).mean(axis=(1, 3)).ravel()
            small -= small.mean()
            thumbnails[row] = small / max(float(np.linalg.norm(small)), 1e-12)
        return thumbnails[row]

    pairs = []
    for place, row in enumerate(found):
        later = found[place + 1 :]
        for other in later[embeddings[later] @ embeddings[row] >= least_cosine]:
            same = digests[row] == digests[other]
            if same or float(thumbnail(int(row)) @ thumbnail(int(other))) >= DUPLICATE_CORRELATION:
                pairs.append((int(row), int(other)))
    return pairs
