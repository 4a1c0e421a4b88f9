"""What all pods of an attempt share: security, environment, volumes, resources."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from camel_ray.api.operator_config import OperatorConfig, StageDefaults
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.operator.children import children_for
from camel_ray.operator.model import Settings
from camel_ray.operator.pods import CA_KEY, SPEC_KEY, spec_data, spec_map_name
from operator_specs import SETTINGS, UID, against_restricted, attempt, environment, pipeline, pipelines, templates

GROUP = {"name": "gpu", "replicas": 2, "gpus": 8, "resources": {"limits": {"cpu": "8000m", "memory": "64Gi"}}}


def work(cluster: dict[str, Any], **more: Any) -> dict[str, Any]:
    return children_for(attempt(pipeline(cluster), **more))[-1]


def container(manifest: dict[str, Any], where: str) -> dict[str, Any]:
    return dict(templates(manifest))[where]["spec"]["containers"][0]


@given(pipelines())
def test_all_pods_of_any_pipeline_pass_pod_security_restricted(of: CamelPipeline) -> None:
    for index in range(len(of.spec.stages)):
        manifest = children_for(attempt(of, stage=index))[-1]
        faults = {where: against_restricted(pod["spec"]) for where, pod in templates(manifest)}
        assert not any(faults.values()), faults


@pytest.mark.parametrize("executor", ["RayJob", "Job"])
def test_a_cluster_that_chooses_users_itself_is_given_none(executor: str) -> None:
    free = Settings(config=OperatorConfig(stages=StageDefaults(fixed_user=False)))
    for _, pod in templates(work({"executor": executor, "groups": [GROUP]}, settings=free)):
        assert against_restricted(pod["spec"]) == []
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(pod["spec"]["securityContext"])
    driver = container(work({"executor": executor}, settings=free), "head" if executor == "RayJob" else "job")
    assert environment(driver)["USER"] == "camel-ray"
    for _, pod in templates(work({"executor": executor, "groups": [GROUP]})):
        assert {pod["spec"]["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {1000}


@given(pipelines())
def test_values_of_users_reach_the_process_as_they_are(of: CamelPipeline) -> None:
    given = {v.name: v.value for v in of.spec.cluster.env}
    manifest = children_for(attempt(of))[-1]
    for where, pod in templates(manifest):
        if where != "submitter":
            seen = environment(pod["spec"]["containers"][0])
            assert {name: seen[name] for name in given} == given


def test_the_judge_of_pod_security_finds_what_is_forbidden() -> None:
    bad = {
        "hostNetwork": True,
        "containers": [
            {"name": "c", "securityContext": {"privileged": True, "runAsUser": 0}, "ports": [{"hostPort": 1}]}
        ],
        "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
    }
    assert len(against_restricted(bad)) == 9


@pytest.mark.parametrize("executor", ["RayJob", "Job"])
def test_the_driver_learns_its_task_from_its_environment(executor: str) -> None:
    driver = container(work({"executor": executor}, number=3), "head" if executor == "RayJob" else "job")
    seen = environment(driver)
    assert {name: seen[name] for name in seen if name.startswith(("CAMEL", "KUBEFLOW", "DISABLE"))} == {
        "CAMEL_RAY_PIPELINE_FILE": "/etc/camel-ray/pipeline.json",
        "CAMEL_RAY_STAGE": "base",
        "CAMEL_RAY_ATTEMPT": "3",
        "CAMEL_RAY_PIPELINE_UID": UID,
        "KUBEFLOW_TRAINER_SERVER_URL": (
            "https://camel-ray.ops:8443/v1/namespaces/team-a/pipelines/demo/stages/base/attempts/3"
        ),
        "KUBEFLOW_TRAINER_SERVER_TOKEN": "/var/run/secrets/camel-ray.dev/token",
        "KUBEFLOW_TRAINER_SERVER_CA_CERT": "/etc/camel-ray/progress-ca.crt",
        "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",
    }
    assert seen["HOME"] == "/tmp"
    assert seen["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "1800"


def test_only_the_driver_can_read_the_spec_and_the_token() -> None:
    manifest = work({"groups": [GROUP]})
    mounts = {
        where: {m["name"] for m in container(manifest, where)["volumeMounts"]} for where, _ in templates(manifest)
    }
    assert mounts == {"submitter": {"tmp"}, "head": {"tmp", "shm", "spec", "progress-token"}, "gpu": {"tmp", "shm"}}


def test_without_a_progress_server_there_is_no_token() -> None:
    manifest = work({}, settings=Settings())
    assert "token" not in json.dumps(dict(templates(manifest))["head"]["spec"]["volumes"])
    assert not any(name.startswith("KUBEFLOW") for name in environment(container(manifest, "head")))


def test_an_attempt_that_starts_from_nothing_says_so() -> None:
    assert environment(container(work({}, fresh_from=2), "head"))["CAMEL_RAY_FRESH"] == "2"
    assert "CAMEL_RAY_FRESH" not in environment(container(work({}), "head"))


def test_secrets_and_volumes_of_the_user_are_in_all_pods_but_the_submitter() -> None:
    cluster = {
        "groups": [GROUP],
        "env": [{"name": "HF_TOKEN", "secret": {"name": "hub", "key": "token"}}, {"name": "EMPTY", "value": ""}],
        "envFromSecrets": ["s3"],
        "volumes": [
            {"mountPath": "/data", "claim": "datasets", "readOnly": True},
            {"mountPath": "/keys", "secret": "keys"},
            {"mountPath": "/conf", "configMap": "conf"},
            {"mountPath": "/scratch", "memory": "1024Mi"},
        ],
    }
    manifest = work(cluster)
    for where in ("head", "gpu"):
        built = container(manifest, where)
        assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}} in built["env"]
        assert {"name": "EMPTY"} in built["env"]
        assert built["envFrom"] == [{"secretRef": {"name": "s3"}}]
        volumes = {v["name"]: v for v in dict(templates(manifest))[where]["spec"]["volumes"]}
        assert [volumes[f"volume-{n}"] for n in range(4)] == [
            {"name": "volume-0", "persistentVolumeClaim": {"claimName": "datasets", "readOnly": True}},
            {"name": "volume-1", "secret": {"secretName": "keys"}},
            {"name": "volume-2", "configMap": {"name": "conf"}},
            {"name": "volume-3", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ]
        read_only = {m["mountPath"]: m.get("readOnly", False) for m in built["volumeMounts"]}
        assert [read_only[path] for path in ("/data", "/keys", "/conf", "/scratch")] == [True, True, True, False]
    assert environment(container(manifest, "submitter")) == {"HOME": "/tmp"}
    assert "envFrom" not in container(manifest, "submitter")


@pytest.mark.parametrize(
    ("resources", "expected", "shared_memory"),
    [
        ({}, {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}, "1639Mi"),
        (
            {"limits": {"cpu": "8000m", "memory": "64Gi"}},
            {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "8"}},
            "26215Mi",
        ),
        (
            {"requests": {"memory": "1Gi"}},
            {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"nvidia.com/gpu": "8"}},
            "1Gi",
        ),
    ],
)
def test_resources_are_canonical_and_shared_memory_is_sized_by_them(
    resources: dict[str, Any], expected: dict[str, Any], shared_memory: str
) -> None:
    group = {"name": "gpu", "gpus": 8 if resources else 0, "resources": resources}
    pod = dict(templates(work({"groups": [group]})))["gpu"]["spec"]
    assert pod["containers"][0]["resources"] == expected
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}} in pod["volumes"]


def test_what_the_spec_says_of_pods_is_in_all_of_them() -> None:
    cluster = {
        "groups": [GROUP],
        "image": "own:2",
        "serviceAccountName": "trainer",
        "imagePullSecrets": ["pull"],
        "priorityClassName": "high",
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
        "head": {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"key": "batch", "operator": "Exists"}]},
    }
    for where, pod in templates(work(cluster)):
        spec = pod["spec"]
        assert spec["containers"][0]["image"] == "own:2"
        assert spec["serviceAccountName"] == "trainer"
        assert spec["imagePullSecrets"] == [{"name": "pull"}]
        assert spec["priorityClassName"] == "high"
        assert pod["metadata"]["labels"]["team"] == "a"
        assert pod["metadata"]["annotations"] == {"note": "b"}
        assert spec.get("nodeSelector") == (None if where == "gpu" else {"pool": "cpu"})
        assert spec.get("tolerations") == (None if where == "gpu" else [{"key": "batch", "operator": "Exists"}])


DEFAULTS = StageDefaults.model_validate(
    {
        "image": "default:1",
        "imagePullPolicy": "Always",
        "rayVersion": "2.61.0",
        "imagePullSecrets": ["registry", "both"],
        "serviceAccountName": "stages",
        "priorityClassName": "low",
        "nodeSelector": {"pool": "any", "arch": "amd64"},
        "tolerations": [{"key": "shared", "operator": "Exists"}, {"key": "both", "operator": "Exists"}],
        "labels": {"team": "none", "cost": "ml"},
        "annotations": {"note": "default", "more": "x"},
        "env": [{"name": "A", "value": "default"}, {"name": "B", "secret": {"name": "hub", "key": "token"}}],
        "envFromSecrets": ["storage", "both"],
    }
)
OWN: dict[str, Any] = {
    "groups": [{**GROUP, "nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "both", "operator": "Exists"}]}],
    "image": "own:2",
    "serviceAccountName": "trainer",
    "imagePullSecrets": ["both", "pull"],
    "priorityClassName": "high",
    "labels": {"team": "a"},
    "annotations": {"note": "b"},
    "env": [{"name": "A", "value": "own"}],
    "envFromSecrets": ["both", "mine"],
}


@pytest.mark.parametrize("executor", ["RayJob", "Job"])
def test_the_configuration_says_what_pipelines_leave_open_for_all_pods(executor: str) -> None:
    settings = Settings(config=OperatorConfig(stages=DEFAULTS))
    cluster = {"executor": executor, "groups": [GROUP], "autoscaling": {"enabled": True}}
    manifest = work(cluster, settings=settings)
    for where, pod in templates(manifest):
        spec, first = pod["spec"], pod["spec"]["containers"][0]
        assert (first["image"], first["imagePullPolicy"]) == ("default:1", "Always")
        assert spec["serviceAccountName"] == "stages"
        assert spec["priorityClassName"] == "low"
        assert spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "both"}]
        assert spec["nodeSelector"] == {"pool": "any", "arch": "amd64"}
        assert spec["tolerations"] == [{"key": "shared", "operator": "Exists"}, {"key": "both", "operator": "Exists"}]
        assert {"team": "none", "cost": "ml"}.items() <= pod["metadata"]["labels"].items()
        assert pod["metadata"]["annotations"] == {"note": "default", "more": "x"}
        if where != "submitter":
            assert environment(first).items() >= {"A": "default", "B": None}.items()
            assert first["envFrom"] == [{"secretRef": {"name": "storage"}}, {"secretRef": {"name": "both"}}]
    if executor == "RayJob":
        assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == "2.61.0"
        assert manifest["spec"]["rayClusterSpec"]["autoscalerOptions"]["imagePullPolicy"] == "Always"


def test_what_a_pipeline_says_goes_before_the_configuration_or_is_added_to_it() -> None:
    pod = dict(templates(work(OWN, settings=Settings(config=OperatorConfig(stages=DEFAULTS)))))["gpu"]
    spec, first = pod["spec"], pod["spec"]["containers"][0]
    assert first["image"] == "own:2"
    assert spec["serviceAccountName"] == "trainer"
    assert spec["priorityClassName"] == "high"
    assert spec["imagePullSecrets"] == [{"name": "registry"}, {"name": "both"}, {"name": "pull"}]
    assert spec["nodeSelector"] == {"pool": "gpu", "arch": "amd64"}
    assert spec["tolerations"] == [{"key": "shared", "operator": "Exists"}, {"key": "both", "operator": "Exists"}]
    assert {"team": "a", "cost": "ml"}.items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["annotations"] == {"note": "b", "more": "x"}
    assert environment(first).items() >= {"A": "own", "B": None}.items()
    assert [source["secretRef"]["name"] for source in first["envFrom"]] == ["storage", "both", "mine"]


@given(pipelines())
def test_the_mounted_spec_is_the_pipeline_and_changes_its_name_with_its_content(of: CamelPipeline) -> None:
    data = spec_data(attempt(of))
    assert CamelPipeline.model_validate_json(data[SPEC_KEY], strict=True).spec == of.spec
    assert data[CA_KEY] == SETTINGS.progress_ca
    changed = of.model_copy(update={"spec": of.spec.model_copy(update={"seed": of.spec.seed + 1})})
    assert spec_map_name(attempt(changed)) != spec_map_name(attempt(of))


def test_an_older_image_is_told_nothing_of_fields_that_nobody_used() -> None:
    written = {"storage": "s3://b/t", "stages": [{"name": "base", "evaluate": {}}], "model": {"source": "a/b"}}
    stored = CamelPipeline.model_validate(
        {"metadata": {"name": "demo"}, "spec": written}
    ).wire()  # what the API server makes of it: with all defaults
    mounted = json.loads(spec_data(attempt(CamelPipeline.model_validate(stored)))[SPEC_KEY])
    assert mounted.pop("metadata") == {"name": "demo", "namespace": "team-a"}
    assert mounted == {"apiVersion": "camel-ray.dev/v1alpha1", "kind": "CamelPipeline", "spec": written}


def test_labels_and_annotations_of_the_pipeline_make_no_new_version_of_its_spec() -> None:
    plain = pipeline()
    noted = CamelPipeline.model_validate(
        {**plain.wire(), "metadata": {"name": "demo", "annotations": {"camel-ray.dev/request": "retry - 7"}}}
    )
    requested = CamelPipeline.model_validate({**plain.wire(), "metadata": {"name": "demo"}})
    assert spec_map_name(attempt(noted)) == spec_map_name(attempt(requested))
