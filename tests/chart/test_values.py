"""Values that are wrong are refused before anything is installed, in words that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from camel_ray.api.chart import leaves, readme
from camel_ray.api.values import ChartValues
from rig.helm import CHART, Helm, objects
from rig.process import RigError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 3}, ["replica"]),
        ({"replicas": "three"}, ["/replicas", "want integer"]),
        ({"replicas": -1}, ["/replicas"]),
        ({"image": {"digest": "sha256:abc"}}, ["/image/digest"]),
        ({"image": {"name": "x"}}, ["/image", "name"]),
        ({"watchNamespaces": ["Team_A"]}, ["/watchNamespaces/0"]),
        ({"watchNamespaces": "team-a"}, ["/watchNamespaces", "want array"]),
        ({"progress": {"tls": {"mode": "automatic"}}}, ["/progress/tls/mode", "auto", "secret", "none"]),
        ({"stages": {"imagePullPolicy": "Sometimes"}}, ["/stages/imagePullPolicy"]),
        ({"stages": {"image": ""}}, ["/stages/image"]),
        ({"stages": {"env": [{"name": "A-B", "value": "x"}]}}, ["/stages/env/0/name"]),
        ({"stages": {"tolerations": [{"keys": "a"}]}}, ["/stages/tolerations/0", "keys"]),
        ({"policy": {"secret": ["*"]}}, ["/policy", "secret"]),
        ({"networkPolicy": {"enabled": "yes"}}, ["/networkPolicy/enabled"]),
        ({"operator": {"logLevel": "LOUD"}}, ["/operator/logLevel", "DEBUG"]),
        ({"metrics": {"serviceMonitor": {"interval": "30"}}}, ["/metrics/serviceMonitor/interval"]),
    ],
)
def test_the_schema_names_what_is_wrong(helm: Helm, values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RigError) as refused:
        helm.template(values)
    assert [word for word in ("values don't meet the specifications", *words) if word not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"progress": {"tls": {"mode": "secret"}}}, "mode `secret` needs the name of a Secret"),
        ({"progress": {"tls": {"secretName": "mine"}}}, "'mine' is used with mode `secret` only"),
        ({"serviceAccount": {"create": False}}, "name the service account that exists"),
        ({"watchNamespaces": ["a", "a"]}, "a namespace is named twice"),
        ({"podLabels": {"app.kubernetes.io/component": "x"}}, "is what the Deployment selects its pods by"),
        ({"podLabels": {"app.kubernetes.io/managed-by": "camel-ray"}}, "marks stage pods"),
    ],
)
def test_values_that_contradict_each_other_are_refused(helm: Helm, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RigError, match=sentence):
        helm.template(values)


def test_a_chart_around_this_one_may_have_globals(helm: Helm, tmp_path: Path) -> None:
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts/camel-ray").symlink_to(CHART)
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "platform", "version": "1.0.0"}))
    values = {"global": {"region": "eu"}, "camel-ray": {"replicas": 1}}
    rendered = objects(helm.template(values, chart=tmp_path))
    (deployment,) = (o for (kind, _, _), o in rendered.items() if kind == "Deployment")
    assert deployment["spec"]["replicas"] == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_a_chart_around_this_one_may_switch_it_off(helm: Helm, tmp_path: Path, enabled: bool) -> None:
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts/camel-ray").symlink_to(CHART)
    needs = {"name": "camel-ray", "version": "*", "repository": "", "condition": "camel-ray.enabled"}
    chart = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [needs]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    rendered = objects(helm.template({"camel-ray": {"enabled": enabled}}, chart=tmp_path))
    assert any(kind == "Deployment" for kind, _, _ in rendered) == enabled


def test_the_readme_and_values_yaml_have_every_value() -> None:
    text = (CHART / "README.md").read_text()
    assert text == readme()
    assert [path for path, _ in leaves() if f"| `{path}` |" not in text] == []
    assert set(yaml.safe_load((CHART / "values.yaml").read_text())) == set(ChartValues().wire())
