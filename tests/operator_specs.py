"""Pipelines for the tests of the operator's manifests, and a judge of pods that knows Pod Security `restricted`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from camel_ray.api.operator_config import OperatorConfig, StageDefaults
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.operator.model import Attempt, Settings

UID = "6b1c3c0e-5a52-4f0a-9a1e-0d5d4c3b2a19"
CONFIG = OperatorConfig(stages=StageDefaults(image="registry.example.com/camel-ray:1"))
SETTINGS = Settings(config=CONFIG, progress_url="https://camel-ray.ops:8443", progress_ca="PEM\n")
DATA: dict[str, Any] = {"source": "hf://x/y"}
PRETRAIN: dict[str, Any] = {"data": DATA, "model": "example/gpt2", "batchSize": 5040, "microBatchSize": 1}
PPO: dict[str, Any] = {"model": "example/gpt2", "prompts": DATA, "reward": {"model": "reward/model"}}


def pipeline(cluster: dict[str, Any] | None = None, *stages: dict[str, Any], **spec: Any) -> CamelPipeline:
    """A valid pipeline; its default stage is called `base`."""
    given = list(stages) or [{"name": "base", "data": DATA}]
    document = {
        "metadata": {"name": "demo"},
        "spec": {"storage": "s3://bucket/team", "cluster": cluster or {}, "stages": given, **spec},
    }
    return CamelPipeline.model_validate(document)


def attempt(
    of: CamelPipeline, *, stage: int = 0, number: int = 1, settings: Settings = SETTINGS, **more: Any
) -> Attempt:
    """An attempt of a stage, by its index."""
    return Attempt(of, "team-a", UID, of.spec.stages[stage], number, settings, **more)


def templates(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pod templates of a RayJob or Job, each with a word for it."""
    spec = manifest["spec"]
    if manifest["kind"] == "Job":
        yield "job", spec["template"]
        return
    yield "submitter", spec["submitterPodTemplate"]
    yield "head", spec["rayClusterSpec"]["headGroupSpec"]["template"]
    for group in spec["rayClusterSpec"].get("workerGroupSpecs", ()):
        yield group["groupName"], group["template"]


def environment(container: dict[str, Any]) -> dict[str, str | None]:
    """Plain values of a container's variables as its process sees them; None for those of secrets."""
    given = container.get("env", ())
    return {v["name"]: None if "valueFrom" in v else _expanded(v.get("value", "")) for v in given}


def _expanded(value: str) -> str:
    """What the kubelet makes of a value where no variable of a reference exists: `$$` is `$`, all else stays."""
    out, at = "", 0
    while at < len(value):
        if value[at : at + 2] == "$$":
            at += 1
        elif value[at : at + 2] == "$(" and ")" in value[at:]:
            raise AssertionError(f"{value!r} holds a reference that Kubernetes would replace")
        out += value[at]
        at += 1
    return out


def against_restricted(pod: dict[str, Any]) -> list[str]:
    """What keeps a pod spec from passing Pod Security `restricted` (https://kubernetes.io/docs/concepts/security/)."""
    found = [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    sources = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in pod.get("volumes", ()):
        found += [f"volume {volume['name']}: {kind}" for kind in set(volume) - {"name"} - sources]
    security = pod.get("securityContext", {})
    if security.get("sysctls") or security.get("seLinuxOptions"):
        found.append("sysctls or seLinuxOptions")
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        found += [f"{container['name']}: {what}" for what in _container_faults(container, security)]
    return found


def _container_faults(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("privileged") or own.get("procMount", "Default") != "Default":
        yield "privileged or procMount"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if not own.get("runAsNonRoot", pod.get("runAsNonRoot", False)):
        yield "runAsNonRoot"
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield "runAsUser 0"
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "hostPort"


_names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?", fullmatch=True)
_stage_names = st.from_regex(r"[a-z]([-a-z0-9]{0,18}[a-z0-9])?", fullmatch=True)
_quantities = st.sampled_from(
    ["1", "500m", "1000m", "1.5", "0.5Gi", "16Gi", "1024Mi", "4000000k", "1e3", "64G", "100Ki"]
)
_resources = st.fixed_dictionaries(
    {},
    optional={
        kind: st.dictionaries(st.sampled_from(["cpu", "memory", "ephemeral-storage"]), _quantities)
        for kind in ("requests", "limits")
    },
)
_machine: dict[str, st.SearchStrategy[Any]] = {
    "resources": _resources,
    "nodeSelector": st.dictionaries(st.sampled_from(["gpu", "zone"]), _names),
    "tolerations": st.lists(st.fixed_dictionaries({"key": _names, "operator": st.just("Exists")}), max_size=2),
}
_size = st.one_of(
    st.just({}),
    st.integers(0, 5).map(lambda n: {"replicas": n}),
    st.tuples(st.integers(0, 3), st.integers(3, 9)).map(lambda p: {"minReplicas": p[0], "maxReplicas": p[1]}),
    st.integers(0, 3).map(lambda n: {"minReplicas": n}),
)
_values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.text("$()A", max_size=8)
_sources = st.sampled_from(
    [
        {"claim": "data"},
        {"secret": "keys"},
        {"configMap": "conf"},
        {"memory": "1024Mi"},
        {"claim": "ro", "readOnly": True},
    ]
)


@st.composite
def clusters(draw: st.DrawFn) -> dict[str, Any]:
    """Any `spec.cluster` the schema takes."""
    groups = [
        {
            "name": name,
            **draw(_size),
            **draw(st.fixed_dictionaries({}, optional={**_machine, "gpus": st.integers(0, 8)})),
        }
        for name in draw(st.lists(_names, unique=True, max_size=3))
    ]
    variables = draw(st.lists(st.sampled_from(["A", "HF_HOME", "HOME", "RAY_TRAIN_X"]), unique=True))
    env = [
        {
            "name": name,
            **draw(st.one_of(_values.map(lambda v: {"value": v}), st.just({"secret": {"name": "s", "key": "k"}}))),
        }
        for name in variables
    ]
    sources = draw(st.lists(_sources, max_size=2))
    small = {
        "executor": st.sampled_from(["RayJob", "Job"]),
        "image": st.just("registry.example.com/own:2"),
        "rayVersion": st.just("2.60.0"),
        "serviceAccountName": st.just("trainer"),
        "imagePullSecrets": st.just(["pull"]),
        "priorityClassName": st.just("high"),
        "queue": st.just("team-a"),
        "envFromSecrets": st.just(["storage"]),
        "labels": st.just({"team": "a"}),
        "annotations": st.just({"note": "b c"}),
        "autoscaling": st.fixed_dictionaries({"enabled": st.booleans()}),
        "drainTimeoutSeconds": st.integers(0, 10**6),
        "startTimeoutSeconds": st.integers(1, 2**40),
        "head": st.fixed_dictionaries({}, optional=_machine),
    }
    return {
        **draw(st.fixed_dictionaries({}, optional=small)),
        "groups": groups,
        "env": env,
        "volumes": [{"mountPath": f"/data/{n}", **source} for n, source in enumerate(sources)],
    }


@st.composite
def pipelines(draw: st.DrawFn) -> CamelPipeline:
    """Any pipeline of up to three stages, as far as the manifests depend on it."""
    cluster = draw(clusters())
    groups = [group["name"] for group in cluster["groups"]]
    some_group = st.none() if not groups else st.none() | st.sampled_from(groups)
    stages = []
    for name in draw(st.lists(_stage_names, unique=True, min_size=1, max_size=3)):
        stage: dict[str, Any] = {"name": name, "group": draw(some_group), "timeoutSeconds": draw(st.integers(1, 2**40))}
        match draw(st.sampled_from(["data", "pretrain", "ppo"])):
            case "data":
                stage["data"] = DATA
            case "pretrain":
                stage["pretrain"] = PRETRAIN
                stage["workers"] = draw(st.integers(1, 3) | st.just({"min": 1, "max": 4}))
            case _:
                roles = {role: {"group": draw(some_group)} for role in ("actor", "critic", "reward", "rollout")}
                placement = draw(st.sampled_from(["colocated", "split"]))
                stage["ppo"] = {**PPO, "placement": placement, "roles": roles}
                stage["ppo"]["valueClip"] = draw(st.none() | st.just(0.3))
        stages.append(stage)
    name = draw(st.from_regex(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True))
    document = {"metadata": {"name": name}, "spec": {"storage": "s3://b/t", "cluster": cluster, "stages": stages}}
    return CamelPipeline.model_validate(document)
