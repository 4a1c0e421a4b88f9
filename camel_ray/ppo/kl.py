"""How far the policy is from the reference: estimators per token, the exact divergence, and who sets the penalty's
weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

KlEstimator = Literal["k1", "abs", "k2", "k3"]


def estimate_kl(
    logprobs_A: Tensor, reference_logprobs_A: Tensor, estimator: KlEstimator, *, clamp: float | None = None
) -> Tensor:
    """Per-token Monte-Carlo estimate of KL(policy || reference) for tokens drawn from the policy, in nats, (A,).

    With r = log policy - log reference (Schulman, "Approximating KL divergence", 2020): k1 = r (unbiased, may be
    negative), k2 = r^2 / 2, k3 = exp(-r) - 1 + r (unbiased, never negative), abs = |r|. `clamp` limits the finished
    estimate.
    """
    ratio_A = logprobs_A - reference_logprobs_A
    match estimator:
        case "k1":
            kl_A = ratio_A
        case "abs":
            kl_A = ratio_A.abs()
        case "k2":
            kl_A = 0.5 * ratio_A**2
        case "k3":
            kl_A = torch.expm1(-ratio_A) + ratio_A
    return kl_A if clamp is None else kl_A.clamp(-clamp, clamp)


def full_kl(logits_AV: Tensor, reference_logits_AV: Tensor) -> Tensor:
    """Exact KL(policy || reference) of the next-token distributions, in nats, (A,). Needs both full rows of logits."""
    logp_AV, logq_AV = logits_AV.log_softmax(-1), reference_logits_AV.log_softmax(-1)
    return (logp_AV.exp() * (logp_AV - logq_AV)).sum(-1)


class KlController(Protocol):
    """Sets the weight of the KL penalty."""

    coefficient: float

    def update(self, kl: float, samples: int) -> float:
        """Learn that `samples` answers had a mean KL of `kl` nats; returns the coefficient from now on."""
        ...


@dataclass
class FixedKl:
    """A weight that never changes."""

    coefficient: float

    def update(self, kl: float, samples: int) -> float:
        """Returns the same coefficient."""
        return self.coefficient


@dataclass
class AdaptiveKl:
    """Steers the weight so that the mean KL per answer stays at `target` nats (Ziegler et al. 2019, section 2.2).

    The relative error is limited to 20 % per batch; `samples / horizon` is the gain, so that batches of any size
    react alike.
    """

    coefficient: float
    target: float
    horizon: int

    def update(self, kl: float, samples: int) -> float:
        """Returns the coefficient from now on."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coefficient *= 1.0 + error * samples / self.horizon
        return self.coefficient
