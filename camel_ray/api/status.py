"""What the operator writes into `status` of a CamelPipeline, and the CLI reads.

Only the operator writes it. Unknown fields are ignored when it is read, so that an older operator or CLI lives with
what a newer one wrote. Times are RFC 3339 in UTC with whole seconds, as Kubernetes writes them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

PipelinePhase = Literal["Pending", "Running", "Suspending", "Suspended", "Succeeded", "Failed", "Cancelled"]
StagePhase = Literal[
    "Waiting",
    "Starting",
    "Queued",
    "Provisioning",
    "Running",
    "Stopping",
    "Backoff",
    "Suspended",
    "Succeeded",
    "Failed",
    "Cancelled",
]
FailureClass = Literal["UserError", "Infrastructure", "OutOfMemory", "Preemption", "Error"]
Outcome = Literal["Succeeded", "Stopped", "UserError", "Infrastructure", "OutOfMemory", "Preemption", "Error"]
StopReason = Literal["suspend", "cancel", "retry"]

TERMINAL: frozenset[PipelinePhase] = frozenset({"Succeeded", "Failed", "Cancelled"})
"""Phases a pipeline leaves only when its user asks for a retry."""
RESULT_MARK = "camel-ray-result:"
"""What a stage's process prints before the JSON of its `Result`, as its last line."""
HISTORY = 5
"""Ended attempts kept per stage, the newest last."""


class Status(BaseModel):
    """Base of the status models."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    def wire(self) -> dict[str, object]:
        """The camelCase JSON form without what is not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Condition(Status):
    """A Kubernetes condition."""

    type: str
    """`Progressing` (an attempt starts or runs), `Suspended`, `Succeeded` or `Failed`."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str
    """One word in CamelCase."""
    message: str = ""
    """One sentence."""
    last_transition_time: str
    """When `status` last changed."""
    observed_generation: int | None = None
    """Generation of the spec it was decided on."""


class Progress(Status):
    """How far the running attempt is, as it told the progress server."""

    attempt: int
    """The attempt that reported."""
    percentage: int | None = Field(default=None, ge=0, le=100)
    """Share of the work that is done, in percent."""
    task: str = ""
    """What it does: `train`, `generate`, ..."""
    done: int | None = None
    """Finished units of the task."""
    total: int | None = None
    """All units of the task."""
    unit: str = ""
    """What is counted: steps, rows, tokens, batches."""
    remaining_seconds: int | None = None
    """Estimated seconds until the stage is done."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Newest figures: loss, reward, kl, tokens_per_second, ..."""
    updated: str = ""
    """When it was reported."""


class ArtifactRef(Status):
    """What a finished stage made."""

    kind: str
    """dataset, tokenizer, model, adapter, reward-model or report."""
    uri: str
    """Where it lies."""
    digest: str = ""
    """Digest of its content."""


class Result(Status):
    """How an attempt ended, in its own words."""

    attempt: int
    """The attempt that ended."""
    code: int
    """Its exit code (`camel_ray/errors.py`): 0 is success."""
    message: str = ""
    """One sentence."""
    artifacts: list[ArtifactRef] = Field(default_factory=list)
    """What it made."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Key figures of the stage."""


class AttemptStatus(Status):
    """The attempt that is under way, or that is being cleared away."""

    number: int
    """1 for the first attempt of the stage."""
    name: str
    """Name of its RayJob or Job."""
    executor: Literal["RayJob", "Job"]
    """Kind of its object."""
    uid: str | None = None
    """Uid of that object, once it was seen: from then on its absence means that somebody deleted it."""
    created: str
    """When the operator decided to start it."""
    admitted: str | None = None
    """When it was first seen outside of a queue."""
    submitted: str | None = None
    """When its Ray cluster was first seen to be up."""
    running: str | None = None
    """When the stage's own process was first seen to run."""
    stop: StopReason | None = None
    """Why it was asked to stop, if it was."""
    stop_requested: str | None = None
    """When it was asked to stop."""
    message: str = ""
    """What it waits for, in the words of its pods."""
    evidence: list[str] = Field(default_factory=list)
    """Ends of its pods, seen while the pods were there (they vanish within seconds): time, failure class and words."""


class EndedAttempt(Status):
    """An attempt that is over."""

    number: int
    """1 for the first attempt of the stage."""
    name: str
    """Name of its RayJob or Job."""
    outcome: Outcome
    """Succeeded, Stopped (on request), or the class of the failure."""
    reason: str = ""
    """The reason in one word."""
    message: str = ""
    """The reason in one sentence."""
    started: str
    """When it was started."""
    ended: str
    """When its end was noticed."""


class StageStatus(Status):
    """What is known of one stage."""

    name: str
    """The stage."""
    kind: str
    """Its member: data, tokenizer, pretrain, ..."""
    phase: StagePhase = "Waiting"
    """Where it stands."""
    message: str = ""
    """Why, in one sentence."""
    attempts: int = 0
    """Attempts so far; the next one is number `attempts` + 1. Never goes down while the pipeline exists."""
    failures: int = 0
    """Attempts that used the retry budget since the stage was last asked for."""
    preemptions: int = 0
    """Attempts that were taken away; they are free."""
    started: str | None = None
    """When its first attempt began."""
    ended: str | None = None
    """When it was done, or given up."""
    retry: str | None = None
    """When the next attempt begins (phase Backoff)."""
    spec: str = ""
    """Digest of what its last attempt was told to do: a failed stage runs again when that changes."""
    spec_generation: int = 0
    """Generation of the spec it was made of. A digest that another version of the operator makes of the same generation
    is no change."""
    fresh_from: int = 0
    """The attempt from which on nothing counts that storage held before (after `retry STAGE`); 0: all counts."""
    current: AttemptStatus | None = None
    """The attempt that is not over."""
    history: list[EndedAttempt] = Field(default_factory=list)
    """The last attempts that are over, oldest first."""
    progress: Progress | None = None
    """How far it is. Written by the progress server."""
    result: Result | None = None
    """How its newest attempt ended, in its own words. Written by the progress server, or read from the attempt's log.
    """


class PipelineStatus(Status):
    """State of a pipeline on a cluster."""

    observed_generation: int | None = None
    """Generation of the spec this status speaks of."""
    phase: PipelinePhase = "Pending"
    """Where the pipeline stands."""
    message: str = ""
    """Why, in one sentence."""
    stage: str = ""
    """The stage that is under way, or that failed."""
    progress: str = ""
    """Finished stages and the progress of the running one: `2/6, 40%`."""
    metrics: str = ""
    """Newest figures of the running stage: `loss 2.1, 5.3k tokens/s`."""
    attempts: int = 0
    """Attempts of all stages."""
    started_stages: list[str] = Field(default_factory=list)
    """Stages that run or are done: their part of the spec cannot be changed. A stage that failed can be mended."""
    started: str | None = None
    """When the first stage began."""
    ended: str | None = None
    """When the pipeline was done, or given up."""
    handled_request: str = ""
    """The value of the annotation `camel-ray.dev/request` that was last carried out."""
    conditions: list[Condition] = Field(default_factory=list)
    """Progressing, Suspended, Succeeded, Failed."""
    stages: list[StageStatus] = Field(default_factory=list)
    """One per stage, in the order of the spec."""
    retired: dict[str, int] = Field(default_factory=dict)
    """Attempts of stages that were taken out of the spec: one of the same name goes on with the next number."""

    def stage_named(self, name: str) -> StageStatus | None:
        """The status of a stage, if there is one."""
        return next((stage for stage in self.stages if stage.name == name), None)
