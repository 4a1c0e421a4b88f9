"""`ppo`: reinforcement learning against a reward, with roles placed together or apart."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from camel_ray.api.base import Spec
from camel_ray.api.data import DataRef
from camel_ray.api.model import CheckpointSpec, ModelSpec
from camel_ray.api.training import OptimizerSpec

RoleName = Literal["actor", "critic", "reference", "reward", "rollout"]


class RoleSpec(Spec):
    """What one role needs of the processes that host it."""

    group: str | None = None
    """Worker group of `cluster.groups` whose nodes host the role. Default: the stage's `group`."""
    workers: int | None = Field(default=None, ge=1)
    """Processes (one device each) that host the role. Roles placed together must agree. Default: the stage's
    `workers`."""
    zero: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage of a role that trains (actor, critic). Default: the stage's `zero`."""


class RolesSpec(Spec):
    """Settings by role."""

    actor: RoleSpec = RoleSpec()
    """The policy that is trained."""
    critic: RoleSpec = RoleSpec()
    """The value model that is trained (advantage `gae` only)."""
    reference: RoleSpec = RoleSpec()
    """The frozen copy of the first policy that the KL penalty pulls towards."""
    reward: RoleSpec = RoleSpec()
    """The reward model, where there is one."""
    rollout: RoleSpec = RoleSpec()
    """The process that generates answers."""


class RewardFunctionSpec(Spec):
    """A Python function as reward."""

    path: str
    """Python file with the function. Relative paths start at the directory of the pipeline file."""
    name: str = "reward"
    """Function name. It is called as `reward(prompts: list[str], answers: list[str], rows: list[dict]) ->
    list[float]`."""
    timeout_seconds: float = Field(default=60.0, gt=0.0)
    """Time limit of one call. The function runs in a process of its own that is killed when the limit is over."""


class RewardSpec(Spec):
    """Where rewards come from. With both members set, the reward is their weighted sum."""

    model: str | None = None
    """Reward stage, directory or hub id of a sequence classifier with one output."""
    model_weight: float = 1.0
    """Weight of the model's score."""
    function: RewardFunctionSpec | None = None
    """A Python function as reward."""
    function_weight: float = 1.0
    """Weight of the function's score."""
    on_failure: Literal["fail", "drop", "value"] = "fail"
    """What a failed reward (exception, time-out, NaN) does: end the stage, drop the sample, or use `failureValue`.
    Failures are counted in every case."""
    failure_value: float = 0.0
    """Score of a failed sample when `onFailure` is `value`."""
    clip: float | None = Field(default=10.0, gt=0.0)
    """Scores are limited to [-clip, clip]. Null: no limit."""
    missing_eos_penalty: float = Field(default=0.0, ge=0.0)
    """Subtracted from the score of an answer that was cut at `maxResponseLength` instead of ending by itself."""


class KlSpec(Spec):
    """How the policy is kept near the reference model."""

    coefficient: float = Field(default=0.05, ge=0.0)
    """First (or fixed) weight of the KL penalty."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token estimator of KL(policy || reference) (Schulman 2020): log-ratio, half its square, or exp(-r) - 1 +
    r."""
    controller: Literal["fixed", "adaptive"] = "adaptive"
    """`adaptive`: the coefficient is steered to keep the KL at `target` (Ziegler et al. 2019, section 2.2)."""
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
    reward: RewardSpec
    """Where rewards come from."""
    model: ModelSpec | str | None = None
    """Policy to start from; also the reference. Default: the newest model made by an earlier stage."""
    critic: ModelSpec | str | None = None
    """Model the critic starts from. Default: the reward model where there is one, else the policy."""
    advantage: Literal["gae", "reinforce", "rloo", "group"] = "gae"
    """Advantage estimator: GAE with a critic, REINFORCE with a batch baseline, leave-one-out, or group-normalised
    (GRPO)."""
    placement: Literal["colocated", "split"] | list[Annotated[list[RoleName], Field(min_length=1)]] = "colocated"
    """`colocated`: all roles share processes. `split`: each role has its own. Or lists of roles that go together."""
    roles: RolesSpec = RolesSpec()
    """Settings by role."""
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
    """Most tokens in one forward pass of a worker; sequences are grouped by this budget."""
    gamma: float = Field(default=1.0, ge=0.0, le=1.0)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """GAE's lambda: 0 trusts the critic, 1 the sampled return."""
    clip: ClipSpec = ClipSpec()
    """Limits of the policy's probability ratio."""
    value_clip: float | None = Field(default=0.2, gt=0.0)
    """The critic may move this far from its old value before its loss stops falling. Null: off."""
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
    actor_optimizer: ActorOptimizerSpec = ActorOptimizerSpec()
    """Optimizer of the policy."""
    critic_optimizer: CriticOptimizerSpec = CriticOptimizerSpec()
    """Optimizer of the critic."""
    zero: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage of the roles that train."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of all roles. `auto`: bf16 on a GPU that has it, fp32 on a CPU."""
    evaluate_every_steps: int | None = Field(default=None, ge=1)
    """Rounds between two evaluations on held-out prompts. Default: before the first and after the last round only."""
    evaluation_prompts: int = Field(default=64, ge=1)
    """Held-out prompts used for evaluation."""
    checkpoint: CheckpointSpec = CheckpointSpec(every_steps=10)
    """How often the state of all roles is saved, in rounds."""
