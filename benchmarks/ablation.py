"""What center loss adds: the same recipe without it and with both of its forms, several seeds each.

Every run is measured on the people whom its config keeps for testing, whom no run and no choice has seen.
"""

import argparse
import csv
import statistics
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import Progress

from model.commands.options import network_folder
from model.pipeline import WEIGHTS
from model.training.config import LossConfig, TrainingConfig, read_config
from model.training.exporting import serving_extractor
from model.training.loop import Watch
from model.training.running import open_training
from model.training.steering import Steering, some_photos, steer_by


@dataclass(frozen=True, slots=True)
class Variant:
    """A form of center loss with its weight λ and the centers' own rate."""

    center: str
    weight: float
    rate: float

    def of(self, loss: LossConfig) -> LossConfig:
        """The losses of a config with this form of center loss in place of its own."""
        changes = {"center": self.center, "center_weight": self.weight, "center_rate": self.rate}
        return LossConfig.model_validate({**loss.model_dump(), **changes})


def main() -> None:
    """Train and measure all variants; a variant that the table has already is not run again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="the recipe")
    parser.add_argument("--output", type=Path, required=True, help="gets ablation.csv and the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=20, help="of each test person at most")
    parser.add_argument("--paper", type=float, default=0.001, help="λ of the paper's form")
    parser.add_argument("--learned", type=float, default=0.02, help="λ of the form with learned centers")
    arguments = parser.parse_args()
    variants = (
        Variant("none", 0, 0.5),
        Variant("paper", arguments.paper, 0.5),
        Variant("learned", arguments.learned, 0.5),
    )
    recipe = read_config(arguments.config)
    console = Console(stderr=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = arguments.output / "ablation.csv"
    done = _read(table)
    with Progress(console=console) as progress:
        for seed in range(arguments.seeds):
            for variant in variants:
                name = f"{variant.center}-{variant.weight:g}-{seed}"
                if name in done:
                    continue
                run = {"seed": seed, "validate_every": 10**9, "checkpoint_every": 10**9}
                config = recipe.model_copy(
                    update={"loss": variant.of(recipe.loss), "run": recipe.run.model_copy(update=run)}
                )
                figures = _measure(config, arguments.output / name, arguments.photos, progress, name)
                done[name] = _row(name, variant, seed, config.run.steps, figures)
                _write(table, done)
                console.print(done[name])
    for center in ("none", "paper", "learned"):
        rows = [row for row in done.values() if row["center"] == center]
        cells = [_mean_and_deviation([float(row[key]) for row in rows]) for key in _FIGURES]
        print(f"| {center} | {rows[0]['weight']} | {' | '.join(cells)} |")


def _measure(config: TrainingConfig, output: Path, most: int, progress: Progress, name: str) -> Steering:
    training = open_training(config, output, lambda base: network_folder(WEIGHTS, base), resume=True)
    task = progress.add_task(name, total=config.run.steps)
    if not training.run(Watch(lambda step: progress.update(task, completed=step.number))):
        raise SystemExit(f"interrupted at step {training.step} of {name}; the same command goes on from there")
    photos = some_photos(training.split.test, most)
    with TemporaryDirectory() as folder:
        return steer_by(photos, serving_extractor(training.average.eval(), Path(folder), half=False).embed)


_FIGURES = ("clean_fnir", "clean_tar", "clean_eer", "degraded_fnir", "degraded_tar", "degraded_eer")


def _row(name: str, variant: Variant, seed: int, steps: int, figures: Steering) -> dict[str, str]:
    row = {
        "run": name,
        "center": variant.center,
        "weight": f"{variant.weight:g}",
        "seed": str(seed),
        "steps": str(steps),
    }
    clean, degraded = figures.clean, figures.degraded
    values = (clean.fnir, clean.tar, clean.eer, degraded.fnir, degraded.tar, degraded.eer)
    return row | {key: f"{value:.4f}" for key, value in zip(_FIGURES, values, strict=True)}


def _mean_and_deviation(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""


def _read(table: Path) -> dict[str, dict[str, str]]:
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        return {row["run"]: dict(row) for row in csv.DictReader(file)}


def _write(table: Path, rows: dict[str, dict[str, str]]) -> None:
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["run", "center", "weight", "seed", "steps", *_FIGURES])
        writer.writeheader()
        writer.writerows(rows.values())


if __name__ == "__main__":
    main()
