"""What the chart renders: golden files, each value by its effect, the same with Helm 3 and 4."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from camel_ray.api.chart import leaves
from camel_ray.api.crd import crd
from camel_ray.api.operator_config import OperatorConfig, load_operator_config
from camel_ray.api.values import ChartValues
from camel_ray.operator.main import arguments
from camel_ray.version import __version__
from rig.helm import CHART, NAMESPACE, Helm, objects

GOLDEN = Path(__file__).parents[1] / "golden/chart"
CASES: dict[str, dict[str, Any] | None] = {
    "default": {},
    "namespaced": {"watchNamespaces": ["team-a"]},
    "everything": None,
}

# Another value than in everything.yaml for each; mappings set several at once where one alone would be refused.
OTHERS: dict[str, Any] = {
    "nameOverride": "other",
    "image.repository": "other/operator",
    "image.tag": "2",
    "image.digest": f"sha256:{'0' * 64}",
    "image.pullPolicy": "Never",
    "imagePullSecrets": [],
    "replicas": 1,
    "watchNamespaces": [],
    "crds.enabled": False,
    "crds.keep": False,
    "serviceAccount.create": False,
    "serviceAccount.name": "other",
    "serviceAccount.annotations": {},
    "rbac.create": False,
    "rbac.aggregate": False,
    "operator.workers": 1,
    "operator.stopSeconds": 1,
    "operator.silentSeconds": 1,
    "operator.fixedUser": True,
    "operator.logFormat": "json",
    "operator.logLevel": "ERROR",
    "resources": {"requests": {"cpu": "1"}, "limits": {}},
    "nodeSelector": {"pool": "other"},
    "tolerations": [],
    "affinity": {"podAffinity": {}},
    "topologySpread.topologyKey": "kubernetes.io/hostname",
    "topologySpread.whenUnsatisfiable": "ScheduleAnyway",
    "priorityClassName": "",
    "podLabels": {"team": "other"},
    "podAnnotations": {"example.com/owner": "other"},
    "podDisruptionBudget.enabled": False,
    "progress.tls.mode": {"progress.tls.mode": "none", "progress.tls.secretName": ""},
    "progress.tls.secretName": "other",
    "operatorNetworkPolicy.enabled": False,
    "operatorNetworkPolicy.metricsFrom": [],
    "metrics.serviceMonitor.enabled": False,
    "metrics.serviceMonitor.interval": "1m",
    "metrics.serviceMonitor.labels": {"release": "other"},
    "metrics.prometheusRule.enabled": False,
    "metrics.prometheusRule.labels": {"release": "other"},
    "metrics.dashboard.enabled": False,
    "metrics.dashboard.labels": {"grafana_dashboard": "2"},
    "test.enabled": False,
    "stages.image": "other",
    "stages.imagePullPolicy": "Never",
    "stages.rayVersion": "2.0.0",
    "stages.imagePullSecrets": [],
    "stages.serviceAccountName": "",
    "stages.priorityClassName": "",
    "stages.nodeSelector": {"pool": "other"},
    "stages.tolerations": [],
    "stages.labels": {"team": "other"},
    "stages.annotations": {"example.com/cost-centre": "8"},
    "stages.env": [],
    "stages.envFromSecrets": [],
    "stages.fixedUser": True,
    "stages.scratch.storageClassName": "",
    "stages.scratch.size": "1Ti",
    "policy.serviceAccounts": [],
    "policy.secrets": [],
    "policy.configMaps": [],
    "policy.claims": [],
    "policy.priorityClasses": [],
    "policy.nodeSelectorKeys": [],
    "policy.tolerationKeys": [],
    "policy.labelKeys": [],
    "policy.annotationKeys": [],
    "networkPolicy.enabled": False,
    "networkPolicy.allowFrom": [],
}


def with_value(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a tree of values with another one at a dotted path."""
    tree = copy.deepcopy(dict(values))
    *parents, last = path.split(".")
    level = tree
    for part in parents:
        level = level.setdefault(part, {})
    level[last] = value
    return tree


@pytest.mark.parametrize("case", CASES)
def test_the_rendering_is_the_reviewed_one(helm: Helm, everything: dict[str, object], case: str) -> None:
    values = CASES[case]
    rendered = objects(helm.template(everything if values is None else values))
    del rendered[("CustomResourceDefinition", "", "camelpipelines.camel-ray.dev")]  # a test of its own
    rendered.pop(("ConfigMap", NAMESPACE, "camel-ray-dashboard"), None)
    text = yaml.safe_dump_all([rendered[key] for key in sorted(rendered)], sort_keys=True, width=160)
    file = GOLDEN / f"{case}.yaml"
    if os.environ.get("CAMEL_RAY_WRITE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), "CAMEL_RAY_WRITE_GOLDEN=1 writes it again, to be reviewed"


def test_every_value_is_tried() -> None:
    assert set(OTHERS) == {path for path, _ in leaves()}


@pytest.mark.parametrize("path", OTHERS)
def test_every_value_has_an_effect(
    helm3: Helm, everything: dict[str, object], path: str, everything_rendered: str
) -> None:
    value = OTHERS[path]
    changes = value if isinstance(value, dict) and path in value else {path: value}
    values = dict(everything)
    for key, other in changes.items():
        values = with_value(values, key, other)
    assert _without_checksum(helm3.template(values)) != everything_rendered


@pytest.fixture(scope="module")
def everything_rendered(helm3: Helm, everything: dict[str, object]) -> str:
    return _without_checksum(helm3.template(everything))


def _without_checksum(rendered: str) -> str:
    return re.sub(r"checksum/config: \w+", "", rendered)


def test_values_yaml_holds_the_defaults_of_the_models(helm: Helm) -> None:
    written = yaml.safe_load((CHART / "values.yaml").read_text())
    assert ChartValues.model_validate(written) == ChartValues()
    assert objects(helm.template()) == objects(helm.template(ChartValues().wire()))


def test_the_crd_of_the_chart_is_that_of_the_models(helm: Helm) -> None:
    key = ("CustomResourceDefinition", "", "camelpipelines.camel-ray.dev")
    rendered = objects(helm.template())[key]
    assert rendered["spec"] == crd()["spec"]
    assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in objects(helm.template({"crds": {"keep": False}}))[key]["metadata"]
    assert key not in objects(helm.template({"crds": {"enabled": False}}))


@pytest.mark.parametrize("case", CASES)
def test_the_operator_reads_what_the_chart_writes(
    helm: Helm, everything: dict[str, Any], tmp_path: Path, case: str
) -> None:
    values = everything if CASES[case] is None else CASES[case] or {}
    rendered = objects(helm.template(values))
    file = tmp_path / "config.yaml"
    file.write_text(rendered[("ConfigMap", NAMESPACE, "camel-ray-operator")]["data"]["config.yaml"])
    known = set(OperatorConfig().wire())
    wanted = OperatorConfig.model_validate({key: value for key, value in values.items() if key in known})
    assert load_operator_config(file) == wanted

    container = _operator(rendered)["spec"]["template"]["spec"]["containers"][0]
    options = arguments([str(argument) for argument in container["args"]])
    assert options.watch_namespace == values.get("watchNamespaces", [])
    assert str(options.config) == "/etc/camel-ray/config.yaml"
    own = rendered[("Role", NAMESPACE, "camel-ray-operator-own")]
    leases = [
        rule["resourceNames"] for rule in own["rules"] if "update" in rule["verbs"] and "leases" in rule["resources"]
    ]
    assert leases == [[options.lease_name]] == [["camel-ray-operator"]]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": options.metrics_port, "progress": options.progress_port}


@pytest.mark.parametrize(
    ("tls", "scheme", "options"),
    [
        ({"mode": "auto"}, "https", {"progress_tls_secret": "camel-ray-operator-tls"}),
        (
            {"mode": "secret", "secretName": "mine"},
            "https",
            {"progress_tls_secret": "", "progress_ca": Path("/etc/camel-ray-tls/ca.crt")},
        ),
        ({"mode": "none"}, "http", {"progress_tls_secret": "", "progress_certificate": None}),
    ],
)
def test_each_way_to_certificates(helm: Helm, tls: dict[str, str], scheme: str, options: dict[str, object]) -> None:
    rendered = objects(helm.template({"progress": {"tls": tls}}))
    pod = _operator(rendered)["spec"]["template"]["spec"]
    given = vars(arguments([str(argument) for argument in pod["containers"][0]["args"]]))
    assert given["progress_url"] == f"{scheme}://camel-ray-operator.{NAMESPACE}.svc:8443"
    assert {key: given[key] for key in options} == options
    secret = rendered.get(("Secret", NAMESPACE, "camel-ray-operator-tls"))
    assert (secret is not None) == (tls["mode"] == "auto")
    # what the operator writes there stays over upgrades only because the chart says nothing of it
    assert secret is None or not {"data", "stringData", "immutable"} & set(secret)
    role = rendered[("Role", NAMESPACE, "camel-ray-operator-own")]
    secrets = [rule for rule in role["rules"] if "secrets" in rule["resources"]]
    assert [rule.get("resourceNames") for rule in secrets] == [["camel-ray-operator-tls"]] * (tls["mode"] == "auto")
    mounted = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    assert mounted == ["mine"] * (tls["mode"] == "secret")


def test_another_configuration_restarts_the_operator(helm: Helm) -> None:
    def checksum(values: dict[str, Any]) -> str:
        metadata = _operator(objects(helm.template(values)))["spec"]["template"]["metadata"]
        return str(metadata["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"replicas": 3})
    assert checksum({}) != checksum({"stages": {"image": "other"}})


@pytest.mark.parametrize(
    ("release", "name"),
    [("camel-ray", "camel-ray"), ("my-camel-ray", "my-camel-ray"), ("ml", "ml-camel-ray"), ("x" * 53, "x" * 40)],
)
def test_names_start_with_the_release(helm3: Helm, release: str, name: str) -> None:
    rendered = objects(helm3.template({"watchNamespaces": ["team-a"]}, release=release))
    del rendered[("CustomResourceDefinition", "", "camelpipelines.camel-ray.dev")]
    assert {key for key in rendered if not key[2].startswith(name)} == set()
    assert max(len(key[2]) for key in rendered if not key[0].startswith("Cluster")) <= 63


def test_two_releases_in_one_namespace_have_leases_of_their_own(helm: Helm) -> None:
    def lease(release: str) -> str:
        container = _operator(objects(helm.template(release=release)))["spec"]["template"]["spec"]["containers"][0]
        return str(arguments([str(argument) for argument in container["args"]]).lease_name)

    assert (lease("one"), lease("other")) == ("one-camel-ray-operator", "other-camel-ray-operator")


def test_large_numbers_are_written_in_full(helm: Helm) -> None:
    values = {"operator": {"workers": 1000000, "stopSeconds": 10000000, "silentSeconds": 2000000}}
    container = _operator(objects(helm.template(values)))["spec"]["template"]["spec"]["containers"][0]
    options = arguments([str(argument) for argument in container["args"]])
    assert (options.workers, options.stop_seconds, options.silent_seconds) == (1000000, 10000000, 2000000)


def test_a_single_replica_has_no_disruption_budget(helm3: Helm) -> None:
    def has_budget(replicas: int) -> bool:
        return any(kind == "PodDisruptionBudget" for kind, _, _ in objects(helm3.template({"replicas": replicas})))

    assert (has_budget(1), has_budget(2)) == (False, True)  # its budget would hold up every drain


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def _operator(rendered: Mapping[tuple[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    return next(o for (kind, _, _), o in rendered.items() if kind == "Deployment")
