"""`ppo`: reinforcement learning against a reward, with roles placed together or apart."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from camel_ray.api.base import Spec
from camel_ray.api.data import DataRef
from camel_ray.api.model import CheckpointSpec, ModelSpec
from camel_ray.api.stages.ppo_reward import EnvironmentSpec, RewardSpec
from camel_ray.api.stages.ppo_roles import (
    GuardSpec,
    LimitsSpec,
    LoraSpec,
    RoleName,
    RolesSpec,
    RolloutSpec,
)
from camel_ray.api.training import OptimizerSpec


class KlSpec(Spec):
    """How the policy is kept near the reference model."""

    coefficient: float = Field(default=0.05, ge=0.0)
    """First (or fixed) weight of the KL penalty."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token estimator of KL(policy || reference) (Schulman 2020): log-ratio, half its square, or exp(-r) - 1 +
    r."""
    controller: Literal["none", "fixed", "adaptive"] = "adaptive"
    """`adaptive`: the coefficient is steered to keep the KL at `target` (Ziegler et al. 2019, section 2.2). `none`: no
    penalty, and no reference model is loaded."""
    target: float = Field(default=6.0, gt=0.0)
    """KL the adaptive controller aims at, in nats per answer (sum over its tokens, mean over answers)."""
    horizon: int = Field(default=10_000, ge=1)
    """Samples over which the adaptive controller reacts: a smaller horizon reacts faster."""
    place: Literal["reward", "loss"] = "reward"
    """Subtract the penalty from the reward of each token, or add it to the policy loss."""


class ClipSpec(Spec):
    """Limits of the policy's probability ratio."""

    low: float = Field(default=0.2, gt=0.0, lt=1.0)
    """The ratio is limited to at least 1 - low."""
    high: float = Field(default=0.2, gt=0.0)
    """The ratio is limited to at most 1 + high (a larger value than `low` is DAPO's clip-higher)."""
    dual: float | None = Field(default=None, gt=1.0)
    """Dual clip (Ye et al. 2020): lower bound c x A of the objective for negative advantages. Null: off."""


class PtxSpec(Spec):
    """Language-model loss mixed into the policy loss (InstructGPT's PPO-ptx)."""

    data: DataRef
    """Text to mix in: a data stage or a data set described in place."""
    coefficient: float = Field(default=0.1, gt=0.0)
    """Weight of the language-model loss."""
    batch_size: int = Field(default=8, ge=1)
    """Sequences of text per policy update over all workers."""
    max_length: int = Field(default=128, ge=8)
    """Tokens per sequence of text."""


class SamplingSpec(Spec):
    """How answers are drawn."""

    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the logits before sampling. Log-probabilities in the losses use the same temperature."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Keep the smallest set of tokens whose probabilities add up to this."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens. 0: all."""
    max_prompt_length: int = Field(default=256, ge=1)
    """Longest prompt in tokens; rows with a longer one are dropped and counted."""
    max_response_length: int = Field(default=128, ge=1)
    """Longest answer in tokens."""


class ActorOptimizerSpec(OptimizerSpec):
    """AdamW of the policy. A policy is tuned gently, and from the first step."""

    learning_rate: float = Field(default=1e-6, gt=0.0)
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of all optimizer steps during which the learning rate rises from 0 to its peak."""


class CriticOptimizerSpec(ActorOptimizerSpec):
    """AdamW of the critic, which has to follow the policy and so learns faster."""

    learning_rate: float = Field(default=9e-6, gt=0.0)
    """Peak learning rate of AdamW."""


class PpoStageSpec(Spec):
    """Proximal policy optimisation (Schulman et al. 2017; Ouyang et al. 2022). Makes a `model` artifact."""

    prompts: DataRef
    """Rows whose prompts are answered: prompt-completion, messages (up to the last user turn) or preference rows."""
    reward: RewardSpec = RewardSpec()
    """Where rewards come from."""
    environment: EnvironmentSpec | None = None
    """A class the policy talks with over several turns. Its rewards are added to those of `reward`."""
    model: ModelSpec | str | None = None
    """Policy to start from; also the reference. Default: the newest model made by an earlier stage."""
    critic: ModelSpec | str | None = None
    """Model the critic starts from. Default: the reward model where there is one, else the policy."""
    lora: LoraSpec | None = None
    """Train low-rank adapters of the policy only. They are merged into the model the stage makes."""
    advantage: Literal["gae", "reinforce", "rloo", "group"] = "gae"
    """Advantage estimator: GAE with a critic, REINFORCE with a baseline, leave-one-out, or group-normalised (GRPO)."""
    baseline: Literal["none", "batch", "moving", "ema"] = "batch"
    """What `reinforce` subtracts from every return: nothing, the mean return of the round, the mean of all rounds
    before, or an exponential average of them."""
    group_deviation: bool = True
    """Divide the advantages of `group` by the deviation of the group's rewards. Off: Dr. GRPO (Liu et al. 2025)."""
    skip_uniform_groups: int = Field(default=0, ge=0)
    """Leave out prompts whose answers all got the same reward, which teaches `rloo` and `group` nothing, and answer
    other prompts instead, at most this many times a round (DAPO's dynamic sampling). 0: off."""
    placement: Literal["colocated", "split"] | list[Annotated[list[RoleName], Field(min_length=1)]] = "colocated"
    """`colocated`: all roles share processes. `split`: each role has its own. Or lists of roles that go together."""
    roles: RolesSpec = RolesSpec()
    """Settings by role."""
    rollout: RolloutSpec = RolloutSpec()
    """How answers are made."""
    steps: int = Field(default=100, ge=1)
    """Rounds of generating answers and learning from them."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts answered in a round, over all workers."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Answers per prompt. `rloo` and `group` need at least 2."""
    sampling: SamplingSpec = SamplingSpec()
    """How answers are drawn."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the experience of a round."""
    mini_batches: int = Field(default=1, ge=1)
    """Optimizer steps per pass."""
    micro_batch_tokens: int = Field(default=8192, ge=16)
    """Most tokens in one forward pass of a worker; sequences are grouped by this budget. Decoding, which keeps no
    activations, takes eight times as many."""
    gamma: float = Field(default=1.0, ge=0.0, le=1.0)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """GAE's lambda: 0 trusts the critic, 1 the sampled return."""
    clip: ClipSpec = ClipSpec()
    """Limits of the policy's probability ratio."""
    value_clip: float | None = Field(default=0.2, gt=0.0)
    """The critic may move this far from its old value before its loss stops falling. Null: off."""
    loss_aggregation: Literal["token-mean", "sequence-mean"] = "token-mean"
    """Mean over all tokens of the batch, or over its answers of the mean over each one's tokens."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and deviation 1 over all tokens of a round (`gae` and `reinforce`; the group
    estimators have a scale of their own)."""
    whiten_rewards: bool = False
    """Scale token rewards to deviation 1 over a round, keeping their mean."""
    entropy_coefficient: float = Field(default=0.0, ge=0.0)
    """Weight of an entropy bonus."""
    kl: KlSpec = KlSpec()
    """How the policy is kept near the reference model."""
    ptx: PtxSpec | None = None
    """Language-model loss mixed into the policy loss."""
    ema_decay: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Keep an exponential moving average of the policy's weights with this decay per update, and make it the stage's
    model. Null: off."""
    actor_optimizer: ActorOptimizerSpec = ActorOptimizerSpec()
    """Optimizer of the policy."""
    critic_optimizer: CriticOptimizerSpec = CriticOptimizerSpec()
    """Optimizer of the critic."""
    zero: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage of the roles that train."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """Keep optimizer state (`optimizer`) or also parameters (`all`, ZeRO-3 only) in host memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of all roles. `auto`: bf16 on a GPU that has it, fp32 on a CPU."""
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    """Rounds between two evaluations on held-out prompts. Default: before the first and after the last round only."""
    evaluation_prompts: int = Field(default=64, ge=1)
    """Held-out prompts used for evaluation."""
    checkpoint: CheckpointSpec = CheckpointSpec(every_steps=10)
    """How often the state of all roles is saved, in rounds."""
    guard: GuardSpec = GuardSpec()
    """What counts as a broken update, and what follows."""
    limits: LimitsSpec = LimitsSpec()
    """How long the driver waits for a process, and how often it replaces one."""
    record: int = Field(default=0, ge=0)
    """Rounds whose experience is kept for `camel-ray ppo replay`; the oldest goes when a new one is written."""
