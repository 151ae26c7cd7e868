"""A prepared folder small enough to train on in a second: people are colours, photos are noisy patches of them."""

import json

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from model.training.config import TrainingConfig
from model.training.preparation import PREPARATION, PreparedFolder, PreparedPhoto, read_prepared, write_manifest

DIMENSION = 8


class SmallNetwork(nn.Module):
    """Two units in ``convolutions``, as `model.networks.SFace` has 27."""

    def __init__(self) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride=4, bias=False), nn.BatchNorm2d(outputs), nn.PReLU(outputs)
            )

        self.convolutions = nn.Sequential(unit(3, 8), unit(8, 8))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(8 * 7 * 7, DIMENSION)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.fc(self.dropout(self.convolutions((pixels - 127.5) / 128).flatten(1)))
        return features


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    """Twelve people of six photos."""
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    photos, embeddings = [], []
    for number in range(12):
        person = f"person {number}"
        (folder / "crops" / person).mkdir(parents=True)
        colour, direction = random.integers(40, 216, 3), random.normal(size=DIMENSION)
        for photo in range(6):
            crop = f"crops/{person}/{photo}.png"
            pixels = np.clip(colour + random.normal(0, 20, (112, 112, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / crop)
            photos.append(PreparedPhoto(person, f"{person}/{photo}.jpg", f"{number}{photo}", width=50.0, crop=crop))
            embeddings.append((direction / np.linalg.norm(direction)).astype(np.float32))
    write_manifest(folder, photos, np.array(embeddings))
    (folder / PREPARATION).write_text(json.dumps({"extractor": "base@0"}), encoding="utf-8")
    return read_prepared(folder)


def training_config(**changes: dict[str, object]) -> TrainingConfig:
    """A run of eight steps on the colours; ``changes`` are added to its tables."""
    tables: dict[str, dict[str, object]] = {
        "data": {
            "folders": ["colours"],
            "validation_people": 4,
            "people_per_batch": 4,
            "photos_per_person": 2,
            "workers": 0,
        },
        "optimizer": {"rate": 0.01, "classifier_rate": 0.01},
        "run": {"steps": 8, "channels_last": False, "validate_every": 100},
    }
    for name, table in changes.items():
        tables[name] = {**tables.get(name, {}), **table}
    return TrainingConfig.model_validate(tables)
