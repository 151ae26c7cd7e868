"""Training on a GPU, where there is one."""

import os
import signal
from pathlib import Path

import pytest
import torch

from model.training.loop import Step, Training, Watch
from model.training.preparation import PreparedFolder
from model.training.training_set import split_identities
from tests.model.training.conftest import SmallNetwork, training_config


def training(colours: PreparedFolder, output: Path, device: str, **changes: dict[str, object]) -> Training:
    changes["run"] = {"device": device, **changes.get("run", {})}
    split = split_identities([colours], validation_people=4, test_people=0, seed=0)
    torch.manual_seed(0)
    return Training(SmallNetwork(), split, training_config(**changes), output)


@pytest.mark.parametrize("center", ["none", "paper", "learned"])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_run_learns_what_it_learns_on_the_processor(
    colours: PreparedFolder, tmp_path: Path, gpu: str, center: str, precision: str
) -> None:
    steps: dict[str, list[Step]] = {"cpu": [], gpu: []}
    for device, taken in steps.items():
        run = training(
            colours,
            tmp_path / device,
            device,
            loss={"center": center, "center_weight": 0.01, "pull": 1.0},
            optimizer={"ema": 0.9},
            augmentation={"colour": 0, "degraded": 0},
            run={"steps": 60, "precision": precision, "channels_last": True},
        )
        assert run.run(Watch(taken.append))
        run.validate()

    # Dropout draws other units on another device, so only the first losses and the course are the same.
    for of_step in zip(steps["cpu"][:1], steps[gpu][:1], strict=True):
        assert of_step[1].softmax == pytest.approx(of_step[0].softmax, rel=0.3)
    for taken in steps.values():
        assert sum(step.softmax for step in taken[-5:]) < 0.7 * sum(step.softmax for step in taken[:5])


def test_a_run_that_is_taken_up_on_the_processor_goes_on(colours: PreparedFolder, tmp_path: Path, gpu: str) -> None:
    changes: dict[str, dict[str, object]] = {"optimizer": {"ema": 0.9}, "loss": {"center": "learned"}}
    first = training(colours, tmp_path, gpu, **changes)
    assert not first.run(Watch(lambda step: os.kill(os.getpid(), signal.SIGINT) if step.number == 3 else None))

    for device in (gpu, "cpu"):
        taken_up = training(colours, tmp_path, device, **changes)
        taken_up.start_from_class_means()
        assert taken_up.resume()
        assert taken_up.step == 3
        for name, value in first.network.state_dict().items():
            torch.testing.assert_close(taken_up.network.state_dict()[name].cpu(), value.cpu())
        assert taken_up.run(Watch(lambda step: os.kill(os.getpid(), signal.SIGINT) if step.number == 4 else None)) is (
            False
        )
        first.save()  # the next one starts where this one did
