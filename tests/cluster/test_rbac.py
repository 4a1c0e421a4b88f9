"""What manifests/install.yaml grants: to users what their roles say, to the operator what it uses, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.operator import ACCOUNT, NAMESPACE, Operator, installation
from rig.pipelines import Pipelines, pipeline

USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
STATUS = "camelpipelines.camel-ray.dev/status"
PIPELINES = "camelpipelines.camel-ray.dev"
Right = tuple[str, str]
"""Verb, and resource with group and subresource."""

# Granted, and not used in a run where nothing unusual happens.
RARE: set[Right] = {
    ("get", "configmaps"),  # to see whose an object is that exists already
    ("get", "networkpolicies.networking.k8s.io"),
    ("get", "rayjobs.ray.io"),
    ("patch", "events.events.k8s.io"),  # a repetition
    ("watch", "workloads.kueue.x-k8s.io"),  # only with Kueue
    ("patch", STATUS),  # what stage pods report
    ("create", "tokenreviews.authentication.k8s.io"),  # who reports it
    ("update", "camelpipelines.camel-ray.dev/finalizers"),  # asked about by an admission plugin, never used
}


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """One of our own, which keeps a log of requests."""
    with ControlPlane(audit=True) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("view", [("get", PIPELINES), ("watch", PIPELINES), ("get", STATUS)], [("create", PIPELINES)]),
        ("edit", [("get", PIPELINES), ("create", PIPELINES), ("patch", PIPELINES)], [("patch", STATUS)]),
        ("admin", [("list", PIPELINES), ("delete", PIPELINES)], [("update", STATUS)]),
    ],
)
def test_users_may_do_with_pipelines_what_they_may_do_with_a_namespace(
    control_plane: ControlPlane, installed: None, namespace: str, role: str, may: list[Right], may_not: list[Right]
) -> None:
    control_plane.kubectl("-n", namespace, "create", "rolebinding", "mine", f"--clusterrole={role}", "--user=me")

    def answer(right: Right) -> str:
        resource, _, part = right[1].partition("/")
        question = ("auth", "can-i", right[0], resource, "--as=me", *([f"--subresource={part}"] if part else []))
        return control_plane.kubectl("-n", namespace, *question, check=False).strip()

    control_plane.wait_for(lambda: answer(may[0]) == "yes", "the role to be put together")
    assert {right: answer(right) for right in (*may, *may_not)} == {
        **dict.fromkeys(may, "yes"),
        **dict.fromkeys(may_not, "no"),
    }


def test_the_operator_uses_every_right_it_has_and_lacks_none(
    control_plane: ControlPlane, operator: Callable[..., Operator], kuberay: KubeRay, namespace: str
) -> None:
    tls = (
        "--progress-tls-secret=camel-ray-operator-tls",
        f"--progress-url=https://camel-ray-operator.{NAMESPACE}.svc:8443",
    )
    replica = operator("operator", *tls)
    control_plane.wait_for(lambda: "rayjobs" in replica.page("/metrics"), "the operator to watch RayJobs")
    pipelines = Pipelines(control_plane, namespace)
    # Pods that stay get a disruption budget; the pipeline is deleted when it is done.
    ray = {"executor": "RayJob", "groups": [{"name": "gpu", "replicas": 2}]}
    pipelines.apply(pipeline("ray", cluster=ray, ttlSecondsAfterFinished=0))
    pipelines.apply(pipeline("job"))
    pipelines.wait_phase("job", "Succeeded")
    kuberay.rule("again-a-1", namespace=namespace, exit_code=20, seconds=0.1)
    pipelines.apply(pipeline("again", retry={"backoffSeconds": 1}))
    assert pipelines.wait_phase("again", "Succeeded")["stages"][0]["attempts"] == 2
    for executor in ("Job", "RayJob"):
        name = f"held-{executor.lower()}"
        kuberay.rule(f"{name}-*", namespace=namespace, seconds=600)
        pipelines.apply(pipeline(name, cluster={"executor": executor}))
        pipelines.wait_stage(name, "a", "Running")
        pipelines.patch_spec(name, suspend=True)
        pipelines.wait_phase(name, "Suspended")
    mine = "camelpipeline.camel-ray.dev/ray"
    gone = lambda: mine not in pipelines.kubectl("get", "camel", "-o", "name").splitlines()  # noqa: E731
    control_plane.wait_for(gone, "the finished pipeline to go")
    assert replica.process.alive

    seen = [event for event in control_plane.audit_log() if event["user"].get("username") == USER]
    assert [event["requestURI"] for event in seen if event["responseStatus"]["code"] == 403] == []
    used = {(event["verb"], _name(event["objectRef"])) for event in seen if "objectRef" in event}
    granted = set(_rights())
    assert used - granted == set()
    assert granted - used - RARE == set()


def _name(reference: dict[str, str]) -> str:
    group, part = reference.get("apiGroup", ""), reference.get("subresource", "")
    return f"{reference['resource']}{'.' * bool(group)}{group}{'/' * bool(part)}{part}"


def _rights() -> Iterator[Right]:
    names = (f"camel-ray-operator:{NAMESPACE}", "camel-ray-operator-own")
    for manifest in installation():
        if manifest["kind"] in ("ClusterRole", "Role") and manifest["metadata"]["name"] in names:
            for rule in manifest["rules"]:
                for verb in rule["verbs"]:
                    for resource in rule["resources"]:
                        plural, _, part = resource.partition("/")
                        (group,) = rule["apiGroups"]
                        yield verb, _name({"resource": plural, "apiGroup": group, "subresource": part})
