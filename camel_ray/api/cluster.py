"""What a pipeline asks of Kubernetes. Ignored by `camel-ray run`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from camel_ray.api.base import Spec

OBJECT_NAME = r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$"
OPTIONAL_NAME = r"^([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?)?$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,252}$"
SECRET_KEY = r"^[-._a-zA-Z0-9]{1,253}$"
MOUNT_PATH = r"^(/\.?[^/:.\s][^/:\s]*)+$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?([kMGT]|[KMGT]i)?$"
LABEL_VALUE = r"^(|[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)$"
QUALIFIED_NAME = r"^([a-z0-9][-.a-z0-9]*/)?[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?$"
PATTERN_WORDS = {
    OBJECT_NAME: "at most 253 lower-case letters, digits, dashes and dots, with a letter or digit first and last",
    OPTIONAL_NAME: "the name of an object, or nothing",
    VARIABLE: "letters, digits and underscores, with no digit first",
    SECRET_KEY: "letters, digits, dashes, dots and underscores",
    MOUNT_PATH: "an absolute path without colons, spaces or `..`",
    QUANTITY: "a size such as 16Gi",
    QUALIFIED_NAME: "`name` or `domain/name`, the name of at most 63 letters, digits, dashes, dots and underscores",
    LABEL_VALUE: "at most 63 letters, digits, dashes, dots and underscores, with a letter or digit first and last",
}
"""The patterns of this file in words, for `fields.expected`."""

ObjectName = Annotated[str, Field(pattern=OBJECT_NAME)]
"""Name of a Kubernetes object: secret, claim, priority class, ..."""
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE)]


class ResourcesSpec(Spec):
    """Kubernetes resource requests and limits."""

    requests: dict[str, str] = Field(default_factory=dict)
    """Amounts a pod is guaranteed, as Kubernetes quantities (`cpu: "4"`, `memory: 16Gi`)."""
    limits: dict[str, str] = Field(default_factory=dict)
    """Amounts a pod may not exceed."""


class Toleration(Spec):
    """A taint of nodes that pods accept."""

    key: str | None = Field(default=None, pattern=QUALIFIED_NAME)
    """Key of the taint. Without one, `operator: Exists` accepts every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """`Exists` accepts any value; `Equal`, the default, the one of `value`."""
    value: str | None = Field(default=None, pattern=LABEL_VALUE)
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; all of them where it is left out."""
    toleration_seconds: int | None = None
    """With `effect: NoExecute`: how long a pod stays on a node that gets the taint. Default: for ever."""


class PodSpec(Spec):
    """Fragments merged into the pods of the head or of a group."""

    resources: ResourcesSpec = ResourcesSpec()
    """Requests and limits of the Ray container."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels a node must have."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32)
    """Taints the pods accept."""


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


class SecretKey(Spec):
    """One value of a secret."""

    name: str = Field(pattern=OBJECT_NAME)
    """Name of the secret, in the namespace of the pipeline."""
    key: str = Field(pattern=SECRET_KEY)
    """Its key."""


class EnvVar(Spec):
    """An environment variable: a name and exactly one of `value` and `secret`."""

    name: str = Field(pattern=VARIABLE)
    """Name of the variable."""
    value: str | None = None
    """Its value. It can be read by everybody who can read the pipeline: credentials belong into a secret."""
    secret: SecretKey | None = None
    """The secret that holds its value."""


class Volume(Spec):
    """A directory in all pods: where it is seen and exactly one of `claim`, `secret`, `configMap` and `memory`."""

    mount_path: str = Field(pattern=MOUNT_PATH)
    """Absolute path in the containers."""
    read_only: bool = False
    """Refuse writes. Secrets and config maps always do."""
    claim: str | None = Field(default=None, pattern=OBJECT_NAME)
    """PersistentVolumeClaim. All pods mount it, so over several nodes it must be ReadWriteMany or read-only."""
    secret: str | None = Field(default=None, pattern=OBJECT_NAME)
    """Secret whose keys become files."""
    config_map: str | None = Field(default=None, pattern=OBJECT_NAME)
    """ConfigMap whose keys become files."""
    memory: str | None = Field(default=None, pattern=QUANTITY)
    """Empty directory of this size in main memory, which counts against the memory limit of the pod."""


class ClusterSpec(Spec):
    """What a pipeline asks of Kubernetes. Ignored by `camel-ray run`."""

    image: str | None = Field(default=None, min_length=1)
    """Container image of all pods. Default: the chart's."""
    ray_version: str | None = Field(default=None, min_length=1)
    """Ray version of the image, as KubeRay wants to know it."""
    service_account_name: str | None = Field(default=None, pattern=OBJECT_NAME)
    """Service account of the stage pods."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list, max_length=16)
    """Names of secrets with registry credentials."""
    executor: Literal["RayJob", "Job"] = "RayJob"
    """`RayJob`: a Ray cluster per stage by KubeRay. `Job`: one pod with an embedded Ray."""
    head: PodSpec = PodSpec()
    """Pod of the Ray head."""
    groups: list[GroupSpec] = Field(default_factory=list, max_length=16)
    """Groups of worker pods."""
    autoscaling: AutoscalingSpec = AutoscalingSpec()
    """Ray's autoscaler in the cluster."""
    queue: str | None = Field(default=None, pattern=OBJECT_NAME)
    """Kueue LocalQueue the stages wait in."""
    priority_class_name: str | None = Field(default=None, pattern=OBJECT_NAME)
    """PriorityClass of the pods."""
    env: list[EnvVar] = Field(default_factory=list, max_length=100)
    """Environment variables of the stage's containers."""
    env_from_secrets: list[ObjectName] = Field(default_factory=list, max_length=16)
    """Secrets all of whose keys become environment variables: credentials of the storage, of hubs and trackers."""
    volumes: list[Volume] = Field(default_factory=list, max_length=16)
    """Directories mounted in the stage's containers."""
    labels: dict[str, LabelValue] = Field(default_factory=dict, max_length=50)
    """Further labels of the pods."""
    annotations: dict[str, str] = Field(default_factory=dict, max_length=50)
    """Further annotations of the pods."""
    start_timeout_seconds: int = Field(default=1800, ge=1)
    """Longest wait for the pods of an attempt to run: machines, images, volumes. The wait in a queue does not count."""
    drain_timeout_seconds: int = Field(default=300, ge=0)
    """How long a node that is taken away may go on, to write a checkpoint. Its pods get 30 seconds more."""
