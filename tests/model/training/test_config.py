from pathlib import Path

import pytest

from model.training.config import ConfigError, read_config

SMALLEST = "[data]\nfolders = ['prepared']\n[run]\nsteps = 10\n"


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(SMALLEST)

    config = read_config(tmp_path / "run.toml")

    assert (config.data.folders, config.run.steps, config.loss.center) == ((Path("prepared"),), 10, "paper")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (SMALLEST + "speed = 3\n", "run.speed: extra inputs are not permitted"),
        (SMALLEST.replace("10", "0"), "run.steps: input should be greater than or equal to 1"),
        (SMALLEST + "seed = -1\n", "run.seed: input should be greater than or equal to 0"),
        (SMALLEST + "[loss]\ncenter = 'median'\n", "loss.center: input should be 'none', 'paper' or 'learned'"),
        ("[run]\nsteps = 10\n", "data: field required"),
        ("steps =", "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_and_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "run.toml").write_text(text)

    with pytest.raises(ConfigError, match=sentence):
        read_config(tmp_path / "run.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_the_configs_that_come_along_can_be_read(path: Path) -> None:
    assert read_config(path).run.steps > 0
