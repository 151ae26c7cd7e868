"""`facemodel train`: an extractor from a config."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.commands.options import WeightsOption, console, network_folder
from model.errors import FacegalleryError
from model.pipeline import WEIGHTS


def train_command(
    config: Annotated[Path, typer.Argument(help="TOML; docs/training.md lists what it may say.")],
    output: Annotated[Path, typer.Option(help="Gets checkpoints, log and TensorBoard's events.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the output folder.")] = False,
    weights: WeightsOption = WEIGHTS,
) -> None:
    """Train an extractor with softmax and center loss.

    Ctrl-C ends the run after the step, with a checkpoint. Under torchrun every process takes its part of each batch.
    """
    try:
        from model.training.running import open_training, process_group
    except ModuleNotFoundError as error:
        raise FacegalleryError(f"training needs {error.name}: install facegallery[train]") from error
    from model.training.checkpoint import CHECKPOINT
    from model.training.config import read_config
    from model.training.loop import LEAST_STEERING, Step, Watch
    from model.training.steering import ENROLLED, Steering

    settings = read_config(config)
    if not resume and (output / CHECKPOINT).exists():
        raise FacegalleryError(f"{output} holds a checkpoint; add --resume, or choose another --output")
    with process_group(settings.run.device):
        first = int(os.environ.get("RANK", "0")) == 0
        training = open_training(settings, output, lambda name: network_folder(weights, name), resume=resume)
        if first:
            people = {role: getattr(training.split, role).people for role in ("train", "validation", "test")}
            output.mkdir(parents=True, exist_ok=True)
            (output / "people.json").write_text(json.dumps(people, indent=1, ensure_ascii=False), encoding="utf-8")
            console.print(", ".join(f"{role}: {len(names)} people" for role, names in people.items()))
            if settings.data.validation_people and not training.steers:
                console.print(
                    f"no figures on the way: they need {LEAST_STEERING} people kept out to steer by, "
                    f"one of them with more than {ENROLLED} photos"
                )
        progress = _bar() if first else nullcontext(None)
        with progress as bar, _events(output, first) as events:
            task = (
                None
                if bar is None
                else bar.add_task("training", total=settings.run.steps, completed=training.step, losses="", speed="")
            )

            def stepped(step: Step) -> None:
                if bar is not None and task is not None:
                    losses = f"loss {step.loss:.3f} softmax {step.softmax:.3f} center {step.center:.1f}"
                    speed = f"{step.images_per_second:.0f} images/s, {step.waited:.0%} waiting for data"
                    bar.update(task, completed=step.number, losses=losses, speed=speed)
                if events is not None:
                    for name in ("loss", "softmax", "center", "pull", "images_per_second", "waited"):
                        events.add_scalar(f"train/{name}", getattr(step, name), step.number)

            def validated(number: int, steering: Steering) -> None:
                for name in ("clean", "degraded"):
                    condition = getattr(steering, name)
                    console.print(f"step {number}: {name} FNIR {condition.fnir:.2%}, TAR {condition.tar:.2%}")
                    if events is not None:
                        events.add_scalar(f"validation/{name}_fnir", condition.fnir, number)
                        events.add_scalar(f"validation/{name}_tar", condition.tar, number)

            finished = training.run(Watch(stepped, validated))
    if not finished:
        console.print(f"interrupted at step {training.step}; add --resume to go on")
        raise typer.Exit(130)
    if first:
        typer.echo(output / CHECKPOINT)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _events(output: Path, first: bool) -> Any:
    if not first:
        return nullcontext(None)
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(output / "events"))
