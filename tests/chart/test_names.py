"""Names and keys that somebody else chooses: digits stay text, dots and collisions do no harm."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from rig.helm import NAMESPACE, Helm, objects
from rig.process import RigError

DIGITS: dict[str, Any] = {
    "watchNamespaces": ["2024"],
    "imagePullSecrets": ["123"],
    "priorityClassName": "456",
    "serviceAccount": {"name": "789"},
    "progress": {"tls": {"mode": "secret", "secretName": "12"}},
    "image": {"repository": "34", "tag": "5"},
    "topologySpread": {"topologyKey": "67"},
    "podLabels": {"year": "2024"},
    "podAnnotations": {"year": "2024"},
    "nodeSelector": {"zone": "1"},
    "metrics": {
        part: {"enabled": True, "labels": {"year": "2024"}}
        for part in ("serviceMonitor", "prometheusRule", "dashboard")
    },
}


def _texts(value: Any) -> set[str]:
    """All texts in a tree, keys and values."""
    if isinstance(value, dict):
        return {text for item in value.items() for part in item for text in _texts(part)}
    if isinstance(value, list):
        return {text for item in value for text in _texts(item)}
    return {value} if isinstance(value, str) else set()


def _numbers(value: Any) -> set[float]:
    """All numbers in a tree."""
    if isinstance(value, dict | list):
        return {n for item in (value.values() if isinstance(value, dict) else value) for n in _numbers(item)}
    return {value} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def test_names_of_digits_stay_names(helm: Helm) -> None:
    rendered = objects(helm.template(DIGITS, "--namespace=2023", release="my-camel-ray"))
    assert {namespace for _, namespace, _ in rendered} == {"", "2023", "2024"}
    del rendered[("CustomResourceDefinition", "", "camelpipelines.camel-ray.dev")]
    dashboard = rendered.pop(("ConfigMap", "2023", "my-camel-ray-dashboard"))
    assert dashboard["metadata"]["labels"]["year"] == "2024"
    found = list(rendered.values())
    assert {"2023", "2024", "123", "456", "789", "12", "34:5", "67", "1"} <= _texts(found)
    assert {2023, 2024, 123, 456, 789, 12, 67} & _numbers(found) == set()


@pytest.mark.parametrize("release", ["true-camel-ray", "1e3-camel-ray"])
def test_a_word_that_yaml_knows_may_be_a_name(helm: Helm, release: str) -> None:
    rendered = objects(helm.template({"nameOverride": "true"}, release=release))
    assert ("ServiceAccount", NAMESPACE, "true") in rendered
    operator = rendered[("Deployment", NAMESPACE, "true-operator")]
    assert operator["metadata"]["labels"]["app.kubernetes.io/instance"] == release


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("a.b", "a-b-camel-ray"),
        ("camel-ray.eu", "camel-ray-eu"),
        ("aaaaaaaaaabbbbbbbbbbccccccccccddddddddd.ee", "aaaaaaaaaabbbbbbbbbbccccccccccddddddddd"),
        ("aaaaaaaaaabbbbbbbbbbccccccccccdddddddd--ee", "aaaaaaaaaabbbbbbbbbbccccccccccdddddddd"),
    ],
)
def test_every_name_of_a_release_makes_names_that_kubernetes_takes(helm: Helm, release: str, name: str) -> None:
    rendered = objects(helm.template({"watchNamespaces": ["a"]}, release=release))
    assert ("Service", NAMESPACE, f"{name}-operator") in rendered
    names = {key[2] for key in rendered if not key[0].startswith(("Cluster", "Custom"))}
    assert {n for n in names if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", n)} == set()


def test_a_release_that_starts_with_a_digit_needs_another_name(helm: Helm) -> None:
    with pytest.raises(
        RigError, match=r"nameOverride: .* Service starts with a letter, and that of this release makes .123-camel-ray"
    ):
        helm.template(release="123")
    rendered = objects(helm.template({"nameOverride": "ml"}, release="123"))
    service = rendered[("Service", NAMESPACE, "ml-operator")]
    assert service["spec"]["selector"]["app.kubernetes.io/instance"] == "123"


def test_releases_of_one_name_share_no_object_of_the_cluster(helm: Helm) -> None:
    values = {"crds": {"enabled": False}, "rbac": {"aggregate": False}}
    one, other = (set(objects(helm.template(values, f"--namespace={name}"))) for name in ("one", "other"))
    assert {kind for kind, namespace, _ in one if not namespace} == {"ClusterRole", "ClusterRoleBinding"}
    assert one & other == set()


def test_the_binding_grants_the_role_of_its_own_release(helm: Helm) -> None:
    rendered = objects(helm.template({}, "--namespace=one"))
    binding = rendered[("ClusterRoleBinding", "", "camel-ray-operator:one")]
    assert ("ClusterRole", "", binding["roleRef"]["name"]) in rendered
    assert [subject["namespace"] for subject in binding["subjects"]] == ["one"]


def test_a_key_of_ours_is_written_once_and_as_we_have_it(helm: Helm) -> None:
    labels = {"app.kubernetes.io/instance": "theirs", "app.kubernetes.io/version": "theirs", "mine": "kept"}
    text = helm.template(
        {
            "podAnnotations": {"checksum/config": "theirs", "mine": "kept"},
            "podLabels": {"helm.sh/chart": "theirs"},
            "metrics": {
                part: {"enabled": True, "labels": labels} for part in ("serviceMonitor", "prometheusRule", "dashboard")
            },
        }
    )
    assert _twice(text) == []
    rendered = objects(text)
    template = rendered[("Deployment", NAMESPACE, "camel-ray-operator")]["spec"]["template"]["metadata"]
    assert re.fullmatch(r"[0-9a-f]{64}", template["annotations"].pop("checksum/config"))
    assert template["annotations"] == {"mine": "kept"}
    assert template["labels"]["helm.sh/chart"] == "theirs"
    for key in (
        ("ServiceMonitor", NAMESPACE, "camel-ray-operator"),
        ("PrometheusRule", NAMESPACE, "camel-ray-operator"),
        ("ConfigMap", NAMESPACE, "camel-ray-dashboard"),
    ):
        found = rendered[key]["metadata"]["labels"]
        assert (found["app.kubernetes.io/instance"], found["mine"]) == ("camel-ray", "kept")
        assert found["app.kubernetes.io/version"] != "theirs"


def _twice(text: str) -> list[str]:
    """Keys that a mapping of the text has twice: the reader of `objects` takes the last one in silence."""
    found: list[str] = []
    nodes: list[yaml.Node] = [node for node in yaml.compose_all(text, yaml.CSafeLoader) if node is not None]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            found += [key for key in keys if keys.count(key) > 1]
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return found
