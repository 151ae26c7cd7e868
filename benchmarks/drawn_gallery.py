"""A sealed gallery of drawn people in a folder, as a service has it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from index_data import Population
from numpy.typing import NDArray

from app.gallery.moving.portable import PortableSubject, PortableTemplate
from app.gallery.moving.restoring import restore_people
from app.gallery.store import GalleryStore
from app.gallery.tables import now
from model.card import read_card
from model.pipeline import WEIGHTS
from model.quality import Quality

EACH = 3
"""Templates of each person."""
DIMENSION = 128
_BATCH = 1000
_QUALITY = Quality(detection_score=0.9, face_size=80, sharpness=100, yaw=0, pitch=0, roll=0)


@dataclass(frozen=True, slots=True)
class Place:
    """A database with its vault and keys in a folder of its own."""

    folder: Path

    @property
    def settings(self) -> dict[str, str]:
        """As environment variables."""
        self.folder.mkdir(exist_ok=True)
        return {
            "FACEGALLERY_DATABASE_URL": f"sqlite:///{self.folder}/gallery.db",
            "FACEGALLERY_DATA_DIR": str(self.folder),
        }

    def command(self, *arguments: str) -> None:
        """Run `facegallery` and fail if it does."""
        line = [sys.executable, "-c", "from app.cli import main; main()", *arguments]
        done = subprocess.run(line, env={**os.environ, **self.settings}, capture_output=True, text=True, check=False)
        if done.returncode not in {0, 3}:  # 3: some photos were refused
            raise SystemExit(done.stderr)


def fill(store: GalleryStore, templates: int) -> None:
    """Make the gallery `default` with so many templates, of people called `person 0` and on."""
    population = Population.fitted()
    extractor = read_card(WEIGHTS / "sface").identity
    store.create_gallery("default", extractor=extractor, dimension=DIMENSION, policy=None)
    for first in range(0, templates // EACH, _BATCH):
        people = population.draw(min(_BATCH, templates // EACH - first), EACH, seed=first)
        keep(store, [f"person {first + number}" for number in range(len(people))], people)


def drawn(person: int) -> NDArray[np.float32]:
    """The embeddings (EACH, D) of `person N`, if the gallery has that many thousands or more."""
    number = person % _BATCH
    people = Population.fitted().draw(_BATCH, EACH, seed=person - number)
    return np.asarray(people[number], np.float32)


def keep(store: GalleryStore, keys: list[str], people: NDArray[np.float32]) -> None:
    """Store people in one transaction, with the embeddings (people, EACH, D)."""
    extractor, moment = read_card(WEIGHTS / "sface").identity, now()
    subjects = [
        PortableSubject(key, {}, moment, moment, _templates(embeddings))
        for key, embeddings in zip(keys, people, strict=True)
    ]
    gallery = store.gallery("default")
    restore_people(store.engine, gallery, subjects, extractor=extractor, journal=store.journal, seals=store.seals)


def _templates(embeddings: NDArray[np.float32]) -> tuple[PortableTemplate, ...]:
    return tuple(PortableTemplate(one, _QUALITY, os.urandom(32).hex(), now()) for one in embeddings)
