import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.training.template_rules import DEFAULT_RULE, RULES, best_template, mean_of_scores, mean_of_templates


def on_circle(*degrees: float) -> NDArray[np.float32]:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def chord(degrees: float) -> float:
    return float(2 * np.sin(np.deg2rad(degrees) / 2))


def test_the_nearest_template_speaks_for_its_subject() -> None:
    distances = best_template(on_circle(0), on_circle(30, 60, 90), np.array([0, 2]))

    assert distances == pytest.approx(np.array([[chord(30), chord(90)]]), abs=1e-5)


def test_the_mean_of_the_templates_speaks_as_if_it_were_one() -> None:
    distances = mean_of_templates(on_circle(0), on_circle(30, 60, 90), np.array([0, 2]))

    assert distances == pytest.approx(np.array([[chord(45), chord(90)]]), abs=1e-5)


def test_the_mean_of_scores_lies_between_both() -> None:
    distances = mean_of_scores(on_circle(0), on_circle(30, 60, 90), np.array([0, 2]))

    score = (np.cos(np.deg2rad(30)) + np.cos(np.deg2rad(45))) / 2
    assert distances == pytest.approx(np.array([[np.sqrt(2 - 2 * score), chord(90)]]), abs=1e-5)


@pytest.mark.parametrize("rule", [mean_of_templates, mean_of_scores])
def test_templates_that_cancel_each_other_leave_the_nearest(rule: object) -> None:
    assert callable(rule)

    distances = rule(on_circle(20), on_circle(0, 180, 90), np.array([0, 2]))

    assert distances == pytest.approx(np.array([[chord(20), chord(70)]]), abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(list(RULES)), st.integers(0, 999))
def test_a_subject_with_one_template_has_its_distance_by_any_rule(rule: str, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(6, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    distances = RULES[rule](vectors[:2], vectors[2:], np.arange(4))

    assert distances == pytest.approx(np.linalg.norm(vectors[:2, None] - vectors[None, 2:], axis=2), abs=1e-3)


def test_the_default_is_one_of_them() -> None:
    assert DEFAULT_RULE in RULES
