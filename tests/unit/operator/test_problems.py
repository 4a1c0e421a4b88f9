"""What a cluster needs of a pipeline that is valid: each sentence, and no false alarm."""

from __future__ import annotations

from typing import Any

import pytest

from camel_ray.operator.children import cluster_problems
from camel_ray.operator.model import Settings
from operator_specs import DATA, PPO, PRETRAIN, pipeline

TRAIN = {"name": "base", "pretrain": PRETRAIN}
GPUS: dict[str, Any] = {"gpus": 4, "resources": {"limits": {"memory": "64Gi"}}}


def problems(cluster: dict[str, Any] | None = None, *stages: dict[str, Any], **spec: Any) -> list[str]:
    """On a storage that all pods share, unless another is given."""
    if "storage" not in spec:
        spec["storage"] = "/data/runs"
        cluster = {"volumes": [{"mountPath": "/data", "claim": "shared"}], **(cluster or {})}
    return cluster_problems(pipeline(cluster, *stages, **spec), Settings())


@pytest.mark.parametrize("storage", ["./runs", "runs", "~/runs", "file://runs"])
def test_relative_storage(storage: str) -> None:
    assert problems(storage=storage) == [
        f"spec.storage: '{storage}' is a relative path, and pods share no directory with the one it starts at; set a "
        "URI such as s3://bucket/team, or an absolute path on a claim of spec.cluster.volumes"
    ]


def test_storage_on_a_path_needs_a_volume_there() -> None:
    sentence = (
        "spec.storage: '/data/runs' lies on none of the pods' volumes, and their own disk cannot be written; mount a "
        "claim there (spec.cluster.volumes), or set a URI such as s3://bucket/team"
    )
    claim = {"mountPath": "/data", "claim": "shared"}
    assert problems(storage="/data/runs") == [sentence]
    assert problems({"volumes": [{**claim, "readOnly": True}]}, storage="/data/runs") == [sentence]
    assert problems({"volumes": [{**claim, "mountPath": "/data/run"}]}, storage="/data/runs") == [sentence]
    assert problems({"volumes": [claim]}, storage="/data/runs") == []
    assert problems({"volumes": [claim]}, storage="file:///data") == []
    assert problems(storage="/tmp/try") == []


def test_the_autoscaler_of_the_operators_image_needs_the_same_ray() -> None:
    group = {"groups": [{"name": "gpu", "maxReplicas": 2}]}
    scaled = {**group, "autoscaling": {"enabled": True}}
    assert problems({**scaled, "rayVersion": "2.59.0"}) == [
        "spec.cluster.rayVersion: 2.59.0 is not the Ray 2.60.0 of the operator's own image (stages.image), in which "
        "Ray's autoscaler runs; use an image with that version, or set replicas instead of autoscaling"
    ]
    assert problems({**scaled, "rayVersion": "2.60.0"}) == problems(scaled) == []
    assert problems({"groups": [{"name": "gpu", "replicas": 2}], "rayVersion": "2.59.0"}) == []


def test_pods_of_a_stage_share_the_mirror_of_object_storage() -> None:
    sentence = (
        "spec.storage: stage 'base' runs on several pods, which have to share the mirror of s3://b/t: mount a "
        "ReadWriteMany claim (spec.cluster.volumes) and set CAMEL_RAY_CACHE to a path on it (spec.cluster.env); or ask "
        "the administrator for stages.scratch of the operator's configuration, which makes one; or set "
        "cluster.executor to Job"
    )
    group = {"groups": [{"name": "gpu", "replicas": 1}]}
    claim = {"volumes": [{"mountPath": "/scratch", "claim": "scratch"}]}
    cache = {"env": [{"name": "CAMEL_RAY_CACHE", "value": "/scratch/cache"}]}
    assert problems(group, storage="s3://b/t") == [sentence]
    assert problems({**group, **claim}, storage="s3://b/t") == [sentence]
    assert problems({**group, **cache}, storage="s3://b/t") == [sentence]
    assert problems({**group, **claim, **cache}, storage="s3://b/t") == []
    assert problems({**group, "executor": "Job"}, storage="s3://b/t") == []
    assert problems(storage="s3://b/t") == []  # no group: one pod does it all


def test_a_spec_too_large_for_a_config_map() -> None:
    many = [{"name": "base", "data": {"source": f"hf://x/{'y' * 1_000_001}"}}]
    (sentence,) = problems(None, *many)
    assert sentence.startswith("spec: 1000")
    assert "more than a ConfigMap holds (1000000)" in sentence


def test_amounts_that_are_none_and_requests_above_limits() -> None:
    group = {"name": "g", "resources": {"requests": {"cpu": "4", "memory": "16 GB"}, "limits": {"cpu": "2"}}}
    assert problems({"groups": [group]}) == [
        "spec.cluster.groups[0].resources.requests: memory: '16 GB' is no quantity; write it like 4, 500m or 16Gi",
        "spec.cluster.groups[0].resources: the request cpu: 4 is above the limit 2; raise the limit",
    ]


def test_selectors_and_tolerations_that_kubernetes_refuses() -> None:
    tolerations = [
        {"key": "gpu", "operator": "Exists", "value": "a"},
        {"value": "a"},
        {"key": "gpu", "effect": "NoSchedule", "tolerationSeconds": 5},
        {"key": "gpu", "effect": "NoExecute", "tolerationSeconds": 5},
    ]
    head = {"nodeSelector": {"zone": "-"}, "tolerations": tolerations}
    assert cluster_problems(pipeline({"head": head}), None) == [
        "spec.cluster.head.nodeSelector.zone: no node has the label '-': use at most 63 letters, digits, '-', '_' and "
        "'.', with a letter or digit at both ends",
        "spec.cluster.head.tolerations[0]: operator Exists takes any value; delete `value`, or write operator: Equal",
        "spec.cluster.head.tolerations[1]: without a `key` the operator must be Exists; name the taint's key",
        "spec.cluster.head.tolerations[2]: tolerationSeconds is for effect: NoExecute; write that, or delete it",
    ]


def test_gpus_said_twice_and_differently() -> None:
    group = {"name": "g", "gpus": 8, "resources": {"limits": {"nvidia.com/gpu": "4", "memory": "64Gi"}}}
    assert problems({"groups": [group]}) == [
        "spec.cluster.groups[0].gpus: 8 GPUs, but resources.limits say nvidia.com/gpu: 4; leave one out"
    ]


def test_gpus_without_memory() -> None:
    sentence = (
        "spec.cluster.groups[0].resources: 8 GPUs, but no memory is named, which makes it 4Gi; set "
        "resources.limits.memory (`camel-ray plan` says how much a process takes)"
    )
    assert problems({"groups": [{"name": "g", "gpus": 8}]}) == [sentence]
    for kind in ("requests", "limits"):
        assert problems({"groups": [{"name": "g", "gpus": 8, "resources": {kind: {"memory": "64Gi"}}}]}) == []


def test_files_that_no_pod_has() -> None:
    reward = {"function": {"path": "reward.py"}, "model": "./judge"}
    stages: list[dict[str, Any]] = [
        {"name": "rows", "data": {"source": ["s3://b/x.jsonl", "data/y.jsonl"]}},
        {"name": "base", "pretrain": {"data": "rows", "model": {"source": "~/base"}, "trainer": {"optim_args": "./x"}}},
        {"name": "tune", "ppo": {"prompts": {"source": "/data/p.jsonl"}, "model": "org/hub", "reward": reward}},
    ]
    found = problems(None, *stages, model="../start")
    assert [sentence.split(" ", 3)[:2] for sentence in found] == [
        ["spec.model:", "'../start'"],
        ["spec.stages[0].data.source[1]:", "'data/y.jsonl'"],
        ["spec.stages[1].pretrain.model.source:", "'~/base'"],
        ["spec.stages[2].ppo.reward.model:", "'./judge'"],
        ["spec.stages[2].ppo.reward.function.path:", "'reward.py'"],
    ]
    assert "is a relative path, and a pod has no such file; write a URI" in found[0]
    assert problems({"image": "with-files:1"}, *stages, model="../start") == []


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"limits": {"nvidia.com/gpu": "500m"}}, "the limit nvidia.com/gpu: 500m of a device has to be a whole number"),
        ({"requests": {"nvidia.com/gpu": "1"}}, "the request nvidia.com/gpu of a device has to be its limit too"),
        ({"requests": {"x/y": "1"}, "limits": {"x/y": "2"}}, "the request x/y of a device has to be its limit too"),
        ({"requests": {"x/y": "2"}, "limits": {"x/y": "2"}}, ""),
    ],
)
def test_devices_are_whole_and_all_of_them_are_asked_for(resources: dict[str, Any], words: str) -> None:
    found = problems({"head": {"resources": resources}})
    assert [words in sentence for sentence in found] == ([True] if words else [])


def test_a_range_of_pods_needs_the_autoscaler() -> None:
    groups = [{"name": "g", "minReplicas": 1, "maxReplicas": 4}]
    assert problems({"groups": groups}) == [
        "spec.cluster.groups[0]: minReplicas and maxReplicas are for autoscaled groups; set "
        "spec.cluster.autoscaling.enabled to true, or replicas here"
    ]
    assert problems({"groups": groups, "autoscaling": {"enabled": True}}) == []


def test_a_group_without_pods_matters_to_the_stages_that_use_it() -> None:
    groups = [{"name": "none", "replicas": 0}, {"name": "some"}]
    data = {"name": "base", "data": DATA}
    assert problems({"groups": groups}, {**data, "group": "some"}) == []
    assert problems({"groups": groups}, data) == []
    sentence = "stage 'base': worker group 'none' has no pods; raise its replicas"
    assert problems({"groups": groups}, {**data, "group": "none"}) == [sentence]
    assert problems({"groups": groups[:1]}, data) == [sentence]


def test_more_gpus_than_the_groups_have() -> None:
    gpu = {"name": "gpu", "replicas": 2, **GPUS}
    assert problems({"groups": [gpu]}, {**TRAIN, "group": "gpu", "workers": 8}) == []
    assert problems({"groups": [gpu]}, {**TRAIN, "group": "gpu", "workers": {"min": 8, "max": 64}}) == []
    assert problems({"groups": [gpu]}, {**TRAIN, "group": "gpu", "workers": 9}) == [
        "stage 'base': wants 9 GPUs, but worker group 'gpu' has 8; lower `workers`, or raise the replicas"
    ]
    assert problems({"groups": [gpu, {"name": "cpu"}]}, {**TRAIN, "workers": 9}) == []


def test_roles_that_cannot_be_placed() -> None:
    ppo = {**PPO, "roles": {"rollout": {"group": "a"}}}
    (sentence,) = problems({"groups": [{"name": "a"}]}, {"name": "tune", "ppo": ppo})
    assert sentence.startswith("stage 'tune', ppo.roles: roles that are placed together need the same group")


def test_a_job_is_one_pod() -> None:
    gpu = {"name": "gpu", **GPUS}
    job = {"executor": "Job", "groups": [gpu, {"name": "other", **GPUS}]}
    assert problems(job, {**TRAIN, "group": "gpu", "workers": 4}) == []
    assert problems(job, {**TRAIN, "group": "gpu", "workers": 5}) == [
        "stage 'base': wants 5 GPUs, but executor: Job gives a stage one pod, and one of group 'gpu' has 4; use "
        "executor: RayJob, or lower `workers`"
    ]
    ppo = {**PPO, "placement": "split", "roles": {"rollout": {"group": "other"}}}
    assert problems(job, {"name": "tune", "group": "gpu", "ppo": ppo}) == [
        "stage 'tune': its roles run on the worker groups gpu and other, but executor: Job gives a stage one pod, of "
        "its own group; use executor: RayJob, or leave out the groups of the roles"
    ]
    assert problems({"executor": "Job"}, {"name": "tune", "ppo": {**PPO, "placement": "split"}}) == []
