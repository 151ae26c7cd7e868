"""Why `people.py` was wrong where it was: wrong labels of LFW, neighbours who were enrolled, and what remains.

    python benchmarks/people_mistakes.py people.json --photos DIR

`people.json` is what `people.py --output` wrote, `--photos` the folder that it was measured on. A mistake is put down
to a *wrong label* if the probe stands on LFW's list of errata; to an *enrolled neighbour* if the template nearest to
the probe was made from a photo whose largest face, which was enrolled, is not the one in its middle.
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from math import hypot
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from people import plan

from model.alignment import align_face
from model.detector import Face
from model.image import ImageLimits, decode_image
from model.pipeline import Networks, load_networks
from model.training.lfw import RELABELLED

WRONG_LABEL, NEIGHBOUR, UNEXPLAINED = "wrong label", "enrolled neighbour", "neither"


@dataclass(frozen=True, slots=True)
class Found:
    """The largest face of a photo and the one nearest to its middle, each with its embedding (D,)."""

    largest: NDArray[np.float32]
    central: NDArray[np.float32]
    is_one: bool


def main() -> None:
    """Print every mistake with its reason, nearest first, and how many there are of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("people", type=Path, help="people.json")
    parser.add_argument("--photos", type=Path, required=True)
    arguments = parser.parse_args()
    measured = json.loads(arguments.people.read_text(encoding="utf-8"))
    threshold, networks = measured["default"]["threshold"], load_networks()

    @cache
    def look(photo: Path) -> Found:
        return found_in(photo, networks)

    enrolled = plan(arguments.photos).enrolled
    aside = [photo.name for photos in enrolled.values() for photo in photos if not look(photo).is_one]
    print(
        f"enrolled photos whose largest face is not the one in the middle: {len(aside)} of {measured_photos(measured)}"
    )
    counts: Counter[tuple[str, str]] = Counter()
    for probe in sorted(measured["probes"], key=lambda one: one["nearest"]["distance"] if one["nearest"] else 2.0):
        kind = mistake(probe, threshold)
        if kind is None:
            continue
        named = probe["nearest"]["subject"]
        reason = UNEXPLAINED
        if Path(probe["photo"]).stem in RELABELLED:
            reason = WRONG_LABEL
        elif kind != "missed":
            own = look(arguments.photos / probe["photo"]).central
            nearest = max(enrolled[named], key=lambda photo: float(look(photo).largest @ own))
            reason = NEIGHBOUR if not look(nearest).is_one else UNEXPLAINED
        counts[kind, reason] += 1
        print(f"{kind}: {Path(probe['photo']).stem}, {named} at {probe['nearest']['distance']:.3f}: {reason}")
    for (kind, reason), count in sorted(counts.items()):
        print(f"{kind}, {reason}: {count}")


def measured_photos(measured: dict[str, dict[str, int]]) -> int:
    """How many photos were sent to be enrolled."""
    return measured["enrolment"]["photos"]


def mistake(probe: dict[str, object], threshold: float) -> str | None:
    """Which kind of mistake the service's decision on a probe was; None: it was right."""
    nearest = probe["nearest"]
    named = nearest["subject"] if isinstance(nearest, dict) and nearest["distance"] <= threshold else None
    if not probe["mated"]:
        return None if named is None else "stranger named"
    if named == probe["person"] or not probe["found"]:
        return None
    return "missed" if named is None else "wrong name"


def found_in(photo: Path, networks: Networks) -> Found:
    """What `face=largest` enrolls of a photo, and what `people.py` takes for its answer."""
    pixels = decode_image(photo.read_bytes(), ImageLimits())
    faces = networks.detector.detect(pixels)
    if not faces:
        raise SystemExit(f"{photo}: no face")
    height, width = pixels.shape[:2]

    def from_middle(face: Face) -> float:
        x, y, across, down = face.box
        return hypot(x + across / 2 - width / 2, y + down / 2 - height / 2)

    largest = max(faces, key=lambda face: face.box[2] * face.box[3])
    central = min(faces, key=from_middle)
    embedded = networks.extractor.embed(np.stack([align_face(pixels, one.landmarks) for one in (largest, central)]))
    return Found(embedded[0], embedded[1], largest is central)


if __name__ == "__main__":
    main()
