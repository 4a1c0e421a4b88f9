"""From scores, log-probabilities and values to advantages: the one place where the spec's choices meet the
mathematics. The page docs/guide/algorithms.md says the same in formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.ppo_roles import ImportanceSpec
from camel_ray.ppo.advantages import Baseline, dr_grpo, gae, group_normalised, reinforce, rloo, spread, whiten
from camel_ray.ppo.experience import Experience
from camel_ray.ppo.filters import uniform_share
from camel_ray.ppo.importance import masked_answers, masked_weights, truncated_answers, truncated_weights
from camel_ray.ppo.kl import estimate_kl
from camel_ray.ppo.ragged import sequence_sum, token_mean
from camel_ray.ppo.token_rewards import (
    adjust_scores,
    longest_turns,
    overlong_penalties,
    place_rewards,
    turn_lengths,
)


def sequence_kl(experience: Experience) -> Tensor:
    """KL(policy || reference) of each answer in nats, (B,): the sum of k1 over its tokens, which has no bias. 0 where
    there is no reference.
    """
    if experience.reference_logprobs_A is None:
        return torch.zeros(len(experience))
    assert experience.logprobs_A is not None
    kl_A = estimate_kl(experience.logprobs_A, experience.reference_logprobs_A, "k1")
    return sequence_sum(kl_A, experience.action_lengths_B)


def token_rewards(experience: Experience, spec: PpoStageSpec, *, kl_coefficient: float) -> Tensor:
    """Reward of every action token, (A,): on the last one of an answer its limited score less what it pays for its end
    and its length, on the last one of a turn the environment's reward, and on all less the KL penalty where that has
    its place in the reward.

    Raises ValueError if there is neither a score nor an environment's reward.
    """
    assert experience.logprobs_A is not None, "log-probabilities of the policy have to be there first"
    if experience.scores_B is None and experience.turn_rewards_A is None:
        raise ValueError("an experience has neither scores nor rewards of an environment")
    scores_B = torch.zeros(len(experience)) if experience.scores_B is None else experience.scores_B
    kl_A = torch.zeros_like(experience.logprobs_A)
    if spec.kl.place == "reward" and experience.reference_logprobs_A is not None:
        kl_A = estimate_kl(experience.logprobs_A, experience.reference_logprobs_A, spec.kl.estimator)
    shaped_B = adjust_scores(
        scores_B, experience.finished_B, clip=spec.reward.clip, missing_eos_penalty=spec.reward.missing_eos_penalty
    ) - overlong_penalties(
        longest_turns(experience.sequences),
        longest=spec.sampling.max_response_length,
        buffer=spec.reward.overlong_buffer,
        penalty=spec.reward.overlong_penalty,
    )
    rewards_A = place_rewards(kl_A, shaped_B, experience.action_lengths_B, kl_coefficient=kl_coefficient)
    # The limit `reward.clip` is for scores: an environment's author chose the scale of its rewards.
    return rewards_A if experience.turn_rewards_A is None else rewards_A + experience.turn_rewards_A


def importance_weights(experience: Experience, spec: ImportanceSpec, *, off_policy: bool) -> Tensor | None:
    """Weights of the tokens' policy loss, (A,), or None where there is nothing to correct.

    `off_policy`: the policy that drew the answers is not exactly the one that learns (`auto` corrects only then).
    """
    assert experience.logprobs_A is not None
    logprobs_A, rollout_logprobs_A = experience.logprobs_A, experience.rollout_logprobs_A
    lengths_B = experience.action_lengths_B
    correction = ("truncate" if off_policy else "none") if spec.correction == "auto" else spec.correction
    match correction, spec.level:
        case "truncate", "token":
            return truncated_weights(logprobs_A, rollout_logprobs_A, cap=spec.cap)
        case "truncate", "answer":
            return truncated_answers(logprobs_A, rollout_logprobs_A, lengths_B, cap=spec.cap)
        case "mask", "token":
            return masked_weights(logprobs_A, rollout_logprobs_A, low=spec.low, high=spec.high)
        case "mask", "answer":
            return masked_answers(logprobs_A, rollout_logprobs_A, lengths_B, low=spec.low, high=spec.high)
    return None


def estimate_advantages(
    experience: Experience, spec: PpoStageSpec, *, kl_coefficient: float, baseline: Baseline, off_policy: bool = False
) -> Experience:
    """The experience with advantages, with returns where a critic learns, and with importance weights where answers are
    corrected for the policy that drew them (see `importance_weights`).

    The group estimators compare the sums of the tokens' rewards: in a conversation, of all its turns. Whitening is for
    token-level advantages (gae, reinforce): those of groups are centred by their prompt already.
    """
    lengths_B = experience.action_lengths_B
    rewards_A = token_rewards(experience, spec, kl_coefficient=kl_coefficient)
    if spec.whiten_rewards:
        rewards_A = whiten(rewards_A, shift_mean=False)
    match spec.advantage:
        case "gae":
            assert experience.values_A is not None, "the critic's values have to be there first"
            advantages_A, returns_A = gae(rewards_A, experience.values_A, lengths_B, gamma=spec.gamma, lam=spec.lam)
            experience = experience.with_(returns_A=returns_A)
        case "reinforce":
            advantages_A, _, _ = reinforce(rewards_A, lengths_B, gamma=spec.gamma, baseline=baseline)
        case "rloo":
            advantages_A = spread(rloo(sequence_sum(rewards_A, lengths_B), experience.groups_B), lengths_B)
        case "group":
            compare = group_normalised if spec.group_deviation else dr_grpo
            advantages_A = spread(compare(sequence_sum(rewards_A, lengths_B), experience.groups_B), lengths_B)
    if spec.whiten_advantages and spec.advantage in ("gae", "reinforce"):
        advantages_A = whiten(advantages_A)
    experience = experience.with_(advantages_A=advantages_A)
    weights_A = importance_weights(experience, spec.rollout.importance, off_policy=off_policy)
    return experience if weights_A is None else experience.with_(importance_A=weights_A)


def figures(experience: Experience, spec: PpoStageSpec) -> dict[str, float]:
    """What a round's report says about its experience beside rewards and lengths; a figure is left out where its
    fields are not there.

    `turns` per conversation; `uniform_groups`, the share of prompts whose answers all earned the same;
    `advantage_std`, `advantage_max` (of the absolute value); `value_mean` and `explained_variance` of the critic before
    the round, 1 - Var(return - value) / Var(return): 1 is perfect, 0 no better than one number for all;
    `importance_mean` and `importance_cut`, the share of tokens whose weight was truncated or set to 0.
    """
    found: dict[str, float] = {}
    earned_B = torch.zeros(len(experience)) if experience.scores_B is None else experience.scores_B
    if experience.turn_rewards_A is not None:
        found["turns"] = turn_lengths(experience.sequences)[0].shape[0] / max(len(experience), 1)
        earned_B = earned_B + sequence_sum(experience.turn_rewards_A, experience.action_lengths_B)
    groups = experience.groups_B.tolist()
    if len(set(groups)) < len(groups):
        found["uniform_groups"] = uniform_share(earned_B.tolist(), groups)
    advantages_A, values_A, returns_A = experience.advantages_A, experience.values_A, experience.returns_A
    if advantages_A is not None and advantages_A.numel():
        found["advantage_std"] = float(advantages_A.std(unbiased=False))
        found["advantage_max"] = float(advantages_A.abs().max())
    if values_A is not None and returns_A is not None and values_A.numel():
        variance = float(returns_A.var(unbiased=False))
        found["value_mean"] = float(values_A.mean())
        if variance > 0:
            found["explained_variance"] = 1.0 - float((returns_A - values_A).var(unbiased=False)) / variance
    if experience.importance_A is not None:
        weights_A, cap = experience.importance_A, spec.rollout.importance.cap
        found["importance_mean"] = float(token_mean(weights_A))
        found["importance_cut"] = float(token_mean(((weights_A == 0) | (weights_A >= cap)).float()))
    return found
