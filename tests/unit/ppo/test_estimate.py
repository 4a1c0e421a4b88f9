"""Advantages from an experience, for every choice of the spec."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.ppo.advantages import Baseline
from camel_ray.ppo.estimate import estimate_advantages, figures, sequence_kl, token_rewards
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


def spec_of(**fields: Any) -> PpoStageSpec:
    return PpoStageSpec.model_validate({"prompts": "p", "reward": {"model": "rm"}, "whitenAdvantages": False, **fields})


def conversations() -> Experience:
    """Two rows: turns of 2 and 3 tokens, and one turn of 2; the environment pays 1, 2 and 4."""
    return Experience(
        tokens_N=torch.arange(12),
        lengths_B=torch.tensor([8, 4]),
        action_N=torch.tensor([0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1], dtype=torch.bool),
        rollout_logprobs_A=torch.full((7,), -1.0),
        finished_B=torch.tensor([True, False]),
        groups_B=torch.tensor([0, 0]),
        policy_version_B=torch.zeros(2, dtype=torch.long),
        logprobs_A=torch.full((7,), -1.0),
        values_A=torch.zeros(7),
        turn_rewards_A=torch.tensor([0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 4.0]),
    )


def advantages(kl_coefficient: float = 0.0, **fields: Any) -> list[float]:
    spec = spec_of(**fields)
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


def test_dr_grpo_leaves_the_deviation_out() -> None:
    fields = {"advantage": "group", "samplesPerPrompt": 2, "groupDeviation": False}
    assert advantages(**fields) == [-1.0] * 2 + [1.0] * 3 + [-6.0] + [6.0] * 4


def test_without_a_reference_there_is_no_penalty() -> None:
    whole = experience()
    bare = Experience(**{**vars(whole), "reference_logprobs_A": None})
    spec = spec_of(lam=1.0, kl={"controller": "none"})
    rewards_A = token_rewards(bare, spec, kl_coefficient=0.05)
    assert rewards_A.tolist() == [0.0, 1.0, 0.0, 0.0, 3.0, -10.0, 0.0, 0.0, 0.0, 2.0]
    assert sequence_kl(bare).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [("none", 0.0, 0.0), ("batch", -1.0, -1.0), ("moving", 0.0, -1.0), ("ema", 0.0, -0.1)],
)
def test_the_baseline_of_reinforce_knows_the_rounds_before(kind: str, first: float, second: float) -> None:
    kinds: Any = {"none": "none", "batch": "batch_mean", "moving": "moving_average", "ema": "ema"}
    baseline = Baseline(kinds[kind])
    spec = spec_of(advantage="reinforce", baseline=kind)
    for used in (first, second):  # the mean return of a round is (1 + 3 - 10 + 2) / 4 = -1
        result = estimate_advantages(experience(), spec, kl_coefficient=0.0, baseline=baseline).advantages_A
        assert result is not None and float(result[0]) == pytest.approx(1.0 - used)


def test_long_answers_pay_more_the_nearer_they_come_to_the_limit() -> None:
    fields = {
        "reward": {"model": "rm", "clip": None, "overlongBuffer": 2, "overlongPenalty": 3.0},
        "sampling": {"maxResponseLength": 4},
        "lam": 1.0,
    }
    assert advantages(**fields) == [1.0] * 2 + [1.5] * 3 + [-20.0] + [-1.0] * 4


def test_an_environment_pays_at_the_end_of_each_turn_and_limits_are_for_scores() -> None:
    reward = {"model": "rm", "clip": 1.5, "missingEosPenalty": 0.5}
    spec = spec_of(reward=reward, sampling={"maxResponseLength": 4})
    assert token_rewards(conversations(), spec, kl_coefficient=0.0).tolist() == [0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 3.5]
    scored = conversations().with_(scores_B=torch.tensor([5.0, 0.0]))
    assert token_rewards(scored, spec, kl_coefficient=0.0).tolist() == [0.0, 1.0, 0.0, 0.0, 3.5, 0.0, 3.5]


def test_the_length_of_a_conversation_is_that_of_its_longest_turn() -> None:
    reward = {"model": "rm", "overlongBuffer": 2, "overlongPenalty": 1.0}
    spec = spec_of(reward=reward, sampling={"maxResponseLength": 4})
    rewards_A = token_rewards(conversations(), spec, kl_coefficient=0.0)
    assert rewards_A.tolist() == [0.0, 1.0, 0.0, 0.0, 1.5, 0.0, 4.0]


def test_groups_of_conversations_compare_all_their_turns() -> None:
    spec = spec_of(advantage="rloo", samplesPerPrompt=2)
    result = estimate_advantages(conversations(), spec, kl_coefficient=0.0, baseline=Baseline("none")).advantages_A
    assert result is not None and result.tolist() == [-1.0] * 5 + [1.0] * 2


def test_an_experience_without_any_reward_is_refused() -> None:
    bare = Experience(**{**vars(conversations()), "turn_rewards_A": None})
    with pytest.raises(ValueError, match="neither scores nor rewards"):
        token_rewards(bare, spec_of(), kl_coefficient=0.0)


@pytest.mark.parametrize(
    ("correction", "off_policy", "wanted"),
    [
        ("auto", False, None),
        ("none", True, None),
        ("auto", True, [2.0, 1.0]),
        ("truncate", False, [2.0, 1.0]),
        ("mask", False, [0.0, 1.0]),
    ],
)
def test_importance_weights_follow_the_correction(
    correction: str, off_policy: bool, wanted: list[float] | None
) -> None:
    drawn_elsewhere = experience()
    drawn_elsewhere.rollout_logprobs_A[0] = -3.0  # e^2 times likelier for the trainer than for rollout
    spec = spec_of(rollout={"importance": {"correction": correction}})
    result = estimate_advantages(
        drawn_elsewhere, spec, kl_coefficient=0.0, baseline=Baseline("none"), off_policy=off_policy
    )
    if wanted is None:
        assert result.importance_A is None
    else:
        assert result.importance_A is not None and result.importance_A.tolist() == [wanted[0]] + [wanted[1]] * 9
        assert figures(result, spec)["importance_cut"] == pytest.approx(0.1)
        assert figures(result, spec)["importance_mean"] == pytest.approx((wanted[0] + 9) / 10)


def test_figures_say_how_good_the_critic_was_and_how_many_groups_were_uniform() -> None:
    result = estimate_advantages(
        experience().with_(scores_B=torch.tensor([1.0, 1.0, 2.0, 3.0])),
        spec_of(lam=1.0),
        kl_coefficient=0.0,
        baseline=Baseline("none"),
    )
    found = figures(result, spec_of())
    assert found["uniform_groups"] == 0.5
    assert found["explained_variance"] == pytest.approx(0.0)
    assert found["advantage_max"] == 3.0
    assert result.returns_A is not None
    assert figures(result.with_(values_A=result.returns_A), spec_of())["explained_variance"] == pytest.approx(1.0)
    assert figures(conversations(), spec_of()) == {"turns": 1.5, "uniform_groups": 0.0}
