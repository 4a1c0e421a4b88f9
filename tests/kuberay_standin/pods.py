"""The pods that KubeRay makes for a RayCluster, as plain values: what it adds to the templates, and how Ray is started.

The first container of a template is Ray's. A kubelet runs what is written here; the played one does not look at it.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from kuberay_standin.api import Object, key_of
from kuberay_standin.manifests import CLUSTER, GROUP, NODE_TYPE, NOWHERE, host, owned_by, suffix, token_env, whole

AUTOSCALER = "autoscaler"
_GCS_PORT = "6379"
_AGENT_PORT = "52365"
_METRICS_PORT = 8080
_OPEN_FILES = "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}"
_SHELL = ["/bin/bash", "-c", "--"]
_VALUES_EVEN_IF_BOOLEAN = ("include-dashboard", "include-log-monitor", "log-color")
_WAIT = """\
until ray health-check --address {address}:{port} >/dev/null 2>&1; do
  echo "$SECONDS seconds elapsed: Waiting for GCS to be ready."
  sleep 5
done
echo "GCS is ready."
"""


def head_pod(cluster: Object, nowhere: bool) -> Object:
    """The head, and beside it the autoscaler if there is one: that inherits nothing of the head's container."""
    spec = cluster["spec"]
    group = spec["headGroupSpec"]
    params = {"dashboard-host": "0.0.0.0", **group.get("rayStartParams", {})}
    if spec.get("enableInTreeAutoscaling"):
        params["no-monitor"] = "true"
    pod = _pod(cluster, group, params, "head", "headgroup", "head", nowhere)
    if spec.get("enableInTreeAutoscaling"):
        pod["spec"].setdefault("serviceAccountName", cluster["metadata"]["name"])
        pod["spec"]["containers"].append(_autoscaler(cluster, pod["spec"]["containers"][0]["image"]))
        for container in (pod["spec"]["containers"][0], pod["spec"]["containers"][-1]):
            _empty_dir(pod["spec"], container, "ray-logs", "/tmp/ray", {})
    return pod


def worker_pod(cluster: Object, group: Object, nowhere: bool) -> Object:
    """A worker, with the init container that waits for the head and copies much of the worker's own."""
    name = group["groupName"]
    own = deepcopy(group["template"]["spec"]["containers"][0])
    params = {"address": f"{host(cluster)}:{_GCS_PORT}", **group.get("rayStartParams", {})}
    pod = _pod(cluster, group, params, "worker", name, f"{name}-worker", nowhere)
    same = {k: own[k] for k in ("image", "imagePullPolicy", "securityContext", "volumeMounts") if k in own}
    amounts = {"cpu": "200m", "memory": "256Mi"}
    waits: Object = {"name": "wait-gcs-ready", **same, "resources": {"requests": amounts, "limits": amounts}}
    waits |= {"command": _SHELL, "args": [_WAIT.format(address=host(cluster), port=_GCS_PORT)]}
    waits["env"] = [*own.get("env", ()), *token_env(cluster["spec"], cluster["metadata"]["name"]), *_head_at(cluster)]
    pod["spec"].setdefault("initContainers", []).append(waits)
    return pod


def _pod(
    cluster: Object,
    group: Object,
    params: dict[str, str],
    node_type: str,
    group_name: str,
    infix: str,
    nowhere: bool,
) -> Object:
    namespace, name = key_of(cluster)
    spec = cluster["spec"]
    pod: Object = {"apiVersion": "v1", "kind": "Pod", **deepcopy(group["template"])}
    meta = pod.setdefault("metadata", {})
    labels = {
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        "ray.io/is-ray-node": "yes",
        "ray.io/identifier": f"{name}-{node_type}"[:63].rstrip("-"),
        **meta.get("labels", {}),
        **group.get("labels", {}),
        CLUSTER: name,
        NODE_TYPE: node_type,
        GROUP: group_name,
    }
    generated = f"{name}-{infix}"[:50].rstrip("-") + f"-{suffix()}"
    meta.update(name=generated, namespace=namespace, labels=labels, ownerReferences=owned_by(cluster))
    autoscaler = spec.get("autoscalerOptions", {}).get("version") if spec.get("enableInTreeAutoscaling") else None
    if autoscaler == "v2":
        pod["spec"]["restartPolicy"] = "Never"
    if nowhere:
        pod["spec"]["nodeSelector"] = NOWHERE
    container = pod["spec"]["containers"][0]
    command = _ray_start(container, group, params, node_type)
    container["env"] = [*container.get("env", ()), *token_env(spec, name), *_ray_env(cluster, node_type, command)]
    if node_type == "head" and autoscaler:
        container["env"].append({"name": "RAY_enable_autoscaler_v2", "value": str(autoscaler == "v2").lower()})
    resources = container.get("resources", {})
    size = resources.get("limits", {}).get("memory") or resources.get("requests", {}).get("memory")
    memory: Object = {"medium": "Memory", **({"sizeLimit": size} if size else {})}
    _empty_dir(pod["spec"], container, "shared-mem", "/dev/shm", memory)
    container.setdefault("command", _SHELL)
    container.setdefault("args", [f"{_OPEN_FILES}; {command}"])
    ports = container.setdefault("ports", [])
    if not any(port.get("name") == "metrics" for port in ports):
        ports.append({"name": "metrics", "containerPort": _METRICS_PORT})
    _probes(container, node_type)
    return pod


def _ray_start(container: Object, group: Object, params: dict[str, str], node_type: str) -> str:
    """`ray start` with what the template and the group say; Ray counts whole CPUs."""
    amounts = container.get("resources", {})
    limits, requests = amounts.get("limits", {}), amounts.get("requests", {})
    params = {"metrics-export-port": str(_METRICS_PORT), "dashboard-agent-listen-port": _AGENT_PORT, **params}
    params["block"] = "true"
    if cpu := limits.get("cpu") or requests.get("cpu"):
        params.setdefault("num-cpus", str(whole(cpu)))
    if memory := limits.get("memory"):
        params.setdefault("memory", str(whole(memory)))
    gpus = [amount for name, amount in sorted(limits.items()) if name.endswith("gpu")]
    if gpus:
        params.setdefault("num-gpus", str(whole(gpus[0])))
    if group.get("labels"):
        params["labels"] = ",".join(f"{k}={v}" for k, v in sorted(group["labels"].items()))
    flags = []
    for name, value in sorted(params.items()):
        if value.lower() not in ("true", "false") or name in _VALUES_EVEN_IF_BOOLEAN:
            flags.append(f"--{name}={value}")
        elif value.lower() == "true":
            flags.append(f"--{name}")
    return " ".join(["ray start", *(["--head"] if node_type == "head" else []), *flags])


def _ray_env(cluster: Object, node_type: str, command: str) -> list[Object]:
    address = "127.0.0.1" if node_type == "head" else host(cluster)
    return [
        *(_head_at(cluster) if node_type == "worker" else ()),
        _field("RAY_CLUSTER_NAME", f"metadata.labels['{CLUSTER}']"),
        _field("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
        _field("RAY_CLOUD_INSTANCE_ID", "metadata.name"),
        _field("RAY_NODE_TYPE_NAME", f"metadata.labels['{GROUP}']"),
        {"name": "KUBERAY_GEN_RAY_START_CMD", "value": command},
        {"name": "RAY_PORT", "value": _GCS_PORT},
        {"name": "RAY_ADDRESS", "value": f"{address}:{_GCS_PORT}"},
        {"name": "RAY_USAGE_STATS_KUBERAY_IN_USE", "value": "1"},
        {"name": "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "value": "1"},
    ]


def _head_at(cluster: Object) -> list[Object]:
    address = host(cluster)
    return [{"name": "FQ_RAY_IP", "value": address}, {"name": "RAY_IP", "value": address.partition(".")[0]}]


def _field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _probes(container: Object, node_type: str) -> None:
    """Those for Ray 2.53 and newer, whose dashboard agent answers for the whole node."""
    get = {"path": "/api/healthz", "port": int(_AGENT_PORT)}
    common = {"httpGet": get, "timeoutSeconds": 5 if node_type == "head" else 2, "periodSeconds": 5}
    container.setdefault("livenessProbe", {**common, "initialDelaySeconds": 30, "failureThreshold": 120})
    container.setdefault("readinessProbe", {**common, "initialDelaySeconds": 10, "failureThreshold": 10})


def _autoscaler(cluster: Object, image: str) -> Object:
    spec = cluster["spec"]
    options = spec.get("autoscalerOptions", {})
    amounts = {"cpu": "500m", "memory": "512Mi"}
    command = "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) --cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
    env = [
        _field("RAY_CLUSTER_NAME", f"metadata.labels['{CLUSTER}']"),
        _field("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
        _field("RAY_HEAD_POD_NAME", "metadata.name"),
        {"name": "KUBERAY_CRD_VER", "value": "v1"},
        *token_env(spec, cluster["metadata"]["name"]),
    ]
    container: Object = {
        "name": AUTOSCALER,
        "image": options.get("image", image),
        "imagePullPolicy": options.get("imagePullPolicy", "IfNotPresent"),
        "command": options.get("command", _SHELL),
        "args": options.get("args", [command]),
        "env": [*env, *deepcopy(options.get("env", []))],
        "resources": options.get("resources", {"requests": amounts, "limits": amounts}),
    }
    return container | {k: deepcopy(options[k]) for k in ("securityContext", "envFrom", "volumeMounts") if k in options}


def _empty_dir(spec: Object, container: Object, name: str, path: str, source: Object) -> None:
    """Mount an emptyDir, unless something is mounted there already."""
    mounts: list[Any] = container.setdefault("volumeMounts", [])
    if any(mount["mountPath"] == path for mount in mounts):
        return
    volumes: list[Any] = spec.setdefault("volumes", [])
    if not any(volume["name"] == name for volume in volumes):
        volumes.append({"name": name, "emptyDir": source})
    mounts.append({"name": name, "mountPath": path})
