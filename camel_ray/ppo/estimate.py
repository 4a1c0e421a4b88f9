"""From scores, log-probabilities and values to advantages: the one place where the spec's choices meet the
mathematics.
"""

from __future__ import annotations

import torch

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.ppo.advantages import Baseline, gae, group_normalised, reinforce, rloo, spread, whiten
from camel_ray.ppo.experience import Experience
from camel_ray.ppo.kl import estimate_kl
from camel_ray.ppo.ragged import sequence_sum
from camel_ray.ppo.token_rewards import adjust_scores, place_rewards


def sequence_kl(experience: Experience) -> torch.Tensor:
    """KL(policy || reference) of each answer in nats, (B,): the sum of k1 over its tokens, which has no bias."""
    assert experience.logprobs_A is not None and experience.reference_logprobs_A is not None
    kl_A = estimate_kl(experience.logprobs_A, experience.reference_logprobs_A, "k1")
    return sequence_sum(kl_A, experience.action_lengths_B)


def estimate_advantages(
    experience: Experience, spec: PpoStageSpec, *, kl_coefficient: float, baseline: Baseline
) -> Experience:
    """The experience with advantages, and with returns where a critic learns.

    Whitening is for token-level advantages (gae, reinforce): those of groups are centred by their prompt already.
    """
    assert (
        experience.scores_B is not None
        and experience.logprobs_A is not None
        and experience.reference_logprobs_A is not None
    )
    lengths_B = experience.action_lengths_B
    kl_A = estimate_kl(experience.logprobs_A, experience.reference_logprobs_A, spec.kl.estimator)
    rewards_A = place_rewards(
        kl_A,
        adjust_scores(
            experience.scores_B,
            experience.finished_B,
            clip=spec.reward.clip,
            missing_eos_penalty=spec.reward.missing_eos_penalty,
        ),
        lengths_B,
        kl_coefficient=kl_coefficient if spec.kl.place == "reward" else 0.0,
    )
    if spec.whiten_rewards:
        rewards_A = whiten(rewards_A, shift_mean=False)
    match spec.advantage:
        case "gae":
            assert experience.values_A is not None
            advantages_A, returns_A = gae(rewards_A, experience.values_A, lengths_B, gamma=spec.gamma, lam=spec.lam)
            experience = experience.with_(returns_A=returns_A)
        case "reinforce":
            advantages_A, _, _ = reinforce(rewards_A, lengths_B, gamma=spec.gamma, baseline=baseline)
        case "rloo":
            advantages_A = spread(rloo(sequence_sum(rewards_A, lengths_B), experience.groups_B), lengths_B)
        case "group":
            advantages_A = spread(group_normalised(sequence_sum(rewards_A, lengths_B), experience.groups_B), lengths_B)
    if spec.whiten_advantages and spec.advantage in ("gae", "reinforce"):
        advantages_A = whiten(advantages_A)
    return experience.with_(advantages_A=advantages_A)
