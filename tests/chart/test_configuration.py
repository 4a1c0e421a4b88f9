"""The operator's configuration in the values: Helm takes what the operator takes, and refuses what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from camel_ray.api.chart import leaves
from camel_ray.api.operator_config import OperatorConfig, load_operator_config
from camel_ray.errors import SpecError
from rig.helm import NAMESPACE, Helm, objects
from rig.process import RigError

SELECTOR = {"matchLabels": {"app": "x"}}


def _stages(**fields: Any) -> dict[str, Any]:
    return {"stages": fields}


def _variable(**fields: Any) -> dict[str, Any]:
    return _stages(env=[fields])


def _peer(**fields: Any) -> dict[str, Any]:
    return {"networkPolicy": {"allowFrom": [fields]}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (_peer(), ["/networkPolicy/allowFrom/0", "minProperties"]),
        (_peer(foo=1), ["/networkPolicy/allowFrom/0", "foo"]),
        (_stages(labels={"ray.io/x": "y"}), ["ray.io/x"]),
        (_stages(labels={"app.kubernetes.io/managed-by": "me"}), ["app.kubernetes.io/managed-by"]),
        (_stages(annotations={"kueue.x-k8s.io/queue-name": "y"}), ["kueue.x-k8s.io/queue-name"]),
        (_stages(annotations={"-bad key": "y"}), ["-bad key"]),
        (_stages(annotations={"x" * 64: "y"}), ["x" * 64]),
        (_variable(name="A"), ["/stages/env/0", "value", "secret"]),
        (_variable(name="A", value="a", secret={"name": "s", "key": "k"}), ["/stages/env/0"]),
        (_variable(name="CAMEL_RAY_STAGE", value="a"), ["/stages/env/0/name"]),
        (_variable(name="KUBEFLOW_TRAINER_X", value="a"), ["/stages/env/0/name"]),
        (_stages(env=[{"name": "A", "value": "a"}, {"name": "A", "value": "b"}]), ["stages.env: 'A' is set twice"]),
    ],
)
def test_what_the_operator_refuses_is_refused_before_the_installation(
    helm: Helm, tmp_path: Path, values: dict[str, Any], words: list[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(values))
    with pytest.raises(SpecError):
        load_operator_config(file)
    with pytest.raises(RigError) as refused:
        helm.template(values)
    assert [word for word in words if word not in str(refused.value)] == []


@pytest.mark.parametrize("peer", [{}, {"foo": 1}])
def test_so_are_peers_of_the_operator_that_are_none(helm: Helm, peer: dict[str, Any]) -> None:
    with pytest.raises(RigError, match="/operatorNetworkPolicy/metricsFrom/0"):
        helm.template({"operatorNetworkPolicy": {"metricsFrom": [peer]}})


ODD = (
    "=",
    "<<",
    "~",
    "null",
    "yes",
    "1e3",
    "0x1",
    "2024-01-01",
    "a: b",
    "- a",
    "#",
    "<b>&\"'\\",
    "two\nlines\n",
    "é€",
)
"""Texts that some reader of YAML takes for something else when they stand without quotes."""


@pytest.mark.parametrize(
    "values",
    [
        _stages(annotations={f"example.com/{number}": text for number, text in enumerate(ODD)}),
        _stages(env=[{"name": f"A{number}", "value": text} for number, text in enumerate(ODD)]),
        _stages(labels={"a": "1", "b": "null", "c": "", "example.com/d": "1e3", "2024": "y"}),
        _stages(
            image="1", rayVersion="2.6", imagePullSecrets=["123"], serviceAccountName="456", nodeSelector={"a": "1"}
        ),
        _stages(tolerations=[{"operator": "Exists"}, {"key": "a", "value": "1", "tolerationSeconds": 1000000}]),
        _variable(name="CAMEL_RAY_CACHE", value=""),
        _variable(name="A", value=None, secret={"name": "1", "key": "2"}),
        {"policy": {"secrets": list(ODD), "tolerationKeys": ["", "*"], "claims": []}},
        _peer(podSelector={}, namespaceSelector=SELECTOR),
        _peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}),
    ],
)
def test_what_helm_takes_the_operator_takes_as_it_was_said(helm: Helm, tmp_path: Path, values: dict[str, Any]) -> None:
    assert _config(helm.template(values), tmp_path) == OperatorConfig.model_validate(values)


def test_a_release_older_than_a_value_counts_as_its_default(helm: Helm, tmp_path: Path) -> None:
    # what --reuse-values brings: the values of an older chart, which knew no `stages.scratch` and no `stages.fixedUser`
    rendered = helm.template({"stages": {"scratch": None, "fixedUser": None, "rayVersion": "2.0.0"}})
    assert _config(rendered, tmp_path) == OperatorConfig.model_validate(_stages(rayVersion="2.0.0"))


PATHS = sorted({".".join(path.split(".")[: n + 1]) for path, _ in leaves() for n in range(path.count(".") + 1)})
"""Every value, and every mapping of values."""
NONE = ("resources", "metrics.dashboard.labels")
"""Mappings with something in them by default, of which `null` means none."""


@pytest.mark.parametrize("path", [path for path in PATHS if path not in NONE])
def test_null_means_the_default_or_is_refused(helm3: Helm, tmp_path: Path, path: str) -> None:
    _check_null(helm3, tmp_path, path)


@pytest.mark.parametrize(
    "path", ["image", "image.tag", "replicas", "watchNamespaces", "podLabels", "stages", "policy", "stages.scratch"]
)
def test_so_it_does_with_each_helm(helm: Helm, tmp_path: Path, path: str) -> None:
    _check_null(helm, tmp_path, path)


def test_null_takes_away_what_a_mapping_has(helm: Helm) -> None:
    rendered = objects(helm.template({"resources": None, "metrics": {"dashboard": {"enabled": True, "labels": None}}}))
    pod = rendered[("Deployment", NAMESPACE, "camel-ray-operator")]["spec"]["template"]["spec"]
    assert "resources" not in pod["containers"][0]
    assert "grafana_dashboard" not in rendered[("ConfigMap", NAMESPACE, "camel-ray-dashboard")]["metadata"]["labels"]


def _check_null(helm: Helm, directory: Path, path: str) -> None:
    *parents, last = path.split(".")
    values: dict[str, Any] = {last: None}
    for part in reversed(parents):
        values = {part: values}
    try:
        text = helm.template(values)
    except RigError as error:
        assert f"at '{''.join(f'/{part}' for part in parents)}': missing property '{last}'" in str(error)
        assert path.split(".")[0] not in OperatorConfig().wire()
    else:
        assert _comparable(text, directory) == _comparable(helm.template(), directory)


def _config(text: str, directory: Path) -> OperatorConfig:
    """The configuration in a rendering, read as the operator reads it."""
    file = directory / "config.yaml"
    file.write_text(objects(text)[("ConfigMap", NAMESPACE, "camel-ray-operator")]["data"]["config.yaml"])
    return load_operator_config(file)


def _comparable(text: str, directory: Path) -> tuple[OperatorConfig, dict[tuple[str, str, str], dict[str, Any]]]:
    """The configuration, and the other objects without its checksum."""
    rendered = objects(text)
    del rendered[("ConfigMap", NAMESPACE, "camel-ray-operator")]
    template = rendered[("Deployment", NAMESPACE, "camel-ray-operator")]["spec"]["template"]
    del template["metadata"]["annotations"]["checksum/config"]
    return _config(text, directory), rendered
