"""A user who may create pipelines and nothing else gets nothing else by them: asked of a real apiserver.

The namespaces enforce no Pod Security except where a test says so, so what keeps a pod small here is the operator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane, RequestError
from rig.operator import Operator, forget_leader, start_operator
from rig.pipelines import Object, Pipelines, pipeline
from rig.process import RigError

USER = "mallory"
CONFIG = """
stages:
  labels: {cost: ml}
  env: [{name: PLACE, value: here}]
policy:
  claims: [team-*]
"""
MADE = ("jobs", "rayjobs", "pods", "configmaps", "networkpolicies", "poddisruptionbudgets")
APIS = {
    "jobs": "apis/batch/v1",
    "rayjobs": "apis/ray.io/v1",
    "networkpolicies": "apis/networking.k8s.io/v1",
    "poddisruptionbudgets": "apis/policy/v1",
}


@pytest.fixture(scope="module", autouse=True)
def replica(
    control_plane: ControlPlane, installed: None, kuberay: KubeRay, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    forget_leader(control_plane)
    file = tmp_path_factory.mktemp("operator") / "config.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    replica = start_operator(control_plane, "security", f"--config={file}")
    yield replica
    replica.end_well()


@pytest.fixture
def pipelines(control_plane: ControlPlane, namespace: str) -> Pipelines:
    """Those of a user who may do what he wants with pipelines, and nothing else."""
    kubectl = ("-n", namespace, "create")
    control_plane.kubectl(*kubectl, "role", USER, "--verb=*", "--resource=camelpipelines.camel-ray.dev")
    control_plane.kubectl(*kubectl, "rolebinding", USER, f"--role={USER}", f"--user={USER}")
    return Pipelines(control_plane, namespace)


def apply(pipelines: Pipelines, manifest: Object) -> str:
    """`kubectl apply` by the user."""
    return pipelines.kubectl("apply", f"--as={USER}", "-f", "-", input=json.dumps(manifest))


def made(pipelines: Pipelines, name: str) -> dict[str, list[str]]:
    """Names of all that exists for a pipeline."""
    found = {}
    for resource in MADE:
        path = f"/{APIS.get(resource, 'api/v1')}/namespaces/{pipelines.namespace}/{resource}"
        items = pipelines.plane.request("GET", f"{path}?labelSelector=camel-ray.dev/pipeline={name}")["items"]
        found |= {resource: [item["metadata"]["name"] for item in items]} if items else {}
    return found


def test_the_user_of_these_tests_has_no_other_rights(pipelines: Pipelines) -> None:
    def may(verb: str, resource: str) -> str:
        question = ("auth", "can-i", verb, resource, f"--as={USER}", "-n", pipelines.namespace)
        return pipelines.plane.kubectl(*question, check=False).strip()

    pipelines.wait(lambda: may("create", "camelpipelines") == "yes", "the role to be in force")
    others = ("pods", "jobs.batch", "rayjobs.ray.io", "secrets", "configmaps", "networkpolicies")
    assert {resource: may("create", resource) for resource in others} == dict.fromkeys(others, "no")


TOLERATE: dict[str, Any] = {"operator": "Exists"}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "account": ({"serviceAccountName": "admin"}, "serviceAccountName: 'admin' is not allowed here: policy.serviceAc"),
    "system": ({"priorityClassName": "system-node-critical"}, "priorityClassName: 'system-node-critical' is not allo"),
    "master": (
        {"head": {"tolerations": [{**TOLERATE, "key": "node-role.kubernetes.io/control-plane"}]}},
        "head.tolerations[0].key: 'node-role.kubernetes.io/control-plane' is not allowed here: policy.tolerationKeys",
    ),
    "any-node": (
        {"executor": "RayJob", "groups": [{"name": "g", "tolerations": [TOLERATE]}]},
        "groups[0].tolerations[0].key: is missing, which accepts every taint and is not allowed here",
    ),
    "apparmor": (
        {"annotations": {"container.apparmor.security.beta.kubernetes.io/stage": "unconfined"}},
        "annotations: 'container.apparmor.security.beta.kubernetes.io/stage' is not allowed here: policy.annotationK",
    ),
    "sidecar": (
        {"annotations": {"sidecar.istio.io/userVolume": '[{"name":"h","hostPath":{"path":"/"}}]'}},
        "annotations: 'sidecar.istio.io/userVolume' is not allowed here: policy.annotationKeys",
    ),
    "cloud-role": (
        {"annotations": {"iam.amazonaws.com/role": "admin"}},
        "annotations: 'iam.amazonaws.com/role' is not allowed here: policy.annotationKeys",
    ),
    "kuberay": (
        {"labels": {"app.kubernetes.io/name": "kuberay-operator"}},
        "labels: 'app.kubernetes.io/name: kuberay-operator' marks pods of KubeRay's operator",
    ),
    "claim": (
        {"volumes": [{"mountPath": "/data", "claim": "payroll"}]},
        "volumes[0].claim: 'payroll' is not allowed here: policy.claims of the operator's configuration has team-*;",
    ),
}


def test_what_the_policy_forbids_fails_with_its_sentence_and_makes_nothing(pipelines: Pipelines) -> None:
    for name, (cluster, _) in HOSTILE.items():
        apply(pipelines, pipeline(name, cluster=cluster))
    said = {name: pipelines.wait_phase(name, "Failed")["message"] for name in HOSTILE}
    expected = {name: f"spec.cluster.{sentence}" for name, (_, sentence) in HOSTILE.items()}
    assert {name: expected[name] for name in HOSTILE if expected[name] not in said[name]} == {}, said
    assert {name: made(pipelines, name) for name in HOSTILE} == {name: {} for name in HOSTILE}
    assert {pipelines.status(name)["attempts"] for name in HOSTILE} == {0}


def test_a_pipeline_that_asks_for_less_runs_after_all(pipelines: Pipelines, kuberay: KubeRay) -> None:
    apply(pipelines, pipeline("mended", cluster={"serviceAccountName": "admin"}))
    pipelines.wait_phase("mended", "Failed")
    apply(pipelines, pipeline("mended", cluster={"serviceAccountName": "default"}))
    assert pipelines.wait_phase("mended", "Succeeded")["attempts"] == 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "impersonate": ({"labels": {"camel-ray.dev/pipeline": "other"}}, "camel-ray.dev/pipeline"),
    "adopt": ({"labels": {"ray.io/cluster": "other"}}, "ray.io/cluster"),
    "manage": ({"labels": {"app.kubernetes.io/managed-by": "Helm"}}, "app.kubernetes.io/managed-by"),
    "admit": ({"annotations": {"kueue.x-k8s.io/queue-name": "free"}}, "kueue.x-k8s.io/queue-name"),
    "task": ({"env": [{"name": "CAMEL_RAY_STAGE", "value": "b"}]}, "CAMEL_RAY_STAGE"),
    "reports": ({"env": [{"name": "KUBEFLOW_TRAINER_SERVER_URL", "value": "http://x"}]}, "KUBEFLOW_TRAINER_SERVER_URL"),
    "spec": ({"volumes": [{"mountPath": "/etc/camel-ray", "configMap": "x"}]}, "/etc/camel-ray"),
    "token": ({"volumes": [{"mountPath": "/var/run/secrets", "secret": "x"}]}, "/var/run/secrets"),
    "proc": ({"volumes": [{"mountPath": "/proc/sys", "memory": "1Mi"}]}, "/proc"),
    "job": ({"labels": {"batch.kubernetes.io/job-name": "other"}}, "batch.kubernetes.io/job-name"),
    "up": ({"volumes": [{"mountPath": "/data/../etc", "claim": "team-x"}]}, "mountPath"),
    "shell": ({"groups": [{"name": "$(id)"}]}, "groups[0].name"),
    "secret-name": ({"envFromSecrets": ["../other/secret"]}, "envFromSecrets"),
    "effect": ({"head": {"tolerations": [{"key": "a", "operator": "Everything"}]}}, "operator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_may_ask_for_is_refused_at_the_door(pipelines: Pipelines, name: str) -> None:
    cluster, word = REFUSED[name]
    with pytest.raises(RequestError) as refused:
        post(pipelines, pipeline("refused", cluster=cluster))
    assert refused.value.status == 422
    assert word in str(refused.value)


UNKNOWN: dict[str, dict[str, Any]] = {
    "host network": {"hostNetwork": True},
    "pod security": {"head": {"securityContext": {"runAsUser": 0}}},
    "privileged": {"groups": [{"name": "g", "securityContext": {"privileged": True}}]},
    "template": {"head": {"template": {"spec": {"hostPID": True}}}},
    "toleration": {"head": {"tolerations": [{"key": "gpu", "operator": "Exists", "extra": {"hostPID": True}}]}},
    "host path": {"volumes": [{"mountPath": "/host", "memory": "1Mi", "hostPath": {"path": "/"}}]},
    "field of an env": {
        "env": [{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    },
    "init containers": {"initContainers": [{"name": "i", "image": "i"}]},
    "command": {"command": ["sh"]},
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_fields_of_pods_that_pipelines_do_not_have_are_dropped_or_refused(pipelines: Pipelines, what: str) -> None:
    manifest = pipeline("unknown", cluster={**UNKNOWN[what], "executor": "RayJob"})
    with pytest.raises(RigError, match="unknown field"):
        apply(pipelines, manifest)
    stored = json.dumps(post(pipelines, manifest)["spec"]["cluster"])
    words = ("host", "securityContext", "template", "extra", "valueFrom", "initContainers", "command")
    assert [word for word in words if word in stored.replace('"mountPath": "/host"', "")] == []


def post(pipelines: Pipelines, manifest: Object) -> Object:
    """What would be stored by a client that lets unknown fields go."""
    path = f"/apis/camel-ray.dev/v1alpha1/namespaces/{pipelines.namespace}/camelpipelines"
    return pipelines.plane.request("POST", f"{path}?dryRun=All&fieldValidation=Ignore", manifest)


def test_a_pipeline_with_all_it_may_ask_for_runs_where_pod_security_restricted_is_enforced(
    pipelines: Pipelines, kuberay: KubeRay
) -> None:
    pipelines.plane.kubectl("label", "ns", pipelines.namespace, "pod-security.kubernetes.io/enforce=restricted")
    more = {
        "labels": {"app.kubernetes.io/part-of": "demo"},
        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
        "env": [{"name": "A", "value": "$(PLACE)"}],
        "volumes": [{"mountPath": "/scratch", "memory": "64Mi"}],
    }
    groups = [{"name": "g", "minReplicas": 1, "maxReplicas": 2}]
    ray = {**more, "executor": "RayJob", "groups": groups, "autoscaling": {"enabled": True}}
    apply(pipelines, pipeline("job", cluster=more))
    apply(pipelines, pipeline("ray", cluster=ray))
    pods: dict[str, Object] = {}
    for name in ("job", "ray"):
        pipelines.wait(lambda name=name: pods.update(_by_name(pipelines, name)) or pods, f"pods of {name}")
        pipelines.wait_phase(name, "Succeeded")
    for pod in pods.values():
        assert pod["metadata"]["labels"]["cost"] == "ml"
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert not any(volume.get("hostPath") for volume in pod["spec"]["volumes"])


def _by_name(pipelines: Pipelines, name: str) -> dict[str, Object]:
    return {pod["metadata"]["name"]: pod for pod in pipelines.list("pods", name)}


def test_a_network_policy_stands_before_the_first_pod(pipelines: Pipelines, kuberay: KubeRay) -> None:
    kuberay.rule("guarded-*", namespace=pipelines.namespace, seconds=600)
    apply(pipelines, pipeline("guarded"))
    pipelines.wait_stage("guarded", "a", "Running")
    path = f"/apis/networking.k8s.io/v1/namespaces/{pipelines.namespace}/networkpolicies"
    (policy,) = pipelines.plane.request("GET", path)["items"]
    (pod,) = pipelines.list("pods", "guarded")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert policy["metadata"]["creationTimestamp"] <= pod["metadata"]["creationTimestamp"]


def test_the_name_of_a_pipeline_gives_no_hold_on_what_others_have_made(pipelines: Pipelines) -> None:
    path = f"/apis/policy/v1/namespaces/{pipelines.namespace}/poddisruptionbudgets"
    theirs = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "deny-all-1"},
        "spec": {"selector": {"matchLabels": {"app": "theirs"}}, "minAvailable": 1},
    }
    before = pipelines.plane.request("POST", path, theirs)
    stage = {"name": "all", "group": "more", "data": {"source": "/data/rows.jsonl"}}
    cluster = {"executor": "RayJob", "groups": [{"name": "more", "replicas": 1}]}
    apply(pipelines, pipeline("deny", stage, cluster=cluster))
    pipelines.wait(
        lambda: pipelines.stage("deny", "all").get("current", {}).get("name") == "deny-all-2", "another name"
    )
    told = "stage 'all': the name deny-all-1 belongs to somebody else; attempt 2 is deny-all-2"
    pipelines.wait(lambda: ("NameTaken", told) in pipelines.events("deny"), "the user to be told")
    pipelines.kubectl("annotate", f"--as={USER}", "camel", "deny", "camel-ray.dev/request=cancel - 1")
    pipelines.wait_phase("deny", "Cancelled")
    pipelines.kubectl("delete", f"--as={USER}", "camel", "deny")
    after = pipelines.plane.request("GET", f"{path}/deny-all-1")
    assert (after["metadata"]["uid"], after["spec"]) == (before["metadata"]["uid"], before["spec"])
