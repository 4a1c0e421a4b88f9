"""Turns one attempt of a stage into a KubeRay RayJob that runs its entry point at most once and fails visibly.

Pure: no I/O, no clock. The same attempt always gives the same object. It is created once and never applied again:
KubeRay, Kueue and the autoscaler write into its spec. Retries are ours, not KubeRay's (reconcile.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from camel_ray.operator import names
from camel_ray.operator.groups import UsedGroup, used_groups
from camel_ray.operator.kinds import RAY_JOB
from camel_ray.operator.model import Attempt
from camel_ray.operator.pods import (
    CONTAINER_SECURITY,
    DRAIN_MARGIN_SECONDS,
    ENTRYPOINT,
    HOME,
    LONGEST_SECONDS,
    TMP_MOUNT,
    TMP_VOLUME,
    attempt_name,
    container,
    image,
    metadata,
    plain_env,
    template,
)

HEAD_CONTAINER = "ray-head"
WORKER_CONTAINER = "ray-worker"
SUBMITTER_CONTAINER = "ray-job-submitter"
ROLE_LABEL_PREFIX = f"role.{names.API_GROUP}/"
"""Label of worker pods with `true`, one for each role of `ppo` they may host."""

_KEEP_SECONDS = 10
"""Pods stay this long after the end, because their states are the evidence of a failure: long enough for an operator
that is just starting again."""
_HEAD_GRACE_SECONDS = 30
_HEAD_DRAIN_SECONDS = 10
"""Nothing on the head can be moved elsewhere, so it does not wait out its grace period."""
_SUBMITTER_GRACE_SECONDS = 5
"""The submitter ignores SIGTERM and would use all of the usual 30 s."""
_READINESS: Mapping[str, Any] = {
    "httpGet": {"path": "/api/healthz", "port": 52365},  # Ray's agent; on the head it asks the GCS, too
    "initialDelaySeconds": 1,
    "periodSeconds": 2,
    "timeoutSeconds": 5,
    "failureThreshold": 25,
}
"""KubeRay's own probe with its patience of 50 s, but soon and often: KubeRay first asks after 10 s and then every 5, of
the head and then of the workers, and nothing is submitted before the last of them has answered."""
_AUTOSCALER_TMP: Mapping[str, Any] = {"name": "autoscaler-tmp", "emptyDir": {}}
_API_ACCESS = "api-access"
_API_DIRECTORY = "/var/run/secrets/kubernetes.io/serviceaccount"
_DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_STOP = "RAY_JOB_STOP_WAIT_TIME_S"
"""How long a stopped entry point has from SIGTERM to SIGKILL; Ray's own 3 s are too short for a checkpoint."""
_HEAD_ENV = {_DRAIN: str(_HEAD_DRAIN_SECONDS), _STOP: str(_HEAD_GRACE_SECONDS)}


def rayjob_for(attempt: Attempt) -> dict[str, Any]:
    """The RayJob of an attempt whose executor is RayJob."""
    cluster = attempt.pipeline.spec.cluster
    groups = used_groups(attempt.pipeline, attempt.stage)
    autoscaled = cluster.autoscaling.enabled and bool(groups)
    meta = metadata(attempt, attempt_name(attempt))
    spec: dict[str, Any] = {
        "entrypoint": " ".join(ENTRYPOINT),
        # HTTPMode submits a second time when the head comes back, SidecarMode cannot pass Pod Security `restricted`
        "submissionMode": "K8sJobMode",
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": 0},  # its default, 2, runs the entry point again after the head was lost
        "submitterPodTemplate": _submitter(attempt),
        "shutdownAfterJobFinishes": True,  # without it KubeRay refuses to suspend, for ever, and Kueue to admit
        "ttlSecondsAfterFinished": _KEEP_SECONDS,
        # KubeRay waits for ever for images, machines and quota without them
        "preRunningDeadlineSeconds": min(cluster.start_timeout_seconds, LONGEST_SECONDS),
        "activeDeadlineSeconds": min(attempt.stage.timeout_seconds, LONGEST_SECONDS),
        "rayClusterSpec": {
            "rayVersion": cluster.ray_version or attempt.settings.config.stages.ray_version,
            "authOptions": {"mode": "token"},
            **(_autoscaling(attempt) if autoscaled else {}),
            "headGroupSpec": _head(attempt, works=not groups, autoscaled=autoscaled),
            **({"workerGroupSpecs": [_group(attempt, group) for group in groups]} if groups else {}),
        },
    }
    if cluster.queue:
        meta["labels"][names.QUEUE] = cluster.queue
        # written here, so that nothing starts before Kueue has admitted it even where its webhook is off
        spec["suspend"] = True
        if autoscaled:
            meta["annotations"] = {"kueue.x-k8s.io/elastic-job": "true"}  # Kueue refuses autoscaling without it
    return {"apiVersion": RAY_JOB.api_version, "kind": RAY_JOB.name, "metadata": meta, "spec": spec}


def _head(attempt: Attempt, *, works: bool, autoscaled: bool) -> dict[str, Any]:
    """The head. It runs the driver and, only where there are no worker groups, also the work (`works`)."""
    machine = attempt.pipeline.spec.cluster.head
    head, volumes = container(attempt, HEAD_CONTAINER, own_env=_HEAD_ENV, machine=machine, drives=True)
    head["readinessProbe"] = dict(_READINESS)
    if autoscaled:
        volumes += [dict(_AUTOSCALER_TMP), _api_access()]
    return {
        "rayStartParams": {} if works else {"num-cpus": "0"},
        "template": template(attempt, head, machine=machine, volumes=volumes, grace_seconds=_HEAD_GRACE_SECONDS),
    }


def _group(attempt: Attempt, group: UsedGroup) -> dict[str, Any]:
    """A worker group. What is zero here is written because KubeRay would write it, and then own the whole list."""
    cluster = attempt.pipeline.spec.cluster
    worker, volumes = container(
        attempt,
        WORKER_CONTAINER,
        own_env={_DRAIN: str(cluster.drain_timeout_seconds)},
        machine=group.spec,
        drives=False,
    )
    worker["readinessProbe"] = dict(_READINESS)
    return {
        "groupName": group.spec.name,
        "replicas": group.least,
        "minReplicas": group.least,
        "maxReplicas": group.most,
        "numOfHosts": 1,
        "priority": 0,
        "scaleStrategy": {},
        "labels": {names.GROUP: group.spec.name},  # Ray node labels: stages and roles find their nodes by it
        "rayStartParams": {},
        "template": template(
            attempt,
            worker,
            machine=group.spec,
            volumes=volumes,
            labels={names.GROUP: group.spec.name, **{f"{ROLE_LABEL_PREFIX}{role}": "true" for role in group.roles}},
            grace_seconds=cluster.drain_timeout_seconds + DRAIN_MARGIN_SECONDS,
        ),
    }


def _submitter(attempt: Attempt) -> dict[str, Any]:
    """The pod that submits the entry point and prints its log. KubeRay adds command, address and token.

    Its own default asks for half a CPU, runs as root, and stays pending without a word where it does not fit.
    """
    submitter = {
        "name": SUBMITTER_CONTAINER,
        "image": image(attempt),
        "imagePullPolicy": attempt.settings.config.stages.image_pull_policy,
        "env": plain_env(HOME),
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": dict(CONTAINER_SECURITY),
        "volumeMounts": [dict(TMP_MOUNT)],
    }
    machine = attempt.pipeline.spec.cluster.head
    return template(
        attempt, submitter, machine=machine, volumes=[dict(TMP_VOLUME)], grace_seconds=_SUBMITTER_GRACE_SECONDS
    )


def _autoscaling(attempt: Attempt) -> dict[str, Any]:
    """Ray's autoscaler. KubeRay copies nothing of the head's container to it, so it brings its own security.

    Its service account may change the RayCluster, and so start any pod. The user's code runs in the container beside it
    and gets neither the token nor a directory in which the autoscaler looks for code (its HOME is /tmp). Its image is
    the administrator's, whatever the pipeline names: KubeRay would take the head's.
    """
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",  # KubeRay takes it for v1 where it is not written
            "idleTimeoutSeconds": min(attempt.pipeline.spec.cluster.autoscaling.idle_timeout_seconds, LONGEST_SECONDS),
            "image": attempt.settings.config.stages.image,
            "imagePullPolicy": attempt.settings.config.stages.image_pull_policy,
            "env": plain_env(HOME),
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
            "securityContext": dict(CONTAINER_SECURITY),
            "volumeMounts": [
                {"name": _AUTOSCALER_TMP["name"], "mountPath": "/tmp"},
                {"name": _API_ACCESS, "mountPath": _API_DIRECTORY, "readOnly": True},
            ],
        },
    }


def _api_access() -> dict[str, Any]:
    """What Kubernetes mounts into every container of a pod that asks for a token, as a volume that one can mount."""
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": _API_ACCESS, "projected": {"sources": sources}}
