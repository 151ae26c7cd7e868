"""Measure how the shipped extractor's embeddings lie, and write what `index_data.py` draws from.

    python benchmarks/index_fit.py --photos LFW [--cache DIR] [--output benchmarks/lfw_embeddings.npz]

`LFW` holds a folder of photos for each person; everybody with at least two photos counts, with four at most. The
covariances are estimated; the widths of photos and the families are chosen from a few so that the distances of mated
pairs, and those of the closest non-mated pairs, come out as they are. Prints quantiles of both.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path

import numpy as np
from index_data import FITTED, Population
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from model.photo_folder import Photo, list_photos
from model.pipeline import load_networks
from model.training.embedder import NetworkEmbedder
from model.training.embedding_set import embed_photos, find_faces, photo_crops
from model.training.lfw import corrected_subject

MATED = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
NON_MATED = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 0.5)
_MOST_PHOTOS = 4


def main() -> None:
    """Embed, fit, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keeps what was found in the photos")
    parser.add_argument("--output", type=Path, default=FITTED)
    arguments = parser.parse_args()
    embeddings, people = _embed(_chosen(arguments.photos), arguments.cache)
    population = _fit(embeddings, people)
    population.save(arguments.output)
    drawn = population.draw(20_000, 2, seed=1)
    console = Console()
    console.print(f"{len(embeddings)} photos of {len(set(people.tolist()))} people; {population.families} families")
    console.print(f"spread {population.spread}, width {population.width}, kinship {population.kinship}")
    for name, rates, real, made in (
        ("mated", MATED, _mated(embeddings, people), np.linalg.norm(drawn[:, 0] - drawn[:, 1], axis=1)),
        ("non-mated", NON_MATED, _non_mated(embeddings, people), _non_mated(drawn[:, 0], np.arange(len(drawn)))),
    ):
        console.print(f"| distance of {name} pairs, quantile | {' | '.join(f'{rate:g}' for rate in rates)} |")
        for kind, distances in (("photos", real), ("drawn", made)):
            values = " | ".join(f"{value:.3f}" for value in np.quantile(distances, rates))
            console.print(f"| {kind} | {values} |")


def _chosen(folder: Path) -> list[tuple[Photo, str]]:
    labelled = [(photo, corrected_subject(photo.name, photo.subject)) for photo in list_photos(folder)]
    known = sorted(((photo, subject) for photo, subject in labelled if subject), key=lambda pair: pair[1])
    people = [list(pairs)[:_MOST_PHOTOS] for _, pairs in groupby(known, key=lambda pair: pair[1])]
    return [pair for pairs in people if len(pairs) > 1 for pair in pairs]


def _embed(chosen: Sequence[tuple[Photo, str]], cache: Path | None) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    networks, photos = load_networks(), [photo for photo, _ in chosen]
    embedder = NetworkEmbedder(networks.extractor)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("embedding", total=2 * len(photos))
        faces = find_faces(photos, networks.detector, folder=cache, advance=lambda n: progress.advance(task, n))
        embedded = embed_photos(
            photos,
            photo_crops(photos, faces, embedder),
            embedder,
            source=networks.detector.card.identity,
            folder=cache,
            advance=lambda n: progress.advance(task, n),
        )
    found = ~np.isnan(embedded.embeddings[:, 0])
    _, people = np.unique([subject for _, subject in chosen], return_inverse=True)
    return embedded.embeddings[found], people[found]


def _fit(embeddings: NDArray[np.float32], people: NDArray[np.intp]) -> Population:
    counts = np.bincount(people)
    starts = np.cumsum([0, *counts[:-1]])
    centres = np.add.reduceat(embeddings.astype(np.float64), starts) / counts[:, None]
    deviations = embeddings - centres[people]
    within = deviations.T @ deviations / (counts - 1).sum()
    between = np.cov(centres.T) - within * np.mean(1 / counts)
    parts = centres.mean(axis=0).astype(np.float32), _root(between), _root(within)
    mated, non_mated = (
        np.quantile(_mated(embeddings, people), MATED),
        np.quantile(_non_mated(embeddings, people), NON_MATED),
    )

    def mated_error(population: Population) -> float:
        drawn = population.draw(5000, 2, seed=2)
        return float(np.abs(np.quantile(np.linalg.norm(drawn[:, 0] - drawn[:, 1], axis=1), MATED) - mated).sum())

    def non_mated_error(population: Population) -> float:
        drawn = population.draw(8000, 1, seed=2)[:, 0]
        return float(np.abs(np.quantile(_non_mated(drawn, np.arange(len(drawn))), NON_MATED) - non_mated).sum())

    widths = product(np.arange(0.2, 0.6, 0.05).round(2).tolist(), np.arange(0.9, 1.25, 0.05).round(2).tolist())
    found = min((Population(*parts, spread, width, 1, 0.0) for spread, width in widths), key=mated_error)
    families = product((3000, 10_000, 30_000), (0.0, 0.2, 0.3, 0.4, 0.5))
    return min((replace(found, families=number, kinship=share) for number, share in families), key=non_mated_error)


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float32]:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0, None)), np.float32)


def _mated(embeddings: NDArray[np.float32], people: NDArray[np.intp]) -> NDArray[np.float32]:
    first, second = np.triu_indices(_MOST_PHOTOS, 1)
    distances = [
        np.linalg.norm(embeddings[lag:] - embeddings[:-lag], axis=1)[people[lag:] == people[:-lag]]
        for lag in sorted(set((second - first).tolist()))
    ]
    return np.concatenate(distances)


def _non_mated(embeddings: NDArray[np.float32], people: NDArray[np.intp]) -> NDArray[np.float32]:
    """Distances of all non-mated pairs."""
    distances = []
    for start in range(0, len(embeddings), 500):
        cosines = embeddings[start : start + 500] @ embeddings.T
        other = people[start : start + 500, None] < people
        distances.append(np.sqrt(np.maximum(2 - 2 * cosines[other], 0)))
    return np.concatenate(distances)


if __name__ == "__main__":
    main()
