"""What roles are built from and told: the values that travel from the driver to the hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo import ClipSpec
from camel_ray.api.training import OptimizerSpec
from camel_ray.ppo.kl import KlEstimator


@dataclass(frozen=True)
class RoleSettings:
    """What a role is built from. `zero`, `optimizer` and `updates` matter to roles that train only."""

    model: ModelSpec
    tokenizer: str
    seed: int
    bf16: bool
    micro_batch_tokens: int
    zero: int = 0
    optimizer: OptimizerSpec | None = None
    updates: int = 1
    """Optimizer steps of the whole stage, for the learning-rate schedule."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights on the device."""
        return torch.bfloat16 if self.bf16 else torch.float32


@dataclass(frozen=True)
class PolicySettings:
    """How the policy learns."""

    clip: ClipSpec
    temperature: float
    entropy_coefficient: float
    kl_estimator: KlEstimator
    ptx_coefficient: float


@dataclass(frozen=True)
class Place:
    """Where a role lives: its rank among the processes of its group, and the other roles of its process."""

    rank: int
    world: int
    device: torch.device
    roles: Mapping[str, Any]
