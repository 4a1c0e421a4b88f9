"""CamelPipeline: the resource a user writes, validated as a whole.

A stage is like a volume of a Pod: a name and exactly one member that says what it is. Rules that span several fields
are in `rules.py`, so that the file loader, this model and the CRD state them once and with the same sentence.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from camel_ray.api.base import Spec
from camel_ray.api.cluster import ClusterSpec
from camel_ray.api.model import ModelSpec
from camel_ray.api.rules import check_rules
from camel_ray.api.stages.data import DataStageSpec
from camel_ray.api.stages.dpo import DpoStageSpec
from camel_ray.api.stages.evaluate import EvaluateStageSpec
from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.api.stages.pretrain import PretrainStageSpec
from camel_ray.api.stages.reward import RewardStageSpec
from camel_ray.api.stages.sft import SftStageSpec
from camel_ray.api.stages.tokenizer import TokenizerStageSpec

API_VERSION: Literal["camel-ray.dev/v1alpha1"] = "camel-ray.dev/v1alpha1"
KIND: Literal["CamelPipeline"] = "CamelPipeline"

StageSpec = (
    DataStageSpec
    | TokenizerStageSpec
    | PretrainStageSpec
    | SftStageSpec
    | RewardStageSpec
    | DpoStageSpec
    | PpoStageSpec
    | EvaluateStageSpec
)


class WorkersRange(Spec):
    """An elastic number of workers."""

    min: int = Field(ge=1)
    """Least number of workers the stage runs with."""
    max: int = Field(ge=1)
    """Largest number of workers the stage uses."""


class Stage(Spec):
    """One step of the pipeline: a name and exactly one member that says what it does."""

    name: str = Field(pattern=r"^[a-z]([-a-z0-9]{0,18}[a-z0-9])?$")
    """Name, unique in the pipeline: lower-case letters, digits and dashes, at most 20 characters."""
    needs: list[Annotated[str, Field(max_length=63)]] | None = Field(default=None, max_length=50)
    """Earlier stages whose artifacts this one may use. Default: the stage before. Stages named elsewhere in the
    member are added by themselves."""
    group: str | None = Field(default=None, max_length=63)
    """Worker group of `cluster.groups` that runs the stage."""
    workers: int | WorkersRange = Field(default=1)
    """Training processes, one device each."""
    timeout_seconds: int = Field(default=604_800, ge=1)
    """Longest time one attempt may take on a cluster, start-up included. Default: a week."""
    data: DataStageSpec | None = None
    """Read, clean, deduplicate and split rows."""
    tokenizer: TokenizerStageSpec | None = None
    """Train or load a tokenizer."""
    pretrain: PretrainStageSpec | None = None
    """Train a language model on plain text."""
    sft: SftStageSpec | None = None
    """Instruction tuning."""
    reward: RewardStageSpec | None = None
    """Train a reward model from preferences."""
    dpo: DpoStageSpec | None = None
    """Direct preference optimisation."""
    ppo: PpoStageSpec | None = None
    """Reinforcement learning against a reward."""
    evaluate: EvaluateStageSpec | None = None
    """Measure a model and write the report."""

    @property
    def kind(self) -> str:
        """The member that is set: `data`, `tokenizer`, `pretrain`, `sft`, `reward`, `dpo`, `ppo` or `evaluate`."""
        return next(kind for kind in STAGE_KINDS if getattr(self, kind) is not None)

    @property
    def spec(self) -> StageSpec:
        """The member's value."""
        value: StageSpec = getattr(self, self.kind)
        return value


STAGE_KINDS: tuple[str, ...] = ("data", "tokenizer", "pretrain", "sft", "reward", "dpo", "ppo", "evaluate")


class RetrySpec(Spec):
    """What happens after a failed attempt. Preemption and node loss never use the budget."""

    max_retries: int = Field(default=3, ge=0)
    """Further attempts after a failure that may go away by itself."""
    backoff_seconds: float = Field(default=10.0, ge=0.0)
    """Wait before the first retry; it doubles each time."""
    max_backoff_seconds: float = Field(default=600.0, ge=0.0)
    """Longest wait between two attempts."""


class TrackingSpec(Spec):
    """Experiment trackers. TensorBoard files are always written."""

    wandb: bool = False
    """Also log to Weights & Biases. The key comes from the environment (WANDB_API_KEY), never from this file."""
    mlflow: bool = False
    """Also log to MLflow. The server comes from the environment (MLFLOW_TRACKING_URI)."""
    project: str | None = None
    """Project or experiment name there. Default: the pipeline's name."""


class PipelineSpec(Spec):
    """What the pipeline does and where its artifacts go."""

    storage: str = Field(default="./camel-ray-runs", min_length=1, max_length=1000)
    """Path or fsspec URI (`s3://bucket/team-a`) below which artifacts, checkpoints and reports of the pipeline are
    kept. Relative paths start at the directory the command is run in."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of everything random: splits, initial weights, data order, sampling."""
    model: ModelSpec | str | None = None
    """Model that stages start from when no earlier stage made one; a string is short for its `source`."""
    cluster: ClusterSpec = ClusterSpec()
    """What the pipeline asks of Kubernetes. Ignored by `camel-ray run`."""
    retry: RetrySpec = RetrySpec()
    """What happens after a failed attempt."""
    tracking: TrackingSpec = TrackingSpec()
    """Experiment trackers."""
    suspend: bool = False
    """Stop after the running attempt's checkpoint, and wait until it is false again."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)
    """Seconds after which a finished pipeline is deleted from Kubernetes. Its storage stays."""
    stages: list[Stage] = Field(min_length=1, max_length=50)
    """The steps, in an order in which each one needs only earlier ones."""


class Metadata(Spec):
    """Name of the pipeline; labels and annotations as in Kubernetes."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")
    """Name, at most 40 characters: the folder in storage, and the prefix of everything made on a cluster."""
    namespace: str | None = None
    """Kubernetes namespace."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Kubernetes labels."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Kubernetes annotations."""


class CamelPipeline(Spec):
    """A language-model pipeline: data, tokenizer, pretraining, instruction tuning, reward model, PPO, evaluation."""

    api_version: Literal["camel-ray.dev/v1alpha1"] = API_VERSION
    """Version of this schema."""
    kind: Literal["CamelPipeline"] = KIND
    """Kind of this resource."""
    metadata: Metadata
    """Name and labels."""
    spec: PipelineSpec
    """What the pipeline does."""

    @model_validator(mode="after")
    def _rules_hold(self) -> CamelPipeline:
        violations = check_rules(self.model_dump(by_alias=True, exclude_none=True))
        if violations:
            raise ValueError("; ".join(f"{v.field}: {v.message}" for v in violations))
        return self

    def stage(self, name: str) -> Stage:
        """The stage called `name`; raises KeyError if there is none."""
        for stage in self.spec.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)
