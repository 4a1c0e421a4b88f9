"""Turns one attempt of a stage into a batch/v1 Job: one pod with a Ray of its own, for clusters without KubeRay.

Pure: no I/O, no clock. The same attempt always gives the same object, which is created once. Retries are ours
(reconcile.py).
"""

from __future__ import annotations

from typing import Any

from camel_ray.api.cluster import GroupSpec, PodSpec, ResourcesSpec
from camel_ray.operator import names
from camel_ray.operator.kube.kinds import JOB
from camel_ray.operator.model import Attempt
from camel_ray.operator.pods import (
    DRAIN_MARGIN_SECONDS,
    ENTRYPOINT,
    GPU,
    LONGEST_SECONDS,
    attempt_name,
    container,
    metadata,
    template,
)

STAGE_CONTAINER = "stage"


def job_for(attempt: Attempt) -> dict[str, Any]:
    """The Job of an attempt whose executor is Job."""
    cluster = attempt.pipeline.spec.cluster
    meta = metadata(attempt, attempt_name(attempt))
    machine = _machine(attempt)
    stage, volumes = container(attempt, STAGE_CONTAINER, own_env={}, machine=machine, drives=True)
    stage["command"] = list(ENTRYPOINT)
    # an end without a word of its own (killed, import error) is told by the log's last lines
    stage["terminationMessagePolicy"] = "FallbackToLogsOnError"
    spec: dict[str, Any] = {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 0,
        "activeDeadlineSeconds": min(attempt.stage.timeout_seconds, LONGEST_SECONDS),
        # a pod that terminates may still write to storage: it is not replaced before it is gone
        "podReplacementPolicy": "Failed",
        # The rules decide nothing (any failure fails the Job). They make the Job's condition, which outlives the pod,
        # name its exit code or disruption; `BackoffLimitExceeded` would tell neither. The first that matches counts.
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": STAGE_CONTAINER, "operator": "NotIn", "values": [0]},
                },
            ]
        },
        "template": template(
            attempt,
            stage,
            machine=machine,
            volumes=volumes,
            labels={names.GROUP: attempt.stage.group} if attempt.stage.group else None,
            grace_seconds=cluster.drain_timeout_seconds + DRAIN_MARGIN_SECONDS,
        ),
    }
    if cluster.queue:
        meta["labels"][names.QUEUE] = cluster.queue
        # written here, so that nothing starts before Kueue has admitted it even where its webhook is off
        spec["suspend"] = True
    return {"apiVersion": JOB.api_version, "kind": JOB.name, "metadata": meta, "spec": spec}


def _machine(attempt: Attempt) -> PodSpec:
    """The head's pod, on a machine of the stage's group if it names one. What the group says goes before: of a resource
    that it names, the head's request and limit both do not count.
    """
    head = attempt.pipeline.spec.cluster.head
    group = next((g for g in attempt.pipeline.spec.cluster.groups if g.name == attempt.stage.group), None)
    if group is None:
        return head
    own = {*group.resources.requests, *group.resources.limits, *([GPU] if group.gpus else ())}
    return GroupSpec(
        name=group.name,
        gpus=group.gpus,
        resources=ResourcesSpec(
            requests={k: v for k, v in head.resources.requests.items() if k not in own} | group.resources.requests,
            limits={k: v for k, v in head.resources.limits.items() if k not in own} | group.resources.limits,
        ),
        node_selector={**head.node_selector, **group.node_selector},
        tolerations=[*head.tolerations, *(t for t in group.tolerations if t not in head.tolerations)],
    )
