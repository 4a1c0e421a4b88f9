"""All objects of an attempt: total, deterministic, valid for any pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given

from camel_ray.api.pipeline import CamelPipeline
from camel_ray.operator.children import budget_for, children_for, cluster_problems, spec_map_for
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
        assert [child["kind"] for child in first[1:-1]] in ([], ["PodDisruptionBudget"])
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
