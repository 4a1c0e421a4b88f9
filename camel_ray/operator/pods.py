"""What all pods of an attempt share: identity, security, environment, volumes and resources.

Pure. `rayjob.py` and `job.py` put their pods together from it. Everything passes Pod Security `restricted`, nothing of
the user's gets into a shell, and every field has the form in which the API server stores it (no zero values, canonical
quantities), so that what was built equals what is read back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, TypeVar

from camel_ray.api.cluster import GroupSpec, PodSpec, Volume
from camel_ray.operator import names
from camel_ray.operator.kinds import CAMEL_PIPELINE
from camel_ray.operator.model import Attempt
from camel_ray.operator.quantity import amount, canonical, mebibytes
from camel_ray.operator.scratch import mounts_for

T = TypeVar("T")

ENTRYPOINT = ("python", "-m", "camel_ray.runtime.attempt")
"""Constant: KubeRay pastes it into a shell, so everything that varies is in the environment or in a file."""
SPEC_DIRECTORY = "/etc/camel-ray"
SPEC_KEY = "pipeline.json"
CA_KEY = "progress-ca.crt"
TOKEN_DIRECTORY = "/var/run/secrets/camel-ray.dev"
TOKEN_AUDIENCE = "camel-ray.dev"
DRAIN_MARGIN_SECONDS = 30
"""Longer than the drain that a pod's grace period lasts, so that Ray ends by itself before it is killed."""
LONGEST_SECONDS = 2**31 - 1
"""Largest deadline Kubernetes takes."""

GPU = "nvidia.com/gpu"
DEFAULT_CPU = "1"
DEFAULT_MEMORY = "4Gi"
"""For pods that name no memory. Less than that and Ray's own memory monitor ends the driver on a head."""
_SHARED_MEMORY_SHARE = Fraction(2, 5)
"""Of a pod's memory, for /dev/shm. Ray's object store takes up to 30 % of the memory and wants all of that there; the
rest is for NCCL and data loaders. It is a limit, not a reservation: what is used counts against the pod's memory."""
_LEAST_SHARED_MEMORY = Fraction(2**30)

CONTAINER_SECURITY: Mapping[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_POD_SECURITY: dict[str, Any] = {
    "fsGroupChangePolicy": "OnRootMismatch",  # a claim with a million files is not gone through at every start
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_FIXED_USER: dict[str, Any] = {"fsGroup": 1000, "runAsGroup": 1000, "runAsUser": 1000}
HOME: Mapping[str, str] = {"HOME": "/tmp"}
"""The only directory that is writable; torch, transformers and Ray all want one."""
_NAME: Mapping[str, str] = {"USER": "camel-ray"}
"""For ids that no image knows: torch ends with an error where its user has no name."""
TMP_MOUNT: Mapping[str, str] = {"name": "tmp", "mountPath": "/tmp"}
TMP_VOLUME: Mapping[str, Any] = {"name": "tmp", "emptyDir": {}}


def metadata(attempt: Attempt, name: str, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Metadata of an object of the attempt: its pipeline owns it, so deleting the pipeline deletes it."""
    return {
        "name": name,
        "namespace": attempt.namespace,
        "labels": {**attempt_labels(attempt), **(labels or {})},
        "ownerReferences": [owner(attempt)],
    }


def owner(attempt: Attempt) -> dict[str, Any]:
    """Reference to the pipeline."""
    return {
        "apiVersion": CAMEL_PIPELINE.api_version,
        "kind": CAMEL_PIPELINE.name,
        "name": attempt.pipeline.metadata.name,
        "uid": attempt.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def attempt_name(attempt: Attempt) -> str:
    """Name of its RayJob or Job."""
    return names.attempt_name(attempt.pipeline.metadata.name, attempt.stage.name, attempt.number)


def attempt_labels(attempt: Attempt) -> dict[str, str]:
    """Labels of its object and of all its pods."""
    return names.attempt_labels(attempt.pipeline.metadata.name, attempt.stage.name, attempt.number)


def image(attempt: Attempt) -> str:
    """Image of all its pods."""
    return attempt.pipeline.spec.cluster.image or attempt.settings.config.stages.image


def spec_data(attempt: Attempt) -> dict[str, str]:
    """What the attempt's process reads: the pipeline, and the certificate authority of the progress server.

    Only what differs from the defaults: the image may be older than the operator, and refuses fields it does not know.

    Labels and annotations of the pipeline stay out: kubectl keeps a copy of the whole file in one, and requests such as
    a retry are another, so they would make a new version of each.
    """
    of = attempt.pipeline
    metadata = {"name": of.metadata.name, "namespace": attempt.namespace}
    document = {"apiVersion": of.api_version, "kind": of.kind, "metadata": metadata, "spec": of.spec.written()}
    data = {SPEC_KEY: json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)}
    if attempt.settings.progress_url and attempt.settings.progress_ca:
        data[CA_KEY] = attempt.settings.progress_ca
    return data


def spec_map_name(attempt: Attempt) -> str:
    """Name of the ConfigMap with `spec_data`: another content, another name, because it is immutable."""
    digest = hashlib.sha256(json.dumps(spec_data(attempt), sort_keys=True).encode()).hexdigest()
    return f"{attempt.pipeline.metadata.name}-{digest[:10]}"


def template(
    attempt: Attempt,
    container: Mapping[str, Any],
    *,
    machine: PodSpec,
    volumes: list[dict[str, Any]],
    grace_seconds: int,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A pod template with one container. `machine` says which nodes will do, beside what the operator's configuration
    says of all pods.

    Pods never restart in place: a container that ended stays as it ended, so that its exit code and reason can be read.
    """
    cluster, defaults = attempt.pipeline.spec.cluster, attempt.settings.config.stages
    own_labels = {**attempt_labels(attempt), **(labels or {})}
    meta: dict[str, Any] = {"labels": {**defaults.labels, **cluster.labels, **own_labels}}
    if annotations := {**defaults.annotations, **cluster.annotations}:
        meta["annotations"] = annotations
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        # what runs in the pods is the user's, and asks the API server for nothing
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": dict(sorted((_POD_SECURITY | (_FIXED_USER if defaults.fixed_user else {})).items())),
        "containers": [dict(container)],
        "volumes": volumes,
    }
    if account := cluster.service_account_name or defaults.service_account_name:
        spec["serviceAccountName"] = account
    if secrets := _united(defaults.image_pull_secrets, cluster.image_pull_secrets):
        spec["imagePullSecrets"] = [{"name": secret} for secret in secrets]
    if priority := cluster.priority_class_name or defaults.priority_class_name:
        spec["priorityClassName"] = priority
    if selector := {**defaults.node_selector, **machine.node_selector}:
        spec["nodeSelector"] = selector
    if tolerations := _united(defaults.tolerations, machine.tolerations):
        spec["tolerations"] = [toleration.wire() for toleration in tolerations]
    return {"metadata": meta, "spec": spec}


def container(
    attempt: Attempt, name: str, *, own_env: Mapping[str, str], machine: PodSpec, drives: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A container that runs user code, and the volumes it needs. `drives`: it runs the entry point."""
    cluster, defaults = attempt.pipeline.spec.cluster, attempt.settings.config.stages
    resources = resources_of(machine)
    mounts: list[dict[str, Any]] = [dict(TMP_MOUNT)]
    volumes: list[dict[str, Any]] = [dict(TMP_VOLUME)]
    mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _shared_memory(resources)}})
    for claim in mounts_for(attempt.pipeline, attempt.settings.config):
        own_env = {**own_env, **claim.env}
        mounts.append(claim.mount)
        volumes.append({"name": claim.mount["name"], **claim.source})
    for number, volume in enumerate(cluster.volumes):
        mount: dict[str, Any] = {"name": f"volume-{number}", "mountPath": volume.mount_path}
        if volume.read_only or volume.secret or volume.config_map:
            mount["readOnly"] = True
        mounts.append(mount)
        volumes.append({"name": f"volume-{number}", **_source(volume)})
    if drives:
        more = _driver_volumes(attempt)
        mounts += [{"name": name, "mountPath": path, "readOnly": True} for name, path, _ in more]
        volumes += [{"name": name, **source} for name, _, source in more]
    built: dict[str, Any] = {
        "name": name,
        "image": image(attempt),
        "imagePullPolicy": defaults.image_pull_policy,
        "env": _environment(attempt, {**own_env, **(_contract(attempt) if drives else {})}),
        "resources": resources,
        "securityContext": dict(CONTAINER_SECURITY),
        "volumeMounts": mounts,
    }
    if secrets := _united(defaults.env_from_secrets, cluster.env_from_secrets):
        built["envFrom"] = [{"secretRef": {"name": secret}} for secret in secrets]
    return built, volumes


def resources_of(machine: PodSpec) -> dict[str, Any]:
    """Requests and limits in canonical quantities, with defaults where cpu or memory are not named at all.

    A pod always has some memory limit or request: Ray sizes itself by it, and would take the whole node's otherwise.
    """
    requests = {key: canonical(value) for key, value in machine.resources.requests.items()}
    limits = {key: canonical(value) for key, value in machine.resources.limits.items()}
    if "cpu" not in requests and "cpu" not in limits:
        requests["cpu"] = DEFAULT_CPU
    if "memory" not in requests and "memory" not in limits:
        requests["memory"] = limits["memory"] = DEFAULT_MEMORY
    if isinstance(machine, GroupSpec) and machine.gpus:
        limits.setdefault(GPU, str(machine.gpus))
    return {kind: amounts for kind, amounts in (("requests", requests), ("limits", limits)) if amounts}


def literal(value: str) -> str:
    """A value of an environment variable that Kubernetes leaves as it is: `$(NAME)` would be replaced, `$$` halved."""
    return value.replace("$", "$$")


def plain_env(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Environment variables with these values; an empty value is left out, which means the same."""
    return [{"name": name, "value": literal(value)} if value else {"name": name} for name, value in values.items()]


def _environment(attempt: Attempt, own: Mapping[str, str]) -> list[dict[str, Any]]:
    """The configuration's variables, the user's and ours. The later win, except for HOME; each name is there once."""
    defaults = attempt.settings.config.stages
    always = HOME if defaults.fixed_user else {**HOME, **_NAME}
    variables: dict[str, dict[str, Any]] = {v["name"]: v for v in plain_env(always)}
    for variable in (*defaults.env, *attempt.pipeline.spec.cluster.env):
        if variable.secret is not None:
            key = {"name": variable.secret.name, "key": variable.secret.key}
            variables[variable.name] = {"name": variable.name, "valueFrom": {"secretKeyRef": key}}
        else:
            variables |= {v["name"]: v for v in plain_env({variable.name: variable.value or ""})}
    variables |= {v["name"]: v for v in plain_env(own)}
    return list(variables.values())


def _contract(attempt: Attempt) -> dict[str, str]:
    """What the entry point reads. The names of the progress server's variables are Kubeflow's: any Hugging Face trainer
    reports to it by itself.
    """
    settings, pipeline, stage = attempt.settings, attempt.pipeline.metadata.name, attempt.stage.name
    env = {
        "CAMEL_RAY_PIPELINE_FILE": f"{SPEC_DIRECTORY}/{SPEC_KEY}",
        "CAMEL_RAY_STAGE": stage,
        "CAMEL_RAY_ATTEMPT": str(attempt.number),
        "CAMEL_RAY_PIPELINE_UID": attempt.uid,
        # Ray Train gives its workers a minute by default, less than a node needs to be there
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(attempt.pipeline.spec.cluster.start_timeout_seconds),
    }
    if attempt.fresh_from:
        env["CAMEL_RAY_FRESH"] = str(attempt.fresh_from)
    if settings.progress_url:
        env["KUBEFLOW_TRAINER_SERVER_URL"] = (
            f"{settings.progress_url.rstrip('/')}/v1/namespaces/{attempt.namespace}/pipelines/{pipeline}"
            f"/stages/{stage}/attempts/{attempt.number}"
        )
        env["KUBEFLOW_TRAINER_SERVER_TOKEN"] = f"{TOKEN_DIRECTORY}/token"
        # The Hugging Face trainer would report too, and take the turns of our reporter, which alone hears of a stop.
        env["DISABLE_KUBEFLOW_INTEGRATION"] = "TRUE"
        if settings.progress_ca:
            env["KUBEFLOW_TRAINER_SERVER_CA_CERT"] = f"{SPEC_DIRECTORY}/{CA_KEY}"
    return env


def _driver_volumes(attempt: Attempt) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, mount path and source of what only the entry point may read."""
    found: list[tuple[str, str, dict[str, Any]]] = [
        ("spec", SPEC_DIRECTORY, {"configMap": {"name": spec_map_name(attempt)}})
    ]
    if attempt.settings.progress_url:
        token = {"audience": TOKEN_AUDIENCE, "expirationSeconds": 3600, "path": "token"}
        found.append(("progress-token", TOKEN_DIRECTORY, {"projected": {"sources": [{"serviceAccountToken": token}]}}))
    return found


def _source(volume: Volume) -> dict[str, Any]:
    if volume.claim:
        return {
            "persistentVolumeClaim": {"claimName": volume.claim, **({"readOnly": True} if volume.read_only else {})}
        }
    if volume.secret:
        return {"secret": {"secretName": volume.secret}}
    if volume.config_map:
        return {"configMap": {"name": volume.config_map}}
    return {"emptyDir": {"medium": "Memory", "sizeLimit": canonical(volume.memory or "0")}}


def _united(defaults: list[T], own: list[T]) -> list[T]:
    """Both lists, what is in both once. The pipeline's come last: of Secrets with the same key, the last counts."""
    return [*(item for item in defaults if item not in own), *own]


def _shared_memory(resources: Mapping[str, Mapping[str, str]]) -> str:
    memory = resources.get("limits", {}).get("memory") or resources.get("requests", {}).get("memory") or "0"
    return mebibytes(max(_LEAST_SHARED_MEMORY, (amount(memory) or Fraction(0)) * _SHARED_MEMORY_SHARE))
