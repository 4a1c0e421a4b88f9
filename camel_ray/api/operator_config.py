"""The operator's configuration file: defaults of stage pods, what pipelines may ask for, who reaches their pods.

    operator --config FILE -> load_operator_config -> OperatorConfig -> pods, problems, network policies

The chart writes the file from its values of the same names, whose schema is made of these models. An administrator
owns the file, the users of a namespace own pipelines: what `stages` sets is never judged by `policy`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from camel_ray.api.base import Spec
from camel_ray.api.cluster import OPTIONAL_NAME, QUANTITY, EnvVar, LabelValue, ObjectName, Toleration
from camel_ray.api.problems import schema_problems
from camel_ray.api.rules import KEY_PATTERN, MANAGED_BY, RESERVED_KEYS, SECRET_VARIABLE_PATTERN, is_operators
from camel_ray.api.yaml_source import MAX_BYTES, FieldPath, Problem, read_source
from camel_ray.errors import SpecError
from camel_ray.version import __version__

PEER = ("podSelector", "namespaceSelector", "ipBlock")
"""Keys of a NetworkPolicyPeer."""

Pattern = str
"""A name, or a glob for names: `*` any characters, `?` one, `[ab]` one of these."""


class ScratchSpec(Spec):
    """A volume that head and workers of `executor: RayJob` share while they work on object storage. Pipelines that need
    one and bring none get a claim each, which goes with the pipeline.
    """

    storage_class_name: str = Field(default="", pattern=OPTIONAL_NAME)
    """StorageClass that can do ReadWriteMany, such as one of EFS, FSx, Filestore, CephFS or NFS. Empty: no claims are
    made, and such a pipeline has to mount one of its own."""
    size: str = Field(default="100Gi", pattern=QUANTITY)
    """Size of each claim: the artifacts that a pipeline reads and makes, and one checkpoint more than it keeps."""


class StageDefaults(Spec):
    """What all pods of a stage get: head, workers, submitter, or the one pod of `executor: Job`."""

    image: str = Field(default=f"camel-ray/trainer:{__version__}", min_length=1)
    """Image where the pipeline names none."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When nodes pull the image. `Always` where private images must not be used from a node's cache."""
    ray_version: str = Field(default="2.60.0", min_length=1)
    """Ray version of `image`, as KubeRay wants to know it; a pipeline's own `rayVersion` wins."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list, max_length=16)
    """Secrets with registry credentials, in the pipeline's namespace; a pipeline's own are added."""
    service_account_name: str = Field(default="", pattern=OPTIONAL_NAME)
    """Service account where the pipeline names none. Empty: the `default` one of the namespace."""
    priority_class_name: str = Field(default="", pattern=OPTIONAL_NAME)
    """PriorityClass where the pipeline names none. Empty: the cluster's default."""
    node_selector: dict[str, LabelValue] = Field(default_factory=dict)
    """Labels a node must have. Merged under the pipeline's own: for the same key, the pipeline's value counts."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Taints the pods accept, besides the pipeline's own."""
    labels: dict[str, LabelValue] = Field(default_factory=dict, max_length=50)
    """Labels of the pods. Merged under the pipeline's own."""
    annotations: dict[str, str] = Field(default_factory=dict, max_length=50)
    """Annotations of the pods. Merged under the pipeline's own."""
    env: list[EnvVar] = Field(default_factory=list, max_length=100)
    """Environment variables of the containers that run a stage. A pipeline's own of the same name wins."""
    env_from_secrets: list[ObjectName] = Field(default_factory=list, max_length=16)
    """Secrets, in the pipeline's namespace, all of whose keys become environment variables: credentials of the storage.
    Those of a pipeline come after and win."""
    fixed_user: bool = True
    """Run the pods as user and group 1000, and give volumes to that group. `false`: the cluster chooses the ids, as the
    restricted security contexts of OpenShift want it."""
    scratch: ScratchSpec = ScratchSpec()
    """The volume that the pods of a stage share while they work on object storage."""


class Policy(Spec):
    """What a pipeline may ask for: lists of names and globs. A pipeline that asks for more fails at once, with the
    field and the list in its message. An empty list forbids the whole.
    """

    service_accounts: list[Pattern] = Field(default_factory=lambda: ["default"])
    """`spec.cluster.serviceAccountName`. `stages.serviceAccountName` is always allowed."""
    secrets: list[Pattern] = Field(default_factory=lambda: ["*"])
    """Secrets of the namespace: `env`, `envFromSecrets`, `volumes`, `imagePullSecrets`. Whoever starts a pipeline can
    read them, also without a right on Secrets."""
    config_maps: list[Pattern] = Field(default_factory=lambda: ["*"])
    """ConfigMaps of the namespace: `volumes`."""
    claims: list[Pattern] = Field(default_factory=lambda: ["*"])
    """PersistentVolumeClaims of the namespace: `volumes`."""
    priority_classes: list[Pattern] = Field(default_factory=lambda: ["*"])
    """`priorityClassName`. No glob matches `system-*`: such a class must be written out in full."""
    node_selector_keys: list[Pattern] = Field(default_factory=lambda: ["*"])
    """Keys of `nodeSelector`."""
    toleration_keys: list[Pattern] = Field(default_factory=lambda: ["*"])
    """Keys of `tolerations`. No glob matches those of control-plane nodes (`node-role.kubernetes.io/*`), of nodes that
    are cordoned or not set up yet, and a toleration without a key, which accepts every taint: they must be written out
    in full, the latter as `""`."""
    label_keys: list[Pattern] = Field(default_factory=lambda: ["*"])
    """Keys of `labels`. Those of the operator, KubeRay, Kueue and Jobs are never allowed."""
    annotation_keys: list[Pattern] = Field(default_factory=lambda: ["*"])
    """Keys of `annotations`. No glob matches those that weaken or extend a pod (AppArmor, seccomp, injected sidecars,
    further networks, cloud roles): they must be written out in full."""


class NetworkPolicySpec(Spec):
    """One NetworkPolicy per pipeline, for what comes in. Clusters whose network enforces none ignore it."""

    enabled: bool = True
    """Let only pods of the same pipeline, KubeRay's operator and `allowFrom` reach the pods of a pipeline."""
    allow_from: list[dict[str, Any]] = Field(default_factory=list, max_length=50)
    """More that may reach them, as NetworkPolicyPeers (`podSelector`, `namespaceSelector`, `ipBlock`): Prometheus."""


class OperatorConfig(Spec):
    """The whole file."""

    stages: StageDefaults = StageDefaults()
    """Defaults for stage pods."""
    policy: Policy = Policy()
    """What pipelines may ask for."""
    network_policy: NetworkPolicySpec = NetworkPolicySpec()
    """Who reaches stage pods."""


def load_operator_config(path: Path) -> OperatorConfig:
    """Read and check the file; an empty one is all defaults.

    Raises SpecError with one sentence per mistake, `file:line: field: what is wrong and what to do`.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the operator's configuration file") from error
    if all(not line.strip() or line.lstrip().startswith(b"#") for line in data.splitlines()):
        return OperatorConfig()
    source = read_source(data, str(path))
    problems = list(source.problems)
    config = OperatorConfig()
    if not isinstance(source.value, dict):
        keys = ", ".join(info.alias or name for name, info in OperatorConfig.model_fields.items())
        problems.append(Problem(source.line(()), (), f"should be a mapping with the keys {keys}"))
    else:
        try:
            text = json.dumps(source.value)
            config = OperatorConfig.model_validate_json(text, strict=True, by_alias=True, by_name=False)
        except ValidationError as error:
            known = {p.path for p in problems}
            problems += [p for p in schema_problems(error, source, OperatorConfig) if p.path not in known]
        problems += [Problem(source.line(at), at, words) for at, words in _rules(config)]
    if problems:
        ordered = sorted(problems, key=lambda p: p.line)
        raise SpecError(*dict.fromkeys(p.sentence(str(path)) for p in ordered))
    return config


def allows(patterns: list[Pattern], name: str) -> bool:
    """Whether one of the names or globs is meant by `name`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _rules(config: OperatorConfig) -> Iterator[tuple[FieldPath, str]]:
    """What spans fields: the same that holds for a pipeline's own labels and variables."""
    stages = config.stages
    for field, keys in (("labels", stages.labels), ("annotations", stages.annotations)):
        for key in keys:
            where = ("stages", field, key)
            if not re.fullmatch(KEY_PATTERN, key):
                yield where, f"'{key}' is no key of {field}; write name or domain/name"
            elif key == MANAGED_BY or key.startswith(RESERVED_KEYS):
                yield where, f"'{key}' is set by the operator, KubeRay or Kueue alone; delete the line"
    for number, peer in enumerate(config.network_policy.allow_from):
        if not peer or set(peer) - set(PEER):
            yield ("networkPolicy", "allowFrom", number), f"should have at least one of {', '.join(PEER)}, and no more"
    names: set[str] = set()
    for number, variable in enumerate(stages.env):
        where_env = ("stages", "env", number)
        if (variable.value is None) == (variable.secret is None):
            yield where_env, f"'{variable.name}' needs exactly one of `value` and `secret`"
        if is_operators(variable.name):
            yield where_env, f"'{variable.name}' is set by the operator alone; delete it"
        if variable.value and re.search(SECRET_VARIABLE_PATTERN, variable.name):
            yield (
                where_env,
                f"'{variable.name}' is a credential; write secret: {{name: ..., key: ...}} instead of value",
            )
        if variable.name in names:
            yield where_env, f"'{variable.name}' is set twice; delete one of them"
        names.add(variable.name)
