import dataclasses
import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader

from model.errors import ModelFileError
from model.networks import ResidualFace
from model.torch_device import DeviceError
from model.training.config import ConfigError, TrainingConfig
from model.training.loop import LOG, Step, Training, Watch
from model.training.preparation import PreparedFolder
from model.training.steering import read_crops
from model.training.training_set import IdentitySplit, split_identities
from tests.model.training.conftest import SmallNetwork, training_config


def split(colours: PreparedFolder) -> IdentitySplit:
    return split_identities([colours], validation_people=4, test_people=0, seed=0)


def training(colours: PreparedFolder, output: Path, config: TrainingConfig | None = None) -> Training:
    torch.manual_seed(0)
    return Training(SmallNetwork(), split(colours), config or training_config(), output)


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("center", ["none", "paper", "learned"])
def test_the_loss_falls(colours: PreparedFolder, tmp_path: Path, center: str) -> None:
    config = training_config(
        loss={"center": center, "center_weight": 0.01}, run={"steps": 60}, augmentation={"colour": 0, "degraded": 0}
    )
    steps: list[Step] = []

    assert training(colours, tmp_path, config).run(Watch(steps.append))

    assert sum(step.softmax for step in steps[-5:]) < 0.7 * sum(step.softmax for step in steps[:5])


def test_a_run_that_is_taken_up_ends_with_the_same_numbers(colours: PreparedFolder, tmp_path: Path) -> None:
    config = training_config(optimizer={"ema": 0.9}, loss={"center": "learned"})
    whole = training(colours, tmp_path / "whole", config)
    whole.run()
    first = training(colours, tmp_path / "parts", config)
    first.run(Watch(lambda step: os.kill(os.getpid(), signal.SIGINT) if step.number == 3 else None))
    assert first.step == 3

    second = training(colours, tmp_path / "parts", config)
    assert second.resume()
    assert second.run()

    assert same(weights(second.network), weights(whole.network))
    assert same(weights(second.average), weights(whole.average))
    assert same(weights(second.joint), weights(whole.joint))


def test_an_interrupted_run_says_so_and_leaves_a_checkpoint(colours: PreparedFolder, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run = training(colours, tmp_path)

    finished = run.run(Watch(lambda step: os.kill(os.getpid(), signal.SIGINT) if step.number == 2 else None))

    assert not finished
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert same(state["network"], weights(run.network))
    assert signal.getsignal(signal.SIGINT) is before


def test_workers_that_still_start_live_through_ctrl_c(colours: PreparedFolder, tmp_path: Path) -> None:
    run = training(colours, tmp_path, training_config(data={"workers": 1}))
    earlier = set(multiprocessing.active_children())

    batches = run._batches()
    workers = set(multiprocessing.active_children()) - earlier
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)

    assert len(workers) == 1
    assert len(list(batches)) == 8
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_while_workers_start_ends_the_run_after_a_step(
    colours: PreparedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(colours, tmp_path, training_config(data={"workers": 1}))
    start = DataLoader.__iter__

    def interrupted(loader: DataLoader[object]) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return start(loader)

    monkeypatch.setattr(DataLoader, "__iter__", interrupted)

    assert not run.run()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == run.step == 1


def test_a_run_whose_figures_fail_has_its_checkpoint(colours: PreparedFolder, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        training(colours, tmp_path, training_config(run={"steps": 2})).run(Watch(validated=full))

    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_people_with_few_photos_do_not_steer(colours: PreparedFolder, tmp_path: Path) -> None:
    few = dataclasses.replace(colours, photos=colours.photos[:48])
    photos = [row for row, photo in enumerate(few.photos) if row % 6 < 3 or photo.person in split(few).train.people]
    poor = dataclasses.replace(few, photos=tuple(few.photos[row] for row in photos), embeddings=few.embeddings[photos])
    run = training(poor, tmp_path, training_config(run={"steps": 2}))

    assert not run.steers
    assert run.run()
    with pytest.raises(ConfigError, match="one with more than 3 photos"):
        run.validate()


def test_a_checkpoint_of_other_people_is_refused(colours: PreparedFolder, tmp_path: Path) -> None:
    training(colours, tmp_path).save()
    other = split_identities([colours], validation_people=4, test_people=0, seed=1)

    with pytest.raises(ConfigError, match="trained on other people"):
        Training(SmallNetwork(), other, training_config(), tmp_path).resume()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": {"center": "none"}}, "trained with loss.center 'paper', not 'none'"),
        ({"loss": {"classifier": "cosface"}}, "trained with loss.classifier 'softmax', not 'cosface'"),
        ({"optimizer": {"kind": "sgd"}}, "trained with optimizer.kind 'adamw', not 'sgd'"),
        ({"network": {"frozen_convolutions": 1}}, "trained with network.frozen_convolutions 0, not 1"),
        ({"run": {"steps": 1}}, "has 2 steps already, which is more than run.steps, 1"),
    ],
)
def test_a_checkpoint_that_another_config_cannot_go_on_with_is_refused(
    colours: PreparedFolder, tmp_path: Path, changes: dict[str, dict[str, object]], sentence: str
) -> None:
    training(colours, tmp_path, training_config(run={"steps": 2})).run()

    with pytest.raises(ConfigError, match=sentence):
        training(colours, tmp_path, training_config(**changes)).resume()


def test_a_checkpoint_of_another_network_is_refused(colours: PreparedFolder, tmp_path: Path) -> None:
    training(colours, tmp_path).save()

    with pytest.raises(ConfigError, match="the network 'SmallNetwork', not 'ResidualFace'"):
        Training(ResidualFace(), split(colours), training_config(), tmp_path).resume()
    with pytest.raises(ConfigError, match="the base '', not 'sface@1'"):
        Training(SmallNetwork(), split(colours), training_config(), tmp_path, base="sface@1").resume()


def test_a_damaged_checkpoint_is_refused(colours: PreparedFolder, tmp_path: Path) -> None:
    run = training(colours, tmp_path)
    run.save()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["network"]["fc.bias"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ConfigError, match="does not fit this config"):
        run.resume()

    (tmp_path / "checkpoint.pt").write_bytes(b"x" * 100)
    with pytest.raises(ModelFileError, match="is not a checkpoint"):
        run.resume()


def test_a_run_that_is_taken_up_has_the_weight_decay_of_its_config(colours: PreparedFolder, tmp_path: Path) -> None:
    training(colours, tmp_path, training_config(run={"steps": 2})).run()

    run = training(colours, tmp_path, training_config(optimizer={"weight_decay": 0.5}))

    assert run.resume()
    assert [group["weight_decay"] for group in run._optimizer.param_groups] == [0.5, 0, 0.5]
    assert run.run()


@pytest.mark.parametrize("statistics", [True, False])
def test_what_is_frozen_stays(colours: PreparedFolder, tmp_path: Path, statistics: bool) -> None:
    config = training_config(network={"frozen_convolutions": 1, "frozen_statistics": statistics})
    run = training(colours, tmp_path, config)
    before = weights(run.network)

    run.run()

    changed = {name for name, value in weights(run.network).items() if not torch.equal(value, before[name])}
    assert changed == {
        "convolutions.1.0.weight",
        "convolutions.1.1.weight",
        "convolutions.1.1.bias",
        "convolutions.1.2.weight",
        "fc.weight",
        "fc.bias",
        *([] if statistics else [f"convolutions.1.1.{name}" for name in ("running_mean", "running_var")]),
        *([] if statistics else ["convolutions.1.1.num_batches_tracked"]),
    }


def test_more_convolutions_than_there_are_cannot_be_frozen(colours: PreparedFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no 3 convolutions"):
        training(colours, tmp_path, training_config(network={"frozen_convolutions": 3}))


def test_the_average_follows_behind_the_weights(colours: PreparedFolder, tmp_path: Path) -> None:
    run = training(colours, tmp_path, training_config(optimizer={"ema": 0.5}, run={"steps": 2}))
    expected = weights(run.average)
    for decay in (1 / 11, 2 / 12):
        run.config = training_config(optimizer={"ema": 0.5}, run={"steps": run.step + 1})
        run.run()
        expected = {
            name: decay * value + (1 - decay) * run.network.state_dict()[name] if value.is_floating_point() else value
            for name, value in expected.items()
        }

    for name, value in run.average.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])


def test_the_pull_brings_embeddings_to_their_targets(colours: PreparedFolder, tmp_path: Path) -> None:
    config = training_config(loss={"center": "none", "pull": 10.0}, augmentation={"degraded": 0.0}, run={"steps": 30})
    steps: list[Step] = []

    training(colours, tmp_path, config).run(Watch(steps.append))

    assert steps[-1].pull < 0.5 * steps[0].pull


def test_centers_start_at_the_class_means(colours: PreparedFolder, tmp_path: Path) -> None:
    run = training(colours, tmp_path)

    run.start_from_class_means()

    people = split(colours).train
    with torch.no_grad():
        features = run.network.eval()(torch.from_numpy(read_crops(people)).permute(0, 3, 1, 2).float())
    center = run.joint.center_loss
    assert center is not None
    torch.testing.assert_close(center.centers[2], features[torch.from_numpy(people.labels) == 2].mean(0))
    scores = run.joint.classifier(features, None)
    assert (scores.argmax(1).numpy() == people.labels).mean() > 0.6


@pytest.mark.parametrize("changes", [
    {"run": {"precision": "bf16", "channels_last": True}},
    {"loss": {"classifier": "cosface"}},
    {"loss": {"classifier": "arcface", "normalised": True}},
    {"optimizer": {"kind": "sgd", "clip": 1.0, "warmup": 3}},
    {"data": {"workers": 1}},
])  # fmt: skip
def test_every_option_trains(colours: PreparedFolder, tmp_path: Path, changes: dict[str, dict[str, object]]) -> None:
    run = training(colours, tmp_path, training_config(**changes))
    before = weights(run.network)

    assert run.run()

    after = weights(run.network)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert not torch.equal(after["fc.weight"], before["fc.weight"])


def test_a_device_that_is_not_there_is_a_plain_error(colours: PreparedFolder, tmp_path: Path) -> None:
    for name in ("gpu", "cuda:99"):
        with pytest.raises(DeviceError, match=f"cannot compute on the device '{name}'"):
            training(colours, tmp_path, training_config(run={"device": name}))


def test_the_log_has_every_step_and_the_figures_that_steer(colours: PreparedFolder, tmp_path: Path) -> None:
    training(colours, tmp_path, training_config(run={"steps": 4, "validate_every": 2})).run()

    entries = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 2, 3, 4, 4]
    steering = entries[-1]["steering"]
    assert set(steering) == {"clean", "degraded"}
    assert 0 <= steering["clean"]["fnir"] <= 1


def _one_of_two(rank: int, folder: str, colours: PreparedFolder, center: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    run = training(colours, Path(folder) / "two", config_of_two(center))
    run.run()
    torch.save({"network": run.network.state_dict(), "joint": run.joint.state_dict()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def config_of_two(center: str) -> TrainingConfig:
    # Statistics of batch normalisation are those of a process, and dropout's mask is, so both are off.
    return training_config(
        network={"frozen_statistics": True},
        loss={"center": center},
        run={"steps": 3, "seed": 4},
        optimizer={"ema": 0.5},
    )


@pytest.mark.parametrize("center", ["paper", "learned"])
def test_two_processes_do_what_one_does(
    colours: PreparedFolder, tmp_path: Path, center: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", lambda _self, features: features)
    spawn(_one_of_two_without_dropout, args=(str(tmp_path), colours, center), nprocs=2)  # type: ignore[no-untyped-call]
    one = training(colours, tmp_path / "one", config_of_two(center))
    one.run()

    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for module, state in (("network", one.network.state_dict()), ("joint", one.joint.state_dict())):
        assert same(parts[0][module], parts[1][module])
        for name, value in state.items():
            torch.testing.assert_close(parts[0][module][name], value, rtol=1e-4, atol=1e-5)


def _one_of_two_without_dropout(rank: int, folder: str, colours: PreparedFolder, center: str) -> None:
    nn.Dropout.forward = lambda _self, features: features  # type: ignore[method-assign, assignment]
    _one_of_two(rank, folder, colours, center)


def test_a_pull_without_targets_of_the_dimension_is_refused(colours: PreparedFolder, tmp_path: Path) -> None:
    narrow = dataclasses.replace(colours, embeddings=colours.embeddings[:, :4])

    with pytest.raises(ConfigError, match="pull needs"):
        training(narrow, tmp_path, training_config(loss={"pull": 1.0}))
