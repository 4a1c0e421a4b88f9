"""What the reconciler sees and what it decides: plain values, no I/O.

    Snapshot: one pipeline and all that belongs to it  --reconcile-->  Plan: status, operations, events, next look

The controller builds snapshots from its caches and carries plans out: first the status, guarded by the resource version
the decision was made on, then the operations. A crash between the two is harmless, because the status names every
attempt before it is created and names are deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from camel_ray.api.operator_config import OperatorConfig
from camel_ray.api.pipeline import CamelPipeline, Stage
from camel_ray.api.status import PipelineStatus

Object = Mapping[str, Any]
"""A Kubernetes object as JSON gave it."""
Executor = Literal["RayJob", "Job"]


@dataclass(frozen=True)
class Settings:
    """What the operator's own configuration file and options decide."""

    config: OperatorConfig = OperatorConfig()
    """The file: defaults of stage pods, what pipelines may ask for, who reaches their pods."""
    progress_url: str = ""
    """Base URL of the progress server as pods reach it; empty: pods report nothing."""
    progress_ca: str = ""
    """PEM of the certificate authority of that server; empty: the system's."""
    stop_seconds: float = 300.0
    """How long an attempt may take to end itself with a checkpoint after it was asked to stop."""
    silent_seconds: float = 300.0
    """How long a RayJob may be Running with an empty job status before we end it (a submitter that never starts)."""
    start_margin_seconds: float = 60.0
    """How much longer than KubeRay's own deadline we wait for a start, before we end the attempt ourselves."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of a stage, as the builders need it."""

    pipeline: CamelPipeline
    namespace: str
    uid: str
    """Uid of the pipeline object: owner of what is built."""
    stage: Stage
    number: int
    settings: Settings
    fresh_from: int = 0
    """The attempt from which on nothing counts that storage held before (`CAMEL_RAY_FRESH`); 0: all counts."""


@dataclass(frozen=True)
class AttemptView:
    """What the caches hold of one attempt: its object, and what others made for it."""

    stage: str
    number: int
    object: Object | None = None
    """The RayJob or Job; None if there is none (any more)."""
    pods: tuple[Object, ...] = ()
    """Its pods, submitter included, also those seen to go: a pod with `gone: true` beside `metadata` exists no more."""
    clusters: tuple[Object, ...] = ()
    """Its RayClusters."""
    events: tuple[Object, ...] = ()
    """Warnings about its object, RayClusters and Jobs, newest last (`reason`, `message`, `involvedObject`)."""
    workload: Object | None = None
    """Kueue's Workload of its object."""
    kueue: bool = True
    """Whether the cluster knows Workloads at all."""

    @property
    def live_pods(self) -> tuple[Object, ...]:
        """Pods that may still work: there, and neither Succeeded nor Failed."""
        return tuple(
            p
            for p in self.pods
            if not p.get("gone") and p.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        )

    @property
    def finished(self) -> bool:
        """Whether its object says that it is done, and so will start nothing any more."""
        status = (self.object or {}).get("status", {})
        if (self.object or {}).get("kind") == "RayJob":
            return status.get("jobDeploymentStatus") in ("Complete", "Failed")
        return self.object is not None and has_ended(self.object)

    @property
    def over(self) -> bool:
        """Whether nothing of it can work any more. Objects of finished attempts are kept, for their logs."""
        return (self.object is None or self.finished) and not self.clusters and not self.live_pods


def has_ended(job: Object) -> bool:
    """Whether a batch Job says that it is done, and so will start no pod any more."""
    conditions = job.get("status", {}).get("conditions", ())
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


@dataclass(frozen=True)
class Snapshot:
    """Everything a decision about one pipeline rests on."""

    object: Object
    """The CamelPipeline, metadata and status included."""
    pipeline: CamelPipeline | None
    """Its validated form; None if it does not validate."""
    problem: str
    """Why it cannot run: the sentences of the validation, or of `cluster_problems`; empty if it can."""
    attempts: tuple[AttemptView, ...]
    """All attempts of which the caches hold anything."""
    now: datetime
    """UTC."""
    settings: Settings
    trouble: str = ""
    """What the API server said when something of this pipeline could not be created; empty if nothing was refused."""
    taken: str = ""
    """The name that could not be used, if that was because it belongs to somebody who may keep it."""


@dataclass(frozen=True)
class Create:
    """Create an object once. That it exists already is success if it has the same owner, else the plan is tried
    later.
    """

    manifest: Object
    unless: str = ""
    """Label selector: not while pods that may still work, or RayClusters, match it. Asked of the API itself, because a
    cache may lag behind."""
    after: tuple[str, ...] = ()
    """Names of the attempts before. A Job of such a name, its own or its submitter's, may have made no pod yet and make
    one later: what is left of it is deleted first."""


@dataclass(frozen=True)
class Delete:
    """Delete an object and what it owns; that it is gone is success. `uid` guards against a namesake; without one, the
    object goes only if the pipeline owns it.
    """

    kind: str
    name: str
    uid: str | None = None


@dataclass(frozen=True)
class Note:
    """An event for the user, on the pipeline."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What to do about a pipeline now."""

    status: PipelineStatus
    gone: tuple[Delete, ...] = ()
    """Objects that this decision takes for gone. The API itself is asked before anything is written, as a cache may
    lag behind what another operator saw: if one is still there, the plan is given up and made anew a little later."""
    operations: tuple[Create | Delete, ...] = ()
    notes: tuple[Note, ...] = ()
    requeue_seconds: float | None = None
    """When to look again even if nothing changes; None: not needed."""
    delete_self: bool = False
    """The pipeline's time to live after its end has passed."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the logs should carry: stage, attempt."""
