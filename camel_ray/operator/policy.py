"""What a pipeline may ask for, by the `policy` of the operator's configuration: one sentence for each thing too many.

Who may create pipelines need not be allowed to create pods, but the operator creates pods for them. So whatever of a
pod a pipeline can choose and that gives more than a container of one's own (another's service account, Secrets, nodes,
priority, what controllers read from labels and annotations) is a list that the administrator owns. Pure; `problems.py`
asks before anything is created.

Some names a glob never means, because whoever wrote `*` hardly thought of them; they have to be written out in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from camel_ray.api.cluster import ClusterSpec, PodSpec
from camel_ray.api.operator_config import OperatorConfig, allows

KUBERAY = "kuberay-operator"
"""Value of the label by which the network policy knows KubeRay's operator."""
_KUBERAY_LABELS = ("app.kubernetes.io/name", "app.kubernetes.io/component")
_JOB_LABELS = ("controller-uid", "job-name")
"""By which the Job controller finds its pods; the API server refuses a Job whose template sets another value."""

_SYSTEM_PRIORITIES = ("system-",)
"""Such pods push out everything else on a node; only some namespaces may use them, by an admission plugin."""
_GUARDED_TAINTS = (
    "node-role.kubernetes.io/",
    "node.kubernetes.io/unschedulable",
    "node.cloudprovider.kubernetes.io/",
)
"""Of control-plane nodes, of cordoned ones (a drain would never end), of nodes that are not set up yet."""
_GUARDED_LABELS = ("aadpodidbinding", "azure.workload.identity/", "sidecar.istio.io/", "inject.istio.io/")
_GUARDED_ANNOTATIONS = (
    # weaken the confinement of the containers
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
    "io.kubernetes.cri-o.",
    "io.containerd.",
    "io.katacontainers.",
    "run.oci.",
    # devices that nobody counted, further networks, addresses of others
    "cdi.k8s.io/",
    "devices.nri.io/",
    "mounts.nri.io/",
    "k8s.v1.cni.cncf.io/",
    "v1.multus-cni.io/",
    "cni.projectcalico.org/",
    # sidecars with volumes, images and secrets of the user's choice
    "sidecar.istio.io/",
    "inject.istio.io/",
    "proxy.istio.io/",
    "traffic.sidecar.istio.io/",
    "config.linkerd.io/",
    "linkerd.io/",
    "vault.hashicorp.com/",
    # roles in the cloud
    "azure.workload.identity/",
    "eks.amazonaws.com/",
    "iam.amazonaws.com/",
    "iam.gke.io/",
)


def policy_problems(cluster: ClusterSpec, config: OperatorConfig) -> Iterator[str]:
    """A sentence for each thing that the pipeline asks for and may not have."""
    policy, stages = config.policy, config.stages
    account = cluster.service_account_name
    if account and account != stages.service_account_name and not allows(policy.service_accounts, account):
        yield _refusal("serviceAccountName", account, "serviceAccounts", policy.service_accounts)
    for field, secret in _secrets(cluster):
        if not allows(policy.secrets, secret):
            yield _refusal(field, secret, "secrets", policy.secrets)
    for number, volume in enumerate(cluster.volumes):
        if volume.config_map and not allows(policy.config_maps, volume.config_map):
            yield _refusal(f"volumes[{number}].configMap", volume.config_map, "configMaps", policy.config_maps)
        if volume.claim and not allows(policy.claims, volume.claim):
            yield _refusal(f"volumes[{number}].claim", volume.claim, "claims", policy.claims)
    priority = cluster.priority_class_name
    if priority and priority != stages.priority_class_name:
        yield from _keys(
            "priorityClassName", [priority], "priorityClasses", policy.priority_classes, _SYSTEM_PRIORITIES
        )
    yield from _machine("head", cluster.head, config)
    for number, group in enumerate(cluster.groups):
        yield from _machine(f"groups[{number}]", group, config)
    for key in cluster.labels:
        if key in _JOB_LABELS:
            yield f"spec.cluster.labels: '{key}' is set by Kubernetes alone; delete the line"
        elif key in _KUBERAY_LABELS and cluster.labels[key] == KUBERAY:
            yield f"spec.cluster.labels: '{key}: {KUBERAY}' marks pods of KubeRay's operator; delete the line"
    yield from _keys("labels", cluster.labels, "labelKeys", policy.label_keys, _GUARDED_LABELS)
    yield from _keys("annotations", cluster.annotations, "annotationKeys", policy.annotation_keys, _GUARDED_ANNOTATIONS)


def _secrets(cluster: ClusterSpec) -> Iterator[tuple[str, str]]:
    """All Secrets the pods read, with the fields that name them."""
    for number, secret in enumerate(cluster.image_pull_secrets):
        yield f"imagePullSecrets[{number}]", secret
    for number, variable in enumerate(cluster.env):
        if variable.secret is not None:
            yield f"env[{number}].secret.name", variable.secret.name
    for number, secret in enumerate(cluster.env_from_secrets):
        yield f"envFromSecrets[{number}]", secret
    for number, volume in enumerate(cluster.volumes):
        if volume.secret:
            yield f"volumes[{number}].secret", volume.secret


def _machine(field: str, machine: PodSpec, config: OperatorConfig) -> Iterator[str]:
    policy = config.policy
    yield from _keys(f"{field}.nodeSelector", machine.node_selector, "nodeSelectorKeys", policy.node_selector_keys, ())
    for number, toleration in enumerate(machine.tolerations):
        where, key = f"{field}.tolerations[{number}].key", toleration.key or ""
        if key == "" and "" not in policy.toleration_keys:
            yield (
                f"spec.cluster.{where}: is missing, which accepts every taint and is not allowed here; name one, or "
                'ask the administrator for "" in policy.tolerationKeys of the operator\'s configuration'
            )
        elif key:
            yield from _keys(where, [key], "tolerationKeys", policy.toleration_keys, _GUARDED_TAINTS)


def _keys(field: str, asked: Iterable[str], name: str, allowed: list[str], guarded: tuple[str, ...]) -> Iterator[str]:
    """A sentence for each that is not allowed; one of the `guarded` prefixes only counts where it is written out."""
    for key in asked:
        if not (key in allowed if key.startswith(guarded) else allows(allowed, key)):
            yield _refusal(field, key, name, allowed)


def _refusal(field: str, asked: str, name: str, allowed: list[str]) -> str:
    there = ", ".join(allowed) or "none"
    return (
        f"spec.cluster.{field}: '{asked}' is not allowed here: policy.{name} of the operator's configuration has "
        f"{there}; choose one of these, or ask the administrator for it"
    )
