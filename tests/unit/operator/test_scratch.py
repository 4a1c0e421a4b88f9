"""The claim on which the pods of a Ray cluster share their mirror of object storage: who gets one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from camel_ray.api.operator_config import OperatorConfig, ScratchSpec, StageDefaults
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.operator.children import children_for, cluster_problems, scratch_for
from camel_ray.operator.model import Settings
from operator_specs import UID, attempt, environment, pipeline, pipelines, templates

GROUPS: dict[str, Any] = {"groups": [{"name": "gpu", "replicas": 2}]}
CACHE = {"name": "CAMEL_RAY_CACHE", "value": "/data/cache"}


def settings(**more: Any) -> Settings:
    scratch = ScratchSpec(storage_class_name="efs", size="1024Mi")
    return Settings(config=OperatorConfig(stages=StageDefaults(scratch=scratch, **more)))


def test_head_and_workers_share_one_claim_of_the_pipeline() -> None:
    of = pipeline(GROUPS)
    claim = scratch_for(attempt(of, settings=settings()))
    assert claim is not None
    assert claim["metadata"]["name"] == "demo-scratch"
    assert claim["metadata"]["ownerReferences"][0]["uid"] == UID
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "efs",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    assert scratch_for(attempt(of, number=2, settings=settings())) == claim
    children = children_for(attempt(of, settings=settings()))
    assert [c["kind"] for c in children] == [
        "ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget", "RayJob",
    ]  # fmt: skip
    seen = {}
    for where, template in templates(children[-1]):
        container = template["spec"]["containers"][0]
        claims = {
            v["name"]: v["persistentVolumeClaim"]["claimName"]
            for v in template["spec"]["volumes"]
            if "persistentVolumeClaim" in v
        }
        paths = [m["mountPath"] for m in container["volumeMounts"] if m["name"] in claims]
        seen[where] = (list(claims.values()), paths, environment(container).get("CAMEL_RAY_CACHE"))
    shared = (["demo-scratch"], ["/var/cache/camel-ray"], "/var/cache/camel-ray")
    assert seen == {"submitter": ([], [], None), "head": shared, "gpu": shared}


@pytest.mark.parametrize(
    ("cluster", "storage", "of_all"),
    [
        ({}, "s3://b/t", {}),  # one pod does it all
        ({**GROUPS, "executor": "Job"}, "s3://b/t", {}),
        ({**GROUPS, "volumes": [{"mountPath": "/data", "claim": "data"}]}, "/data/runs", {}),
        ({**GROUPS, "volumes": [{"mountPath": "/data", "claim": "data"}], "env": [CACHE]}, "s3://b/t", {}),
        ({**GROUPS, "volumes": [{"mountPath": "/data", "claim": "data"}]}, "s3://b/t", {"env": [CACHE]}),
    ],
    ids=["no group", "Job", "a path", "a mirror of its own", "the administrator's mirror"],
)
def test_who_needs_none_or_brings_one_gets_none(cluster: dict[str, Any], storage: str, of_all: dict[str, Any]) -> None:
    of, given = pipeline(cluster, storage=storage), settings(**of_all)
    assert scratch_for(attempt(of, settings=given)) is None
    pods = [template["spec"] for _, template in templates(children_for(attempt(of, settings=given))[-1])]
    assert not [v for pod in pods for v in pod["volumes"] if v["name"] == "scratch"]
    assert cluster_problems(of, given) == []


def test_without_a_storage_class_it_is_refused_only_by_who_knows_the_configuration() -> None:
    of = pipeline(GROUPS)
    (sentence,) = cluster_problems(of, Settings())
    assert "stages.scratch of the operator's configuration" in sentence
    assert cluster_problems(of, settings()) == []
    assert cluster_problems(of, None) == []  # `camel-ray submit` cannot know


@given(pipelines())
def test_no_pipeline_has_a_mount_twice(of: CamelPipeline) -> None:
    for _, template in templates(children_for(attempt(of, settings=settings()))[-1]):
        names = [volume["name"] for volume in template["spec"]["volumes"]]
        paths = [mount["mountPath"] for mount in template["spec"]["containers"][0].get("volumeMounts", ())]
        assert len(set(names)) == len(names)
        assert len(set(paths)) == len(paths)
