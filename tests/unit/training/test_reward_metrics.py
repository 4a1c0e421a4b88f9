"""Figures of a reward model on held-out pairs."""

import json
from pathlib import Path

import pytest

from camel_ray.training.reward_metrics import normalise, reward_metrics


def test_accuracy_with_its_baseline_and_by_kind():
    metrics = reward_metrics(
        [(2.0, 1.0), (1.0, 1.0), (0.0, 3.0), (4.0, -1.0)],
        characters=[[10, 5], [3, 3], [2, 9], [1, 8]],
        kinds=["a", "a", "b", None],
    )
    assert metrics["pairs"] == 4
    assert metrics["accuracy"] == 0.5
    assert metrics["accuracy_longer_wins"] == pytest.approx(1.5 / 4)
    assert metrics["accuracy_by_kind"] == {"a": 0.5, "b": 0.0}
    assert metrics["mean"] == pytest.approx(7 / 4)
    assert metrics["std"] == pytest.approx((8.75 / 3) ** 0.5)
    assert metrics["margin"] == pytest.approx((1 + 0 - 3 + 5) / 4)


GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "reward_model_loss.json").read_text())["cases"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_accuracy_and_gap_agree_with_the_reference_values(case):
    chosen, rejected = case["inputs"]["chosen"], case["inputs"]["rejected"]
    metrics = reward_metrics(
        list(zip(chosen, rejected, strict=True)), characters=[[1, 1]] * len(chosen), kinds=[None] * len(chosen)
    )
    assert metrics["accuracy"] == case["expected"]["accuracy"]
    assert metrics["margin"] == pytest.approx(case["expected"]["mean_reward_gap"], abs=1e-12)


def test_without_pairs_there_are_no_figures():
    metrics = reward_metrics([], characters=[], kinds=[])
    assert metrics["pairs"] == 0 and metrics["accuracy"] is None and metrics["mean"] is None


def test_without_kinds_there_is_no_breakdown():
    assert "accuracy_by_kind" not in reward_metrics([(1.0, 0.0)], characters=[[1, 1]], kinds=[None])


@pytest.mark.parametrize(("std", "stored"), [(0.5, 0.5), (0.0, 1.0)])
def test_normalisation_never_divides_by_zero(std, stored):
    class Config:
        reward_mean = reward_std = None

    config = Config()
    normalise(config, mean=2.0, std=std)
    assert (config.reward_mean, config.reward_std) == (2.0, stored)
