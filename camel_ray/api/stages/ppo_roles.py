"""Where the roles of `ppo` live and how their processes behave: placement's settings, rollout engines, limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from camel_ray.api.base import Spec

RoleName = Literal["actor", "critic", "reference", "reward", "rollout"]


class RoleSpec(Spec):
    """What one role needs of the processes that host it. Roles placed together share processes, so what concerns the
    process (`group`, `workers`, `labels`) must agree.
    """

    group: str | None = Field(default=None, max_length=63)
    """Worker group of `cluster.groups` whose nodes host the role. Default: the stage's `group`."""
    workers: int | None = Field(default=None, ge=1)
    """Processes (one device each) that host the role. Default: the stage's `workers`."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels that the nodes of the role must have, beside those of its group."""
    zero: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage of a role that trains (actor, critic). Default: the stage's `zero`."""
    offload: Literal["none", "optimizer", "all"] | None = None
    """Host memory for optimizer state (`optimizer`) or also parameters (`all`, ZeRO-3 only) of a role that trains.
    Default: the stage's `offload`."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """Arithmetic of the role. Default: the stage's `precision`."""


class RolesSpec(Spec):
    """Settings by role."""

    actor: RoleSpec = RoleSpec()
    """The policy that is trained."""
    critic: RoleSpec = RoleSpec()
    """The value model that is trained (advantage `gae` only)."""
    reference: RoleSpec = RoleSpec()
    """The frozen copy of the first policy that the KL penalty pulls towards. With `lora` and placed with the actor, it
    is the actor with the adapter off."""
    reward: RoleSpec = RoleSpec()
    """The reward model, where there is one."""
    rollout: RoleSpec = RoleSpec()
    """The process that generates answers."""


class ImportanceSpec(Spec):
    """Correction for answers that were drawn by another policy than the one that learns from them: an engine with
    other arithmetic, or weights one step old.
    """

    correction: Literal["auto", "none", "truncate", "mask"] = "auto"
    """`truncate`: weigh each token by min(ratio, cap). `mask`: by the ratio where it lies in [low, high], else 0.
    `auto`: `truncate` where the two policies can differ, else `none`."""
    level: Literal["token", "answer"] = "token"
    """Judge each token by its own ratio, or all tokens of an answer alike: `truncate` by the product of their ratios,
    `mask` by keeping the answer where their geometric mean lies in [low, high]."""
    cap: float = Field(default=2.0, gt=1.0)
    """Largest weight with `truncate`."""
    low: float = Field(default=0.5, gt=0.0, le=1.0)
    """Smallest ratio kept by `mask`."""
    high: float = Field(default=2.0, ge=1.0)
    """Largest ratio kept by `mask`."""


class RolloutSpec(Spec):
    """How answers are made."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """`transformers`: needs nothing else, and shares the actor's weights where both live together. `vllm`: needs the
    package vllm, and processes of its own (placement `split`, or a group with rollout alone)."""
    staleness: Literal[0, 1] = 0
    """Policy updates an answer may be behind. 1 overlaps generating and learning: the answers of a round are drawn
    while the round before is learned from. Needs rollout in processes of its own."""
    importance: ImportanceSpec = ImportanceSpec()
    """Correction for answers of another policy."""
    mismatch_limit: float | None = Field(default=None, gt=0.0)
    """Largest mean of |log-probability of the trainer - of rollout| on a sample of answers after a weight sync; above
    it, the sync was wrong and the stage ends. Default: 0.001 in fp32, 0.1 in bf16."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Devices over which one vllm engine splits its model."""
    memory_share: float = Field(default=0.85, gt=0.0, le=1.0)
    """Share of a GPU's memory that vllm may use for weights and cache."""


class LoraSpec(Spec):
    """Low-rank adapters (Hu et al. 2022) instead of all of the policy's weights."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0.0)
    """Adapters are scaled by alpha / rank."""
    targets: list[str] | None = None
    """Names of the linear layers that get one (`q_proj`, ...). Default: all but the head."""


class LimitsSpec(Spec):
    """How long the driver waits for a process, and how often it replaces one."""

    start_seconds: float = Field(default=600.0, gt=0.0)
    """For a process to start and load its models."""
    call_seconds: float = Field(default=1800.0, gt=0.0)
    """For one call of a round to one process."""
    silent_seconds: float = Field(default=60.0, gt=0.0)
    """For a process to say that it is alive; a stopped or swapped-out one does not."""
    placement_seconds: float = Field(default=900.0, gt=0.0)
    """For an autoscaled cluster to grow to what the placement needs."""
    restarts: int = Field(default=10, ge=0)
    """Lost processes the stage replaces before it ends with an error."""


class GuardSpec(Spec):
    """What counts as a broken update. It is skipped on all ranks together, and counted."""

    max_loss: float | None = Field(default=None, gt=0.0)
    """Skip updates with a policy or value loss beyond +-this. Null: only those that are not a number."""
    max_grad_norm: float | None = Field(default=None, gt=0.0)
    """Skip updates whose gradient norm (before clipping) is above this. Null: only those that are not a number."""
    patience: int = Field(default=3, ge=1)
    """Rounds in a row with a skipped update after which the stage goes back to the last checkpoint and leaves out the
    prompts since then."""
    rollbacks: int = Field(default=2, ge=0)
    """Times the stage goes back before it ends with an error."""
