"""What a pipeline asks of Kubernetes. Ignored by `camel-ray run`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from camel_ray.api.base import Spec


class ResourcesSpec(Spec):
    """Kubernetes resource requests and limits."""

    requests: dict[str, str] = Field(default_factory=dict)
    """Amounts a pod is guaranteed, as Kubernetes quantities (`cpu: "4"`, `memory: 16Gi`)."""
    limits: dict[str, str] = Field(default_factory=dict)
    """Amounts a pod may not exceed."""


class PodSpec(Spec):
    """Fragments merged into the pods of the head or of a group."""

    resources: ResourcesSpec = ResourcesSpec()
    """Requests and limits of the Ray container."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels a node must have."""
    tolerations: list[dict[str, Any]] = Field(default_factory=list)
    """Taints the pods accept, as Kubernetes tolerations."""


class GroupSpec(PodSpec):
    """A group of equal worker pods."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$")
    """Name of the group, at most 20 characters."""
    replicas: int | None = Field(default=None, ge=0)
    """Fixed number of pods. Leave out when `minReplicas` and `maxReplicas` are set."""
    min_replicas: int | None = Field(default=None, ge=0)
    """Least number of pods of an autoscaled group."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Largest number of pods of an autoscaled group."""
    gpus: int = Field(default=0, ge=0)
    """GPUs per pod."""


class AutoscalingSpec(Spec):
    """Ray's autoscaler in the cluster."""

    enabled: bool = False
    """Let the number of worker pods follow the demand."""
    idle_timeout_seconds: int = Field(default=60, ge=0)
    """Seconds an unused worker pod is kept."""


class ClusterSpec(Spec):
    """What a pipeline asks of Kubernetes. Ignored by `camel-ray run`."""

    image: str | None = None
    """Container image of all pods. Default: the chart's."""
    ray_version: str | None = None
    """Ray version of the image, as KubeRay wants to know it."""
    service_account_name: str | None = None
    """Service account of the stage pods."""
    image_pull_secrets: list[str] = Field(default_factory=list)
    """Names of secrets with registry credentials."""
    executor: Literal["RayJob", "Job"] = "RayJob"
    """`RayJob`: a Ray cluster per stage by KubeRay. `Job`: one pod with an embedded Ray."""
    head: PodSpec = PodSpec()
    """Pod of the Ray head."""
    groups: list[GroupSpec] = Field(default_factory=list)
    """Groups of worker pods."""
    autoscaling: AutoscalingSpec = AutoscalingSpec()
    """Ray's autoscaler in the cluster."""
    queue: str | None = None
    """Kueue LocalQueue the stages wait in."""
