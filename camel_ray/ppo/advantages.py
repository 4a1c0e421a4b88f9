"""Advantage estimators over ragged sequences of action tokens.

All take flat tensors of action tokens only: the tokens of an answer joined in time order, observations of a multi-turn
conversation left out. The successor of an answer's last token is then the first token of the next answer, and nothing
decays over text the policy did not write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from camel_ray.ppo.ragged import check_lengths, discounted_sum, last_index, next_value, sequence_index


def gae(rewards_A: Tensor, values_A: Tensor, lengths_B: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    `rewards_A`, `values_A`: flat action tokens of all sequences, in order; `lengths_B` adds up to A. The value after
    the last token is 0. Returns advantages and returns (advantages + values), both (A,). Raises ValueError if the
    lengths do not add up.
    """
    check_lengths(lengths_B, rewards_A=rewards_A, values_A=values_A)
    deltas_A = rewards_A + gamma * next_value(values_A, lengths_B) - values_A
    advantages_A = discounted_sum(deltas_A, lengths_B, gamma * lam)
    return advantages_A, advantages_A + values_A


def discounted_returns(rewards_A: Tensor, lengths_B: Tensor, *, gamma: float) -> tuple[Tensor, Tensor]:
    """Returns G_j = r_j + gamma * G_{j+1} (A,), and the return at the first token of each sequence (B,), 0 if empty."""
    check_lengths(lengths_B, rewards_A=rewards_A)
    returns_A = discounted_sum(rewards_A, lengths_B, gamma)
    filled_B = lengths_B > 0
    first_B = (last_index(lengths_B) - lengths_B + 1)[filled_B]
    sequence_B = torch.zeros(lengths_B.shape[0], dtype=rewards_A.dtype, device=rewards_A.device)
    sequence_B[filled_B] = returns_A[first_B]
    return returns_A, sequence_B


BaselineKind = Literal["none", "batch_mean", "batch_token_mean", "moving_average", "ema"]


@dataclass
class Baseline:
    """The number REINFORCE subtracts from every return (Williams 1992; moving average: Ahmadian et al. 2024).

    `none`; `batch_mean` of the sequence returns; `batch_token_mean` of the token returns; `moving_average` of all
    sequences of earlier batches; `ema`, an exponential average of earlier batches without bias correction. Empty
    sequences never count. The fields are the state a checkpoint keeps.
    """

    kind: BaselineKind = "batch_mean"
    decay: float = 0.9
    """Share of the old value that `ema` keeps."""
    average: float = field(default=0.0)
    count: int = field(default=0)

    def update(self, returns_A: Tensor, sequence_returns_B: Tensor, lengths_B: Tensor) -> float:
        """The baseline of this batch; afterwards the batch belongs to the past of the next one."""
        filled = sequence_returns_B[lengths_B > 0]
        batch = float(filled.mean()) if filled.numel() else 0.0
        if self.kind == "batch_mean":
            return batch
        if self.kind == "batch_token_mean":
            return float(returns_A.mean()) if returns_A.numel() else 0.0
        used = self.average
        if self.kind == "moving_average" and filled.numel():
            self.average = (self.average * self.count + batch * filled.numel()) / (self.count + filled.numel())
            self.count += filled.numel()
        elif self.kind == "ema" and filled.numel():
            self.average = self.decay * self.average + (1.0 - self.decay) * batch
        return used


def reinforce(
    rewards_A: Tensor, lengths_B: Tensor, *, gamma: float, baseline: Baseline
) -> tuple[Tensor, Tensor, float]:
    """REINFORCE: advantages and returns (A,), and the baseline that was subtracted."""
    returns_A, sequence_returns_B = discounted_returns(rewards_A, lengths_B, gamma=gamma)
    used = baseline.update(returns_A, sequence_returns_B, lengths_B)
    return returns_A - used, returns_A, used


def _group_mean(scores_B: Tensor, groups_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the own group and its size, per sample."""
    _, index_B, count_G = torch.unique(groups_B, return_inverse=True, return_counts=True)
    count_B = count_G[index_B].to(scores_B.dtype)
    sum_G = torch.zeros(count_G.shape[0], dtype=scores_B.dtype, device=scores_B.device).index_add_(0, index_B, scores_B)
    return sum_G[index_B] / count_B, count_B


def rloo(scores_B: Tensor, groups_B: Tensor) -> Tensor:
    """Score minus the mean score of the other samples of the same group (Kool et al. 2019; Ahmadian et al. 2024), (B,).

    `groups_B` names each sample's group (its prompt). A sample alone in its group has nothing to be compared with: 0.
    """
    mean_B, count_B = _group_mean(scores_B, groups_B)
    return (scores_B - mean_B) * count_B / (count_B - 1.0).clamp(min=1.0)


def dr_grpo(scores_B: Tensor, groups_B: Tensor) -> Tensor:
    """Score minus the group's mean (Liu et al. 2025), (B,)."""
    return scores_B - _group_mean(scores_B, groups_B)[0]


def group_normalised(scores_B: Tensor, groups_B: Tensor, *, unbiased: bool = True, eps: float = 1e-6) -> Tensor:
    """(score - mean) / (std + eps) within the group (GRPO, Shao et al. 2024, section 4.1.2), (B,).

    `unbiased`: the variance divides by k - 1 instead of k. A group of one gives 0.
    """
    centred_B = dr_grpo(scores_B, groups_B)
    mean_square_B, count_B = _group_mean(centred_B**2, groups_B)
    divisor_B = (count_B - 1.0).clamp(min=1.0) if unbiased else count_B
    return centred_B / ((mean_square_B * count_B / divisor_B).sqrt() + eps)


def spread(advantages_B: Tensor, lengths_B: Tensor) -> Tensor:
    """Give every action token the advantage of its sequence, (A,)."""
    return advantages_B[sequence_index(lengths_B)]


def whiten(values_A: Tensor, *, shift_mean: bool = True, unbiased: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale to deviation 1, and to mean 0 with `shift_mean`, over all tokens together (Ziegler et al. 2019).

    eps is added to the variance inside the root. Fewer than two tokens have no unbiased variance and come back as
    they are.
    """
    if values_A.numel() < (2 if unbiased else 1):
        return values_A.clone()
    mean = values_A.mean()
    scaled_A = (values_A - mean) * torch.rsqrt(values_A.var(unbiased=unbiased) + eps)
    return scaled_A if shift_mean else scaled_A + mean
