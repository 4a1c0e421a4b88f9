"""Advantages from an experience, for every choice of the spec."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.estimate import estimate_advantages, sequence_kl
from camel_ray.ppo.experience import Experience, from_answers

LENGTHS = (2, 3, 1, 4)


def experience() -> Experience:
    answers = [[7] * length for length in LENGTHS]
    whole = from_answers(
        [[5, 6]] * 4,
        answers,
        [[-1.0] * length for length in LENGTHS],
        [True, True, True, False],
        groups=[0, 0, 1, 1],
        policy_versions=[0] * 4,
    )
    tokens = sum(LENGTHS)
    return whole.with_(
        scores_B=torch.tensor([1.0, 3.0, -20.0, 2.0]),
        logprobs_A=torch.full((tokens,), -1.0),
        reference_logprobs_A=torch.full((tokens,), -1.5),
        values_A=torch.zeros(tokens),
    )


def advantages(kl_coefficient: float = 0.0, **fields: Any) -> list[float]:
    spec = PpoStageSpec.model_validate({"prompts": "p", "reward": {"model": "rm"}, "whitenAdvantages": False, **fields})
    result = estimate_advantages(experience(), spec, kl_coefficient=kl_coefficient, baseline=Baseline("batch_mean"))
    assert result.advantages_A is not None
    return [round(value, 5) for value in result.advantages_A.tolist()]


def test_the_kl_of_an_answer_is_the_sum_over_its_tokens() -> None:
    assert sequence_kl(experience()).tolist() == [1.0, 1.5, 0.5, 2.0]


def test_gae_with_lambda_one_and_no_values_is_the_clipped_score_everywhere() -> None:
    assert advantages(lam=1.0) == [1.0] * 2 + [3.0] * 3 + [-10.0] + [2.0] * 4


def test_kl_in_the_reward_lowers_each_token_and_in_the_loss_does_not() -> None:
    assert advantages(kl_coefficient=1.0, lam=1.0)[:2] == [0.0, 0.5]
    assert advantages(kl_coefficient=1.0, lam=1.0, kl={"place": "loss"})[:2] == [1.0, 1.0]


def test_an_unfinished_answer_pays_the_penalty_after_the_clip() -> None:
    fields = {"reward": {"model": "rm", "clip": 1.5, "missingEosPenalty": 4.0}, "lam": 1.0}
    assert advantages(**fields) == [1.0] * 2 + [1.5] * 3 + [-1.5] + [-2.5] * 4


def test_reinforce_subtracts_the_mean_return_of_the_batch() -> None:
    assert advantages(advantage="reinforce") == [2.0] * 2 + [4.0] * 3 + [-9.0] + [3.0] * 4


def test_rloo_and_group_compare_answers_to_one_prompt() -> None:
    assert advantages(advantage="rloo", samplesPerPrompt=2) == [-2.0] * 2 + [2.0] * 3 + [-12.0] + [12.0] * 4
    half = round(2**-0.5, 5)
    assert advantages(advantage="group", samplesPerPrompt=2) == pytest.approx(
        [-half] * 2 + [half] * 3 + [-half] + [half] * 4, abs=2e-5
    )


def test_whitened_advantages_have_mean_zero_and_deviation_one() -> None:
    values = torch.tensor(advantages(whitenAdvantages=True))
    assert float(values.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(values.std()) == pytest.approx(1.0, abs=1e-4)
