"""Correction for a rollout engine whose log-probabilities differ from the trainer's.

A rollout engine computes in another order or type than the trainer, or is a step behind. The importance ratio is then
trainer over rollout; it is truncated or masked per token, or judged per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from camel_ray.ppo.ragged import sequence_index, sequence_mean, sequence_sum, token_mean


def truncated_weights(logprobs_A: Tensor, rollout_logprobs_A: Tensor, *, cap: float) -> Tensor:
    """min(ratio, cap) per token (Ionides 2008; Espeholt et al. 2018), (A,)."""
    return (logprobs_A - rollout_logprobs_A).exp().clamp(max=cap)


def masked_weights(logprobs_A: Tensor, rollout_logprobs_A: Tensor, *, low: float, high: float) -> Tensor:
    """The ratio where it lies in [low, high], else 0, per token (IcePop, Ling team 2025), (A,)."""
    ratio_A = (logprobs_A - rollout_logprobs_A).exp()
    return torch.where((ratio_A >= low) & (ratio_A <= high), ratio_A, 0.0)


def sequence_ratios(logprobs_A: Tensor, rollout_logprobs_A: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Ratio of whole sequences, (B,): the product over tokens, and its geometric mean (GSPO, Zheng et al. 2025)."""
    d_A = logprobs_A - rollout_logprobs_A
    return sequence_sum(d_A, lengths_B).exp(), sequence_mean(d_A, lengths_B).exp()


def truncated_answers(logprobs_A: Tensor, rollout_logprobs_A: Tensor, lengths_B: Tensor, *, cap: float) -> Tensor:
    """min(ratio of the whole answer, cap) for each of its tokens, (A,)."""
    product_B, _ = sequence_ratios(logprobs_A, rollout_logprobs_A, lengths_B)
    return product_B.clamp(max=cap)[sequence_index(lengths_B)]


def masked_answers(
    logprobs_A: Tensor, rollout_logprobs_A: Tensor, lengths_B: Tensor, *, low: float, high: float
) -> Tensor:
    """1 for the tokens of answers whose geometric mean ratio lies in [low, high], else 0, (A,)."""
    _, geometric_B = sequence_ratios(logprobs_A, rollout_logprobs_A, lengths_B)
    kept_B = (geometric_B >= low) & (geometric_B <= high)
    return kept_B.to(logprobs_A.dtype)[sequence_index(lengths_B)]


@dataclass(frozen=True)
class Mismatch:
    """How much trainer and rollout disagree about the tokens the rollout drew."""

    kl_k1: float
    """Mean of -d, an estimate of KL(rollout || trainer) in nats per token."""
    kl_k3: float
    """Mean of exp(d) - 1 - d, the same with less variance."""
    abs_mean: float
    """Mean of |d|."""
    abs_max: float
    """Largest |d|."""


def mismatch(logprobs_A: Tensor, rollout_logprobs_A: Tensor) -> Mismatch:
    """Token means over d = trainer - rollout log-probability; all 0 without tokens."""
    d_A = logprobs_A - rollout_logprobs_A
    if d_A.numel() == 0:
        return Mismatch(0.0, 0.0, 0.0, 0.0)
    return Mismatch(
        kl_k1=float(token_mean(-d_A)),
        kl_k3=float(token_mean(torch.expm1(d_A) - d_A)),
        abs_mean=float(token_mean(d_A.abs())),
        abs_max=float(d_A.abs().max()),
    )
