"""The volume on which the pods of a Ray cluster share their mirror of object storage.

Stages work on a mirror of their bucket, and the head and the workers of a stage are different pods, so the mirror has
to lie where all of them see it. An administrator names a storage class for that (`stages.scratch`), and the operator
makes one claim per pipeline and mounts it in every pod. It never deletes one, and so needs no right to: the pipeline
owns it, and it goes with the pipeline. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from camel_ray.api.operator_config import OperatorConfig
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.api.rules import CACHE_VARIABLE, SCRATCH_DIRECTORY
from camel_ray.operator.groups import used_groups
from camel_ray.operator.kube.kinds import PERSISTENT_VOLUME_CLAIM
from camel_ray.operator.quantity import canonical

_VOLUME = "scratch"


@dataclass(frozen=True)
class Mount:
    """A claim as a pod sees it."""

    env: dict[str, str]
    """Variables of the container."""
    mount: dict[str, Any]
    """Its volume mount."""
    source: dict[str, Any]
    """The volume, without its name."""


def is_remote(storage: str) -> bool:
    """Whether `spec.storage` is worked on through a mirror."""
    return "://" in storage and not storage.startswith("file://")


def shares_mirror(pipeline: CamelPipeline) -> bool:
    """Whether a stage runs on several pods that have to see one mirror."""
    spec = pipeline.spec
    several = spec.cluster.executor == "RayJob" and any(used_groups(pipeline, stage) for stage in spec.stages)
    return several and is_remote(spec.storage)


def cache_directory(pipeline: CamelPipeline, config: OperatorConfig) -> str | None:
    """Where the administrator, or the pipeline itself, puts the mirror; None if nobody says."""
    given = [v.value or "" for v in (*config.stages.env, *pipeline.spec.cluster.env) if v.name == CACHE_VARIABLE]
    return given[-1] if given else None


def has_scratch(pipeline: CamelPipeline, config: OperatorConfig) -> bool:
    """Whether the pipeline gets a claim: it needs one, brings none, and the administrator has named a storage class."""
    named = bool(config.stages.scratch.storage_class_name)
    return named and shares_mirror(pipeline) and cache_directory(pipeline, config) is None


def claim_name(pipeline: str) -> str:
    """Name of the claim. It says nothing of size or class: a claim that is there stays in use when those change."""
    return f"{pipeline}-{_VOLUME}"


def claim_for(pipeline: CamelPipeline, config: OperatorConfig, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """The claim with this metadata, or None if the pipeline gets none."""
    if not has_scratch(pipeline, config):
        return None
    scratch = config.stages.scratch
    return {
        "apiVersion": PERSISTENT_VOLUME_CLAIM.api_version,
        "kind": PERSISTENT_VOLUME_CLAIM.name,
        "metadata": metadata,
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": scratch.storage_class_name,
            "resources": {"requests": {"storage": canonical(scratch.size)}},
        },
    }


def mounts_for(pipeline: CamelPipeline, config: OperatorConfig) -> Iterator[Mount]:
    """What each pod gets of the claim, if there is one."""
    if has_scratch(pipeline, config):
        source = {"persistentVolumeClaim": {"claimName": claim_name(pipeline.metadata.name)}}
        yield Mount({CACHE_VARIABLE: SCRATCH_DIRECTORY}, {"name": _VOLUME, "mountPath": SCRATCH_DIRECTORY}, source)
