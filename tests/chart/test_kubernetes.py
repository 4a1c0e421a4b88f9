"""What Kubernetes makes of the chart: valid in every release, restricted pods, rights and no more than needed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.operator.model import Settings
from camel_ray.operator.problems import cluster_problems
from chart_schemas import LAYOUT, write_schemas
from rig.helm import CHART, NAMESPACE, RELEASES, Helm, objects
from rig.process import find_tools

OTHERS = "CamelPipeline,ServiceMonitor,PrometheusRule"
"""Kinds that are not Kubernetes' own."""


@pytest.fixture(scope="module", params=RELEASES)
def schemas(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(f"kubernetes-{request.param}")
    write_schemas(request.param, directory)
    return directory


def _kubeconform(schemas: Path, text: str) -> tuple[dict[str, Any], int]:
    command = [
        str(find_tools("kubeconform")["kubeconform"]),
        *("-strict", "-summary", "-output=json", f"-skip={OTHERS}", f"-schema-location={schemas}/{LAYOUT}"),
    ]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return json.loads(done.stdout), done.returncode


def test_every_object_is_one_of_the_api(helm3: Helm, everything: dict[str, object], schemas: Path) -> None:
    for values in ({}, {"watchNamespaces": ["team-a"]}, everything):
        text = helm3.template(values)
        report, code = _kubeconform(schemas, text)
        assert (code, report.get("resources", [])) == (0, [])
        skipped = sum(kind in OTHERS.split(",") for kind, _, _ in objects(text))
        assert report["summary"] == {
            "valid": len(objects(text)) - skipped,
            "invalid": 0,
            "errors": 0,
            "skipped": skipped,
        }


def test_a_field_that_the_api_does_not_have_is_noticed(helm3: Helm, schemas: Path) -> None:
    text = helm3.template().replace("terminationGracePeriodSeconds:", "terminationGraceSeconds:")
    report, code = _kubeconform(schemas, text)
    assert code == 1
    assert [found["kind"] for found in report["resources"]] == ["Deployment"]


def test_lint_finds_nothing(helm: Helm, everything: dict[str, object], tmp_path: Path) -> None:
    values = tmp_path / "values.json"
    for given in ({}, everything):
        values.write_text(json.dumps(given))
        said = helm.run("lint", str(CHART), "--strict", f"--values={values}")
        assert re.findall(r"\[(?:WARNING|ERROR)\].*", said) == []


@pytest.mark.parametrize("release", RELEASES)
def test_no_release_of_kubernetes_is_refused(helm: Helm, release: str) -> None:
    assert helm.template(None, f"--kube-version={release}.0")


def test_all_pods_are_restricted(helm: Helm, everything: dict[str, Any]) -> None:
    given: list[dict[str, Any]] = [{}, everything]
    for values in given:
        rendered = objects(helm.template(values))
        pods = [o["spec"]["template"]["spec"] for (kind, _, _), o in rendered.items() if kind == "Deployment"]
        pods += [o["spec"] for (kind, _, _), o in rendered.items() if kind == "Pod"]
        assert len(pods) == 2
        for pod in pods:
            assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
            security = pod["securityContext"]
            assert security["runAsNonRoot"] is True
            ids = {key: value for key, value in security.items() if key not in ("runAsNonRoot", "seccompProfile")}
            fixed = values.get("operator", {}).get("fixedUser", True)
            assert ids == (dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 1000) if fixed else {})
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert all(set(volume) & {"configMap", "emptyDir", "secret"} for volume in pod["volumes"])
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                }
                writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
                assert writable == ["/tmp"]


def _rules(rendered: dict[tuple[str, str, str], dict[str, Any]], *key: str) -> set[tuple[str, ...]]:
    found = set()
    for rule in rendered[(key[0], key[1], key[2])]["rules"]:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                found.add((verb, *rule["apiGroups"], resource, *rule.get("resourceNames", ())))
    return found


def test_with_namespaces_the_operator_has_no_rights_elsewhere(helm: Helm) -> None:
    everywhere = objects(helm.template())
    some = objects(helm.template({"watchNamespaces": ["team-a", "team-b"]}))
    cluster = ("ClusterRole", "", f"camel-ray-operator:{NAMESPACE}")
    review = {("create", "authentication.k8s.io", "tokenreviews")}
    whole = _rules(everywhere, *cluster)
    assert _rules(some, *cluster) == review
    for namespace in ("team-a", "team-b"):
        assert _rules(some, "Role", namespace, "camel-ray-operator") == whole - review
    own = ("Role", NAMESPACE, "camel-ray-operator-own")
    assert _rules(some, *own) == _rules(everywhere, *own)
    assert {
        key for key in everywhere if key[0].startswith(("Role", "Cluster")) and key[1] not in ("", NAMESPACE)
    } == set()


def test_the_operator_gets_nothing_that_leads_to_more(helm: Helm, everything: dict[str, object]) -> None:
    for values in ({}, everything):
        rendered = objects(helm.template(values))
        granted = [
            (kind, namespace, *right)
            for kind, namespace, name in rendered
            if kind in ("Role", "ClusterRole") and "operator" in name
            for right in _rules(rendered, kind, namespace, name)
        ]
        assert granted
        for kind, namespace, verb, group, resource, *names in granted:
            assert "*" not in (verb, group, resource)
            assert verb not in ("bind", "escalate", "impersonate")
            assert group not in ("rbac.authorization.k8s.io", "admissionregistration.k8s.io", "apiextensions.k8s.io")
            assert resource not in ("pods/exec", "pods/attach", "pods/ephemeralcontainers", "serviceaccounts/token")
            assert verb not in ("create", "update", "patch") or resource not in ("pods", "serviceaccounts")
            if resource == "secrets":
                assert (kind, namespace, names) == ("Role", NAMESPACE, ["camel-ray-operator-tls"])


def test_only_stage_pods_and_named_peers_reach_the_operator(helm: Helm) -> None:
    key = ("NetworkPolicy", NAMESPACE, "camel-ray-operator")
    stages = {"matchLabels": {"app.kubernetes.io/managed-by": "camel-ray"}}
    policy = objects(helm.template())[key]["spec"]
    assert policy["ingress"] == [
        {"ports": [{"port": "progress"}], "from": [{"podSelector": stages, "namespaceSelector": {}}]}
    ]
    peer = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
    values = {"watchNamespaces": ["a", "b"], "operatorNetworkPolicy": {"metricsFrom": [peer]}}
    first, second = objects(helm.template(values))[key]["spec"]["ingress"]
    (namespaces,) = first["from"][0]["namespaceSelector"]["matchExpressions"]
    assert namespaces == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    assert second == {"ports": [{"port": "metrics"}], "from": [peer]}


def test_services_and_policies_select_the_operator_and_not_the_test(helm3: Helm) -> None:
    rendered = objects(helm3.template({"test": {"enabled": True}}))
    selectors = [
        rendered[("Service", NAMESPACE, "camel-ray-operator")]["spec"]["selector"],
        rendered[("NetworkPolicy", NAMESPACE, "camel-ray-operator")]["spec"]["podSelector"]["matchLabels"],
        rendered[("PodDisruptionBudget", NAMESPACE, "camel-ray-operator")]["spec"]["selector"]["matchLabels"],
        rendered[("Deployment", NAMESPACE, "camel-ray-operator")]["spec"]["selector"]["matchLabels"],
    ]
    operator = rendered[("Deployment", NAMESPACE, "camel-ray-operator")]["spec"]["template"]["metadata"]["labels"]
    test = rendered[("Pod", NAMESPACE, "camel-ray-test")]["metadata"]["labels"]
    for selector in selectors:
        assert selector.items() <= operator.items()
        assert not selector.items() <= test.items()


def test_the_pipeline_of_helm_test_is_one_that_can_run(helm3: Helm) -> None:
    for values, namespace in (({}, NAMESPACE), ({"watchNamespaces": ["b", "a"]}, "b")):
        rendered = objects(helm3.template(values))
        found = rendered[("CamelPipeline", namespace, "camel-ray-test")]
        pipeline = CamelPipeline.model_validate(found)
        assert pipeline.spec.cluster.executor == "Job"
        assert cluster_problems(pipeline, Settings()) == []
        hooks = [o for key, o in rendered.items() if key[2] == "camel-ray-test"]
        assert {o["metadata"]["annotations"]["helm.sh/hook"] for o in hooks} == {"test"}
        assert {o["kind"] for o in hooks} == {"Pod", "CamelPipeline", "ServiceAccount", "Role", "RoleBinding"}


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["b", "a"], "imagePullSecrets": ["registry"]}])
def test_the_pod_of_helm_test_is_where_its_image_can_be_pulled(helm: Helm, values: dict[str, Any]) -> None:
    rendered = objects(helm.template(values))
    namespace = values.get("watchNamespaces", [NAMESPACE])[0]
    pod = rendered[("Pod", NAMESPACE, "camel-ray-test")]
    assert pod["spec"].get("imagePullSecrets", []) == [{"name": name} for name in values.get("imagePullSecrets", [])]
    command = pod["spec"]["containers"][0]["command"]
    assert command == ["camel-ray", "status", "camel-ray-test", "--namespace", namespace, "--watch"]
    assert ("ServiceAccount", NAMESPACE, pod["spec"]["serviceAccountName"]) in rendered
    binding = rendered[("RoleBinding", namespace, "camel-ray-test")]
    (subject,) = binding["subjects"]
    assert (subject["namespace"], subject["name"]) == (NAMESPACE, pod["spec"]["serviceAccountName"])
    assert ("Role", namespace, binding["roleRef"]["name"]) in rendered


def test_the_pod_of_helm_test_outlives_it_for_its_logs(helm: Helm) -> None:
    # https://github.com/helm/helm/issues/9098: `helm test --logs` reads them after `hook-succeeded` has deleted the pod
    hooks = {key[0]: o for key, o in objects(helm.template()).items() if key[2] == "camel-ray-test"}
    policies = {kind: o["metadata"]["annotations"]["helm.sh/hook-delete-policy"] for kind, o in hooks.items()}
    assert policies.pop("Pod") == "before-hook-creation"
    assert set(policies.values()) == {"before-hook-creation,hook-succeeded"}
