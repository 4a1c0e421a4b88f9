"""What the operator builds, judged by a real apiserver: known fields, Pod Security `restricted`, stored as written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from camel_ray.operator.children import children_for
from camel_ray.operator.kinds import CHILDREN
from camel_ray.operator.quantity import canonical
from operator_specs import attempt, pipeline, templates
from rig.control_plane import ControlPlane

FULL: dict[str, Any] = {
    "autoscaling": {"enabled": True},
    "env": [{"name": "EMPTY", "value": ""}, {"name": "PRICE", "value": "$(USD)"}],
    "envFromSecrets": ["s3"],
    "volumes": [
        {"mountPath": "/data", "claim": "datasets", "readOnly": True},
        {"mountPath": "/keys", "secret": "keys"},
        {"mountPath": "/conf", "configMap": "conf"},
        {"mountPath": "/scratch", "memory": "1024Mi"},
    ],
    "labels": {"team": "a"},
    "annotations": {"note": "b c"},
    "imagePullSecrets": ["pull"],
    "head": {
        "resources": {"limits": {"cpu": "1.5", "memory": "8Gi"}},
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "batch", "operator": "Exists", "effect": "NoSchedule"}],
    },
    "groups": [
        {"name": "gpu", "minReplicas": 0, "maxReplicas": 4, "gpus": 8, "resources": {"limits": {"cpu": "8000m"}}},
        {"name": "cpu", "replicas": 2},
    ],
}
CLUSTERS: dict[str, dict[str, Any]] = {
    "small": {},
    "full": FULL,
    "job": {**FULL, "executor": "Job"},
    "queued": {**FULL, "queue": "team-a"},
}


@pytest.fixture
def restricted(control_plane: ControlPlane, namespace: str) -> str:
    """A namespace that refuses pods below Pod Security `restricted`."""
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return namespace


def created(control_plane: ControlPlane, path: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What would be stored. Raises RigError if the apiserver refuses it, or does not know a field."""
    return control_plane.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", manifest)


def differences(written: Any, stored: Any, path: str = "") -> Iterator[str]:
    """Where what is stored is not what was written; what the apiserver adds is no difference."""
    if isinstance(written, dict) and isinstance(stored, dict):
        for key, value in written.items():
            yield from differences(value, stored.get(key), f"{path}.{key}")
    elif isinstance(written, list) and isinstance(stored, list) and len(written) == len(stored):
        for one, other in zip(written, stored, strict=True):
            yield from differences(one, other, f"{path}[]")
    elif written != stored:
        yield f"{path}: {written!r} is stored as {stored!r}"


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_is_let_in_by_pod_security_restricted(
    control_plane: ControlPlane, restricted: str, name: str
) -> None:
    manifest = children_for(attempt(pipeline(CLUSTERS[name])))[-1]
    for where, template in templates(manifest):
        spec = dict(template["spec"])
        options = manifest["spec"].get("rayClusterSpec", {}).get("autoscalerOptions")
        if where == "head" and options is not None:
            copied = {key: options[key] for key in ("env", "resources", "securityContext", "volumeMounts")}
            spec["containers"] = [*spec["containers"], {"name": "autoscaler", "image": "autoscaler", **copied}]
        pod = {"metadata": {**template["metadata"], "name": where}, "spec": spec}
        created(control_plane, f"/api/v1/namespaces/{restricted}/pods", pod)


@pytest.mark.parametrize("name", CLUSTERS)
def test_objects_are_stored_as_they_were_written(control_plane: ControlPlane, namespace: str, name: str) -> None:
    for child in children_for(attempt(pipeline(CLUSTERS[name]))):
        if child["kind"] == "RayJob":
            continue  # KubeRay's: its schema is no part of this control plane
        child["metadata"]["namespace"] = namespace
        stored = created(control_plane, CHILDREN[child["kind"]].path(namespace), child)
        assert list(differences(child, stored)) == []


def test_quantities_have_the_form_in_which_they_are_stored(control_plane: ControlPlane, namespace: str) -> None:
    numbers = ("1", "1000", "1500", "1.5", "0.5", "1024", "1536", "0", "4000000", "0.0001", "+2", "1e3", "123456789")
    units = ("", "m", "k", "M", "G", "Ki", "Mi", "Gi")
    written = [f"{n}{u}" for n in numbers for u in units if not (u and "e" in n)]
    volumes = [{"name": f"v{i}", "emptyDir": {"sizeLimit": text}} for i, text in enumerate(written)]
    pod = {"metadata": {"name": "sizes"}, "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": volumes}}
    stored = created(control_plane, f"/api/v1/namespaces/{namespace}/pods", pod)["spec"]["volumes"]
    sizes = {
        text: volume["emptyDir"]["sizeLimit"] for text, volume in zip(written, stored[: len(written)], strict=True)
    }
    assert {text: canonical(text) for text in written} == sizes


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ([], "failed with exit code 11 matching FailJob rule at index 1"),
        (
            [{"type": "DisruptionTarget", "status": "True"}],
            "has condition DisruptionTarget matching FailJob rule",
        ),
    ],
    ids=["exit code", "disruption"],
)
def test_the_condition_of_a_failed_job_names_the_cause(
    control_plane: ControlPlane, namespace: str, conditions: list[dict[str, str]], words: str
) -> None:
    job = children_for(attempt(pipeline({"executor": "Job"})))[-1]
    del job["metadata"]["ownerReferences"]  # of a pipeline that is not there: it would be collected
    job["metadata"]["namespace"] = namespace
    path, pods = CHILDREN["Job"].path(namespace), f"/api/v1/namespaces/{namespace}/pods"
    control_plane.request("POST", path, job)
    pod = control_plane.wait_for(lambda: control_plane.request("GET", pods)["items"], "the Job's pod")[0]
    ended = {"name": "stage", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
    ended["state"] = {"terminated": {"exitCode": 11, "reason": "Error"}}
    del pod["metadata"]["resourceVersion"]  # the scheduler writes to it too
    pod["status"] = {"phase": "Failed", "conditions": conditions, "containerStatuses": [ended]}
    control_plane.request("PUT", f"{pods}/{pod['metadata']['name']}/status", pod)

    def failure() -> dict[str, Any] | None:
        status = control_plane.request("GET", f"{path}/{job['metadata']['name']}").get("status", {})
        return next((c for c in status.get("conditions", ()) if c["type"] == "Failed"), None)

    condition = control_plane.wait_for(failure, "the Job to fail")
    assert condition["reason"] == "PodFailurePolicy"
    assert words in condition["message"]
