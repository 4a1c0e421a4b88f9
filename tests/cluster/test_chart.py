"""The chart on a real API server: installed, upgraded and removed by Helm 3 and 4.

There is no kubelet, so its pods are admitted and never run; tests/e2e runs them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rig.control_plane import ControlPlane
from rig.helm import CHART, NAMESPACE, RELEASE, VERSIONS, Helm
from rig.process import RigError

FROZEN = sorted((Path(__file__).parents[1] / "golden/chart/released").glob("camel-ray-*.tgz"))
"""Charts as they were released (`helm package`), from which users upgrade. Before the first release there is none."""
OLDER = "older"
"""A chart made of today's: an older version, whose CRD lacks a field."""
CRD = "camelpipelines.camel-ray.dev"
TLS = f"/api/v1/namespaces/{NAMESPACE}/secrets/camel-ray-operator-tls"
PIPELINE = {
    "apiVersion": "camel-ray.dev/v1alpha1",
    "kind": "CamelPipeline",
    "metadata": {"name": "mine", "namespace": "team-a"},
    "spec": {"storage": "s3://bucket/runs", "stages": [{"name": "text", "data": {"source": "s3://bucket/rows.jsonl"}}]},
}


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """One of our own: a release has names that the manifests have, too."""
    with ControlPlane() as cluster:
        namespaces = {NAMESPACE: {"pod-security.kubernetes.io/enforce": "restricted"}, "team-a": {}, "team-b": {}}
        for name, labels in namespaces.items():
            cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
            cluster.wait_service_account(name)
        yield cluster


@pytest.fixture(params=VERSIONS)
def helm(request: pytest.FixtureRequest, control_plane: ControlPlane, tmp_path: Path) -> Iterator[Helm]:
    """Each version of Helm, at the control plane; its release is gone afterwards."""
    found = Helm(request.param, tmp_path, kubeconfig=control_plane.kubeconfig())
    yield found
    if RELEASE in found.run("list", "--short", f"--namespace={NAMESPACE}"):
        found.run("uninstall", RELEASE, f"--namespace={NAMESPACE}")


def _put(helm: Helm, command: str, values: dict[str, Any], chart: Path = CHART) -> str:
    arguments = (command, RELEASE, str(chart), f"--namespace={NAMESPACE}", "--values=-")
    return helm.run(*arguments, input=json.dumps(values))


def _older(directory: Path) -> Path:
    chart = directory / "older"
    shutil.copytree(CHART, chart)
    (chart / "Chart.yaml").write_text((CHART / "Chart.yaml").read_text().replace("version: 0.1.0", "version: 0.0.9"))
    file = chart / "files/crd.yaml"
    old = yaml.load(file.read_text(), yaml.CSafeLoader)
    del _fields(old)["ttlSecondsAfterFinished"]
    # as the generator writes it: the template puts its labels behind the name
    file.write_text(yaml.safe_dump(old, sort_keys=False))
    return chart


def _fields(crd: dict[str, Any]) -> dict[str, Any]:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    fields: dict[str, Any] = schema["properties"]["spec"]["properties"]
    return fields


def _crd(control_plane: ControlPlane) -> dict[str, Any]:
    return control_plane.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}")


@pytest.mark.parametrize("previous", [OLDER, *FROZEN], ids=lambda p: p if isinstance(p, str) else p.stem)
def test_an_upgrade_keeps_what_users_and_the_operator_made(
    helm: Helm, control_plane: ControlPlane, tmp_path: Path, previous: str | Path
) -> None:
    _put(helm, "install", {}, _older(tmp_path) if previous == OLDER else Path(previous))
    established = ("wait", "--for=condition=Established", "--timeout=30s", f"crd/{CRD}")
    # again and again: kubectl fails at once while the CRD has no conditions
    control_plane.wait_for(lambda: control_plane.kubectl(*established), "the CRD")
    before = _crd(control_plane)
    assert ("ttlSecondsAfterFinished" in _fields(before)) == (previous != OLDER)
    control_plane.wait_for(lambda: control_plane.kubectl("apply", "-f", "-", input=json.dumps(PIPELINE)), "the CRD")
    secret = control_plane.request("GET", TLS)
    control_plane.request("PUT", TLS, {**secret, "data": {"tls.crt": "YQ==", "ca.key": "Yg=="}})

    _put(helm, "upgrade", {"replicas": 3, "stages": {"image": "registry.example.com/trainer:2"}})
    after = _crd(control_plane)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert "ttlSecondsAfterFinished" in _fields(after)
    assert control_plane.request("GET", TLS)["data"] == {"tls.crt": "YQ==", "ca.key": "Yg=="}
    assert control_plane.kubectl("-n", "team-a", "get", "camel", "-o", "name") == "camelpipeline.camel-ray.dev/mine\n"
    deployment = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/camel-ray-operator"
    assert control_plane.request("GET", deployment)["spec"]["replicas"] == 3
    config = control_plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/camel-ray-operator")
    assert yaml.safe_load(config["data"]["config.yaml"])["stages"]["image"] == "registry.example.com/trainer:2"

    helm.run("uninstall", RELEASE, f"--namespace={NAMESPACE}")
    assert _crd(control_plane)["metadata"]["uid"] == before["metadata"]["uid"]
    assert control_plane.kubectl("-n", "team-a", "get", "camel", "-o", "name") == "camelpipeline.camel-ray.dev/mine\n"
    left = control_plane.kubectl(
        *("get", "deploy,svc,cm,secret,sa,role,rolebinding,pdb,networkpolicy,clusterrole,clusterrolebinding", "-A"),
        *("--selector=app.kubernetes.io/instance=camel-ray", "-o", "name"),
    )
    assert left == ""
    _put(helm, "install", {})  # takes the CRD up again
    assert _crd(control_plane)["metadata"]["uid"] == before["metadata"]["uid"]


def test_pods_of_the_operator_are_admitted_where_pods_must_be_restricted(
    helm: Helm, control_plane: ControlPlane
) -> None:
    _put(helm, "install", {})
    selector = "--selector=app.kubernetes.io/component=operator"
    get = ("-n", NAMESPACE, "get", "pods", selector, "-o", "name")
    control_plane.wait_for(lambda: len(control_plane.kubectl(*get).split()) == 2, "two pods of the operator")


def test_what_is_missing_is_told_after_the_installation(helm: Helm, control_plane: ControlPlane) -> None:
    # the version of Helm and the control plane are real, so is what they tell each other about kinds and namespaces
    told = _put(helm, "install", {"replicas": 0})
    assert "MISSING: KubeRay. Only pipelines with `spec.cluster.executor: Job` run." in told
    assert "MISSING: Kueue. Pipelines with `spec.cluster.queue` wait for ever" in told
    assert "camel-ray submit -w -f jobs/pipelines/laptop-job.yaml" in told
    assert "MISSING: an operator. `replicas` is 0" in told
    assert "MISSING: the resource CamelPipeline" not in told
    control_plane.apply_crds(*sorted((Path(__file__).parents[1] / "kuberay_standin/crds").glob("*.yaml")))
    try:
        found = ("api-resources", "--api-group=ray.io", "--output=name")
        control_plane.wait_for(lambda: "rayjobs" in control_plane.kubectl(*found), "the kinds to be listed")
        told = _put(helm, "upgrade", {"replicas": 2})
        assert ("MISSING: KubeRay" in told, "MISSING: an operator" in told) == (False, False)
    finally:
        control_plane.kubectl("delete", "crd", "rayjobs.ray.io", "rayclusters.ray.io")


def test_with_namespaces_the_operator_may_work_in_these_alone(helm: Helm, control_plane: ControlPlane) -> None:
    _put(helm, "install", {"watchNamespaces": ["team-a"]})
    account = f"--as=system:serviceaccount:{NAMESPACE}:camel-ray"

    def may(verb: str, resource: str, namespace: str) -> bool:
        question = ("auth", "can-i", verb, resource, f"--namespace={namespace}", account)
        return control_plane.kubectl(*question, check=False).strip() == "yes"

    assert control_plane.wait_for(lambda: may("create", "jobs.batch", "team-a"), "the rights")
    assert not may("create", "jobs.batch", "team-b")
    assert not may("list", "camelpipelines.camel-ray.dev", NAMESPACE)
    assert not may("get", "secrets", "team-a")
    assert may("get", "secrets/camel-ray-operator-tls", NAMESPACE)
    assert not may("get", "secrets/another", NAMESPACE)
    assert may("create", "tokenreviews.authentication.k8s.io", NAMESPACE)


def test_who_may_read_no_namespaces_can_install_it(helm: Helm, control_plane: ControlPlane) -> None:
    for namespace in (NAMESPACE, "team-a"):
        role = ("create", "rolebinding", "tenant", "--clusterrole=admin", "--user=tenant", f"--namespace={namespace}")
        control_plane.kubectl(*role)
    off = {"crds": {"enabled": False}, "rbac": {"create": False, "aggregate": False}, "watchNamespaces": ["team-a"]}
    arguments = ("install", RELEASE, str(CHART), f"--namespace={NAMESPACE}", "--values=-", "--kube-as-user=tenant")
    try:
        told = helm.run(*arguments, input=json.dumps(off))
    finally:
        for namespace in (NAMESPACE, "team-a"):
            control_plane.kubectl("delete", "rolebinding", "tenant", f"--namespace={namespace}")
    assert "serves CamelPipelines of team-a." in told
    assert f"camel-ray what the chart would grant:\n    helm template {RELEASE} CHART -n {NAMESPACE}" in told
    printed = ("template", RELEASE, str(CHART), "-n", NAMESPACE, "--values=-", "--set", "rbac.create=true")
    granted = helm.run(*printed, "-s", "templates/rbac/*.yaml", input=json.dumps(off))
    kinds = sorted(document["kind"] for document in yaml.safe_load_all(granted) if document)
    assert kinds == ["ClusterRole", "ClusterRoleBinding", "Role", "Role", "RoleBinding", "RoleBinding"]


def test_releases_of_one_name_in_two_namespaces_leave_each_other_alone(helm: Helm, control_plane: ControlPlane) -> None:
    _put(helm, "install", {"watchNamespaces": ["team-a"]})
    other = ("install", RELEASE, str(CHART), "--namespace=team-b", "--values=-")
    values = {"watchNamespaces": ["team-b"], "crds": {"enabled": False}, "rbac": {"aggregate": False}}
    helm.run(*other, input=json.dumps(values))
    try:
        for namespace in (NAMESPACE, "team-b"):
            name = f"camel-ray-operator:{namespace}"
            path = f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}"
            binding = control_plane.request("GET", path)
            assert [subject["namespace"] for subject in binding["subjects"]] == [namespace]
            assert binding["roleRef"]["name"] == name
    finally:
        helm.run("uninstall", RELEASE, "--namespace=team-b")


def test_values_kept_from_an_older_release_do(helm: Helm, control_plane: ControlPlane, tmp_path: Path) -> None:
    chart = tmp_path / "older"
    shutil.copytree(CHART, chart)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    del values["stages"]["scratch"], values["stages"]["fixedUser"]
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    _put(helm, "install", {"replicas": 1}, chart)
    helm.run("upgrade", RELEASE, str(CHART), f"--namespace={NAMESPACE}", "--reuse-values")
    deployment = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/camel-ray-operator"
    assert control_plane.request("GET", deployment)["spec"]["replicas"] == 1


def test_a_resource_of_somebody_else_is_not_taken(helm: Helm, control_plane: ControlPlane) -> None:
    _put(helm, "install", {})
    arguments = ("install", "ml", str(CHART), "--namespace=team-b")
    with pytest.raises(RigError, match=r"camelpipelines\.camel-ray\.dev"):
        helm.run(*arguments)
    helm.run(*arguments, "--set=crds.enabled=false")
    helm.run("uninstall", "ml", "--namespace=team-b")


@pytest.mark.parametrize("overlay", [False, True], ids=["install.yaml", "namespaced"])
def test_kubectl_alone_installs_the_operator_with_the_rights_it_says(overlay: bool) -> None:
    folder = Path(__file__).parents[2] / "manifests"
    commands = [("-f", f"{folder}/crd.yaml"), ("-k", f"{folder}/overlays/namespaced")]
    with ControlPlane() as cluster:
        cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": "team-a"}})
        for arguments in commands if overlay else [("-f", f"{folder}/install.yaml")]:
            cluster.kubectl("apply", "--server-side", *arguments)
        get = ("-n", NAMESPACE, "get", "pods", "-l=app.kubernetes.io/component=operator", "-o=name")
        cluster.wait_for(lambda: len(cluster.kubectl(*get).split()) == 2, "two pods, admitted by `restricted`")
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}")
        cluster.wait_for(lambda: cluster.kubectl("apply", "-f", "-", input=json.dumps(PIPELINE)), "a pipeline")
        question = ("auth", "can-i", "create", "jobs.batch", f"--as=system:serviceaccount:{NAMESPACE}:camel-ray")

        def may(namespace: str) -> bool:
            return cluster.kubectl(*question, f"--namespace={namespace}", check=False).strip() == "yes"

        assert cluster.wait_for(lambda: may("team-a"), "the rights")
        assert may("default") is not overlay
