"""Scores relative to demonstrations, against tests/golden/reward_baseline.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from camel_ray.errors import RewardError
from camel_ray.ppo.rewards import RewardBaseline

CASES = json.loads((Path(__file__).parents[2] / "golden" / "reward_baseline.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize(("normalise", "expected"), [("prompt", "per_prompt"), ("demonstrations", "global")])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden(case: dict[str, Any], normalise: Any, expected: str) -> None:
    baseline = RewardBaseline.of(dict(enumerate(case["inputs"]["demo_scores"])), normalise=normalise)
    for prompt, scores in enumerate(case["inputs"]["sample_scores"]):
        actual = baseline.subtract(scores, [prompt] * len(scores))
        assert actual == pytest.approx(case["expected"][expected][prompt], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("normalise", ["prompt", "demonstrations"])
def test_demonstrations_score_zero_on_average(normalise: Any) -> None:
    demonstrations = {7: [1.0, 3.0], 2: [0.0], 9: [-4.0, 5.0, 2.5]}
    baseline = RewardBaseline.of(demonstrations, normalise=normalise)
    flat = [(score, prompt) for prompt, scores in demonstrations.items() for score in scores]
    assert math.fsum(baseline.subtract([s for s, _ in flat], [p for _, p in flat])) == pytest.approx(0.0, abs=1e-12)


def test_a_prompt_without_a_scored_demonstration_uses_the_mean_of_all() -> None:
    baseline = RewardBaseline.of({0: [1.0], 1: [], 2: [3.0]}, normalise="prompt")
    assert baseline.subtract([1.0, 1.0, 1.0, 1.0], [0, 1, 2, 99]) == [0.0, -1.0, -2.0, -1.0]


@pytest.mark.parametrize(
    ("demonstrations", "problem"),
    [({}, "no prompt has an answer"), ({0: []}, "no prompt has an answer"), ({0: [1.0, math.nan]}, "not finite")],
)
def test_no_baseline_out_of_nothing(demonstrations: dict[int, list[float]], problem: str) -> None:
    with pytest.raises(RewardError, match=f"^reward.normalise: prompt needs .*{problem}.*; use prompts with answers"):
        RewardBaseline.of(demonstrations, normalise="prompt")
