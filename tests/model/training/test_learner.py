import pytest

from model.training.learner import rate_share
from tests.model.training.conftest import training_config


def test_the_rate_rises_to_its_value_and_falls_to_its_last() -> None:
    config = training_config(optimizer={"warmup": 4, "final_rate": 0.1}, run={"steps": 15})

    shares = [rate_share(step, config) for step in range(15)]

    assert shares[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert shares[9] == pytest.approx(0.55)
    assert shares[14] == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_the_shortest_runs_have_a_rate(warmup: int) -> None:
    config = training_config(optimizer={"warmup": warmup}, run={"steps": 1})

    assert 0 < rate_share(0, config) <= 1
