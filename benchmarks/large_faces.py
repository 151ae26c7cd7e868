"""What scaling down before the alignment does to embeddings of large, noisy faces.

    python benchmarks/large_faces.py --photos DIR [--times 6] [--noise 40]

A folder for each person, as `lfw-sample`. The second photo of each, cut to its middle, so many times as large, with and
without noise, is compared with the first one as it is: how many lie beyond the distance that the card gives for FMR
1e-4, with alignment as it is and with interpolation alone.
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from model import alignment
from model.image import decode_image
from model.pipeline import Networks, load_networks

_CUT = 150  # pixels of the middle


def main() -> None:
    """Print how many of the large copies are too far from the first photo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--times", type=int, default=6)
    parser.add_argument("--noise", type=float, default=40.0, help="standard deviation, of 255")
    arguments = parser.parse_args()
    networks = load_networks()
    limit = next(one.distance for one in networks.extractor.card.thresholds if one.fmr == 1e-4)
    people = [
        photos[:2] for folder in sorted(arguments.photos.iterdir()) if len(photos := sorted(folder.iterdir())) > 1
    ]
    first = [_embedding(networks, decode_image(photos[0].read_bytes())) for photos in track(people, "first photos")]
    for noise in (0.0, arguments.noise):
        random = np.random.default_rng(0)
        larger = [_larger(photos[1], arguments.times, noise, random) for photos in track(people, "larger copies")]
        scaled = [_embedding(networks, one) for one in track(larger, "scaled down")]
        with patch.object(alignment, "_scaled_down", lambda pixels, matrix, _times: (pixels, matrix)):
            interpolated = [_embedding(networks, one) for one in track(larger, "interpolated")]
        print(
            f"noise {noise:.0f}: of {len(people)} people {_beyond(first, scaled, limit)} beyond {limit:.3f}, "
            f"with interpolation alone {_beyond(first, interpolated, limit)}"
        )


def _larger(photo: Path, times: int, noise: float, random: np.random.Generator) -> NDArray[np.uint8]:
    image = Image.fromarray(decode_image(photo.read_bytes()))
    left, top = (image.width - _CUT) // 2, (image.height - _CUT) // 2
    middle = image.crop((left, top, left + _CUT, top + _CUT)).resize(
        (times * _CUT, times * _CUT), Image.Resampling.BICUBIC
    )
    pixels = (
        np.asarray(middle) + random.normal(0, noise, (times * _CUT, times * _CUT, 3)) if noise else np.asarray(middle)
    )
    larger: NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    return larger


def _embedding(networks: Networks, pixels: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Of the largest face, (D,); None: none was found."""
    faces = networks.detector.detect(pixels)
    if not faces:
        return None
    crop = alignment.align_face(pixels, max(faces, key=lambda face: face.box[2]).landmarks)
    return np.asarray(networks.extractor.embed(crop[None])[0])


def _beyond(first: list[NDArray[np.float32] | None], second: list[NDArray[np.float32] | None], limit: float) -> int:
    return sum(
        one is None or other is None or float(np.linalg.norm(one - other)) > limit
        for one, other in zip(first, second, strict=True)
    )


if __name__ == "__main__":
    main()
