"""All objects of an attempt: total, deterministic, valid for any pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given

from camel_ray.api.operator_config import NetworkPolicySpec, OperatorConfig
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.operator.children import (
    budget_for,
    children_for,
    cluster_problems,
    network_policy_for,
    spec_map_for,
)
from camel_ray.operator.model import Settings
from operator_specs import UID, attempt, pipeline, pipelines, templates

LABEL = re.compile(r"(([a-z0-9.-]{1,253}/)?[A-Za-z0-9][-._A-Za-z0-9]{0,62})")
VALUE = re.compile(r"([A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")


def values(of: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(of, dict):
        for key, inner in of.items():
            yield from values(inner, f"{path}.{key}")
    elif isinstance(of, list):
        for inner in of:
            yield from values(inner, f"{path}[]")
    else:
        yield path, of


@given(pipelines())
def test_any_valid_pipeline_gives_the_same_objects_each_time_and_the_work_comes_last(of: CamelPipeline) -> None:
    for index in range(len(of.spec.stages)):
        first, second = children_for(attempt(of, stage=index)), children_for(attempt(of, stage=index))
        assert json.dumps(first) == json.dumps(second)
        assert first[0]["kind"] == "ConfigMap"
        assert first[-1]["kind"] == of.spec.cluster.executor
        guards = [child["kind"] for child in first[1:-1]]
        assert guards in (["NetworkPolicy"], ["NetworkPolicy", "PodDisruptionBudget"])
        assert isinstance(cluster_problems(of, Settings()), list)


@given(pipelines())
def test_names_and_labels_of_any_pipeline_are_valid(of: CamelPipeline) -> None:
    for child in children_for(attempt(of, number=12)):
        name = child["metadata"]["name"]
        assert len(name) <= 51
        if child["kind"] == "RayJob":
            assert len(name) <= 47
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        labelled = [child["metadata"]]
        if child["kind"] in ("RayJob", "Job"):
            labelled += [pod["metadata"] for _, pod in templates(child)]
        for metadata in labelled:
            assert all(LABEL.fullmatch(key) and VALUE.fullmatch(value) for key, value in metadata["labels"].items())


@given(pipelines())
def test_nothing_is_written_that_the_api_server_would_drop(of: CamelPipeline) -> None:
    kept = ("automountServiceAccountToken", "allowPrivilegeEscalation")
    for child in children_for(attempt(of)):
        for path, value in values(child):
            assert value is not None, path
            assert value != "" or ".data." in path, path
            assert value is not False or path.endswith(kept), path


def test_no_text_of_the_user_gets_into_what_kuberay_pastes_into_a_shell() -> None:
    of = pipeline(
        {"env": [{"name": "A", "value": "`id`; $(id)"}], "annotations": {"a": "$(id)"}}, storage="s3://b/$(id)"
    )
    spec = children_for(attempt(of))[-1]["spec"]
    assert spec["entrypoint"] == "python -m camel_ray.runtime.attempt"
    assert not {"runtimeEnvYAML", "metadata", "jobId", "entrypointResources"} & set(spec)


def test_the_spec_map_is_immutable_and_shared_by_the_attempts_of_a_version() -> None:
    of = pipeline()
    first, second = spec_map_for(attempt(of)), spec_map_for(attempt(of, number=2))
    assert first == second
    assert first["immutable"] is True
    assert first["metadata"]["ownerReferences"][0]["uid"] == UID
    assert re.fullmatch(r"demo-[0-9a-f]{10}", first["metadata"]["name"])
    assert "camel-ray.dev/attempt" not in first["metadata"]["labels"]


@pytest.mark.parametrize(
    ("cluster", "available"),
    [
        ({}, None),
        ({"groups": [{"name": "gpu", "replicas": 3}]}, 3),
        ({"groups": [{"name": "gpu", "replicas": 0}]}, None),
        (
            {
                "groups": [{"name": "a", "minReplicas": 2, "maxReplicas": 9}, {"name": "b"}],
                "autoscaling": {"enabled": True},
            },
            3,
        ),
        ({"groups": [{"name": "gpu", "replicas": 3}], "executor": "Job"}, None),
    ],
)
def test_a_budget_lets_one_of_the_fixed_pods_go_at_a_time(cluster: dict[str, Any], available: int | None) -> None:
    budget = budget_for(attempt(pipeline(cluster)))
    assert (budget and budget["spec"]["minAvailable"]) == available
    if budget is not None:
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert budget["spec"]["selector"]["matchLabels"]["camel-ray.dev/attempt"] == "1"


MINE = {"app.kubernetes.io/managed-by": "camel-ray", "camel-ray.dev/pipeline": "demo"}
PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


def network(**spec: Any) -> Settings:
    return Settings(config=OperatorConfig(network_policy=NetworkPolicySpec(**spec)))


def test_only_the_pipeline_itself_and_whom_the_administrator_names_reach_the_pods_of_a_job() -> None:
    policy = network_policy_for(attempt(pipeline({"executor": "Job"}), settings=network(allow_from=[PROMETHEUS])))
    assert policy is not None
    assert re.fullmatch(r"demo-[0-9a-f]{10}", policy["metadata"]["name"])
    assert policy["metadata"]["ownerReferences"][0]["uid"] == UID
    assert policy["spec"] == {
        "podSelector": {"matchLabels": MINE},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": MINE}}, PROMETHEUS]}],
    }


def test_kuberays_operator_reaches_the_dashboard_from_any_namespace_and_nothing_else() -> None:
    policy = network_policy_for(attempt(pipeline()))
    assert policy is not None
    others, kuberay = policy["spec"]["ingress"]
    assert others == {"from": [{"podSelector": {"matchLabels": MINE}}]}
    assert kuberay["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert [peer["podSelector"]["matchLabels"] for peer in kuberay["from"]] == [
        {"app.kubernetes.io/name": "kuberay-operator"},
        {"app.kubernetes.io/component": "kuberay-operator"},
    ]
    assert all(peer["namespaceSelector"] == {} for peer in kuberay["from"])


@given(pipelines())
def test_the_network_policy_selects_all_pods_of_the_pipeline_and_lets_them_reach_each_other(of: CamelPipeline) -> None:
    _, guard, *_, manifest = children_for(attempt(of))
    policy = guard["spec"]
    selected = policy["podSelector"]["matchLabels"].items()
    let_in = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items()
    for _, pod in templates(manifest):
        assert selected <= pod["metadata"]["labels"].items()
        assert let_in <= pod["metadata"]["labels"].items()


def test_network_policies_can_be_left_to_others() -> None:
    assert network_policy_for(attempt(pipeline(), settings=network(enabled=False))) is None


def test_attempts_share_the_network_policy_and_another_content_has_another_name() -> None:
    job = pipeline({"executor": "Job"})
    first, again, other = (
        network_policy_for(a)
        for a in (attempt(job), attempt(job, number=2), attempt(job, settings=network(allow_from=[PROMETHEUS])))
    )
    assert first and other
    assert first == again
    assert first["metadata"]["name"] != other["metadata"]["name"]
