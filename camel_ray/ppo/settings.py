"""What roles are built from and told: the values that travel from the driver to the hosts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo import ClipSpec, SamplingSpec
from camel_ray.api.stages.ppo_roles import GuardSpec, LoraSpec, RolloutSpec
from camel_ray.api.training import OptimizerSpec
from camel_ray.ppo.kl import KlEstimator
from camel_ray.ppo.losses import Aggregation
from camel_ray.ppo.ptx import PtxText


@dataclass(frozen=True)
class TrainingSettings:
    """What a role that trains needs beside its model."""

    optimizer: OptimizerSpec
    updates: int
    """Optimizer steps of the whole stage, for the learning-rate schedule."""
    zero: int = 0
    offload: str = "none"
    """none, optimizer or all: what lives in host memory."""
    gradient_checkpointing: bool = False
    ema_decay: float | None = None
    """Decay per update of an average of the weights; None: no average is kept."""
    guard: GuardSpec = GuardSpec()


@dataclass(frozen=True)
class EnvironmentSettings:
    """A user's environment class, sent as text: the nodes of rollout need not have the file."""

    source: str
    """Python source of the file."""
    path: str
    """Where it came from, for messages."""
    name: str
    max_turns: int
    timeout_seconds: float


@dataclass(frozen=True)
class RolloutSettings:
    """What rollout needs beside its model."""

    spec: RolloutSpec
    sampling: SamplingSpec
    stop_ids: tuple[int, ...]
    environment: EnvironmentSettings | None = None


@dataclass(frozen=True)
class RoleSettings:
    """What a role is built from."""

    model: ModelSpec
    tokenizer: str
    seed: int
    bf16: bool
    micro_batch_tokens: int
    training: TrainingSettings | None = None
    """Set for the roles that train."""
    lora: LoraSpec | None = None
    """Adapters of the policy; set for actor, and for a reference and rollout that live with it."""
    rollout: RolloutSettings | None = None
    """Set for rollout."""
    ptx: PtxText | None = None
    """Text whose language-model loss is mixed into the actor's."""

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
    loss_aggregation: Aggregation


@dataclass(frozen=True)
class CriticSettings:
    """How the critic learns."""

    clip: float | None
    loss_aggregation: Aggregation


@dataclass(frozen=True)
class Batch:
    """The mini-batch of one optimizer step, over all ranks."""

    tokens: int
    """Action tokens."""
    sequences: int
    """Answers that have any."""
    ptx_seed: int = 0
    """Chooses the text that is mixed in."""


@dataclass(frozen=True)
class Place:
    """Where a role lives: its rank among the processes of its group, and the other roles of its process."""

    rank: int
    world: int
    device: torch.device
    roles: Mapping[str, Any]
