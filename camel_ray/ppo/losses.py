"""Token losses of the policy and the critic, as flat tensors; the caller decides how to aggregate.

A loss here is per token (A,). A role multiplies it by `token_weights`, which know the whole mini-batch, and sums: the
sums of all ranks, micro-batches and accumulation steps add up to the mean over the mini-batch, so that the update does
not depend on how the batch was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from camel_ray.ppo.ragged import sequence_index, token_mean

Aggregation = Literal["token-mean", "sequence-mean"]


def token_weights(action_lengths_B: Tensor, aggregation: Aggregation, *, tokens: int, sequences: int) -> Tensor:
    """Share of every action token in the loss of a mini-batch, float32 (A,): `(loss_A * weight_A).sum()`, added up over
    all parts of the mini-batch, is its mean.

    `action_lengths_B`: the sequences of this part; `tokens` action tokens and `sequences` sequences that have any lie
    in the mini-batch over all ranks and micro-batches. `token-mean`: every token counts the same (DAPO, Yu et al.
    2025); `sequence-mean`: every sequence does, and within one its tokens (GRPO, Shao et al. 2024).
    """
    if aggregation == "token-mean":
        share_B = torch.full(action_lengths_B.shape, 1.0 / max(tokens, 1), device=action_lengths_B.device)
    else:
        share_B = 1.0 / (action_lengths_B.clamp(min=1).float() * max(sequences, 1))
    return share_B[sequence_index(action_lengths_B)]


@dataclass(frozen=True)
class PolicyLoss:
    """Per-token results of `policy_loss`, all (A,); the last three are 0/1 flags that carry no gradient."""

    loss_A: Tensor
    ratio_A: Tensor
    clip_active_A: Tensor
    """The clipped term is the smaller one, so the token gives no gradient."""
    clip_outside_A: Tensor
    """The ratio left the allowed range, whatever the sign of the advantage."""
    dual_clip_A: Tensor
    """The dual clip replaced the objective."""


def policy_loss(
    logprobs_A: Tensor,
    old_logprobs_A: Tensor,
    advantages_A: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """PPO's clipped objective, negated (Schulman et al. 2017, eq. 7).

    The probability ratio is limited to [1 - clip_low, 1 + clip_high] (different limits: DAPO, Yu et al. 2025).
    `dual_clip` = c keeps the objective of tokens with negative advantage above c * A (Ye et al. 2020).
    """
    ratio_A = (logprobs_A - old_logprobs_A).exp()
    plain_A = ratio_A * advantages_A
    clipped_A = ratio_A.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages_A
    objective_A = torch.minimum(plain_A, clipped_A)
    dual_A = torch.zeros_like(ratio_A, dtype=torch.bool)
    if dual_clip is not None:
        floor_A = dual_clip * advantages_A
        dual_A = (advantages_A < 0) & (floor_A > objective_A)
        objective_A = torch.where(dual_A, floor_A, objective_A)
    return PolicyLoss(
        loss_A=-objective_A,
        ratio_A=ratio_A,
        clip_active_A=(clipped_A < plain_A).to(ratio_A.dtype),
        clip_outside_A=((ratio_A < 1.0 - clip_low) | (ratio_A > 1.0 + clip_high)).to(ratio_A.dtype),
        dual_clip_A=dual_A.to(ratio_A.dtype),
    )


def approximate_kl(logprobs_A: Tensor, old_logprobs_A: Tensor) -> dict[str, Tensor]:
    """Token means of the estimators of KL(old || new) for tokens drawn from the old policy: how far an update moved."""
    d_A = logprobs_A - old_logprobs_A
    return {"k1": token_mean(-d_A), "k2": token_mean(0.5 * d_A**2), "k3": token_mean(torch.expm1(d_A) - d_A)}


def value_loss(
    values_A: Tensor, old_values_A: Tensor, returns_A: Tensor, *, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Half the squared error, not falling further once a value moved by `clip` (Engstrom et al. 2020).

    Returns the loss and a 0/1 flag of the tokens where the clipped error was the larger one, both (A,).
    """
    error_A = (values_A - returns_A) ** 2
    if clip is None:
        return 0.5 * error_A, torch.zeros_like(error_A)
    # Limiting the value itself leaves one inside the range untouched, bit for bit.
    clipped_A = (values_A.clamp(old_values_A - clip, old_values_A + clip) - returns_A) ** 2
    return 0.5 * torch.maximum(error_A, clipped_A), (clipped_A > error_A).to(error_A.dtype)


def entropy(logits_AV: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy of the next-token distributions at a temperature, in nats, (A,)."""
    logp_AV = (logits_AV / temperature).log_softmax(-1)
    return -(logp_AV.exp() * logp_AV).sum(-1)
