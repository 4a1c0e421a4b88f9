"""A pipeline on S3 whose stages run on several pods: nothing is prepared but a bucket, a Secret and a storage class."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3 import KEY, S3, SECRET, s3_server

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.images import TRAINER
from rig.node import GATEWAY, Node
from rig.pipelines import Object, Pipelines, pipeline
from rig.release import SCRATCH_CLASS, Release
from rig.training import CONFIG, ENVIRONMENT, machine

ROWS = [{"text": f"row {i} says {i * i} words about camels and rays"} for i in range(200)]


@pytest.fixture(scope="module")
def s3(node: Node) -> Iterator[S3]:
    """A server that pods reach."""
    with s3_server(GATEWAY) as server:
        body = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        server.client().put_object(Bucket="team", Key="rows.jsonl", Body=body)
        yield server


@pytest.fixture
def shared(plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Path]:
    """A volume of the storage class, for whoever claims one; the directory behind it."""
    directory = tmp_path / "shared"
    directory.mkdir()
    os.chown(directory, 1000, 1000)  # fsGroup does nothing for a host path
    spec = {
        "accessModes": ["ReadWriteMany"],
        "capacity": {"storage": "1Gi"},
        "hostPath": {"path": str(directory)},
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": SCRATCH_CLASS,
    }
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": spec}
    plane.request("POST", "/api/v1/persistentvolumes", volume)
    yield directory
    plane.request("DELETE", f"/api/v1/persistentvolumes/{namespace}")


def manifest(server: S3) -> Object:
    """Two stages, the second with ZeRO-2 over two pods."""
    member = {
        "data": {"source": "s3://team/rows.jsonl", "format": "text", "validation": 0.1},
        "model": {"config": CONFIG},
        "zero": 2,
        "steps": 40,
        "batchSize": 8,
        "microBatchSize": 4,
        "maxLength": 32,
        "checkpoint": {"everySteps": 10},
    }
    env = {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true"}
    return pipeline(
        "remote",
        {
            "name": "words",
            "tokenizer": {"data": {"source": "s3://team/rows.jsonl", "format": "text"}, "vocabSize": 300},
        },
        {"name": "base", "workers": 2, "group": "train", "pretrain": member},
        storage="s3://team/runs",
        cluster={
            "executor": "RayJob",
            "image": TRAINER,
            "head": machine("3Gi"),
            "groups": [{"name": "train", "replicas": 2, **machine("2500Mi")}],
            "env": [{"name": name, "value": value} for name, value in env.items()],
            "envFromSecrets": ["storage"],
        },
    )


def test_head_and_workers_share_a_mirror_that_nobody_had_to_make(
    kuberay: KubeRay, cluster: Release, pipelines: Pipelines, plane: ControlPlane, s3: S3, shared: Path
) -> None:
    literals = [f"--from-literal=AWS_ACCESS_KEY_ID={KEY}", f"--from-literal=AWS_SECRET_ACCESS_KEY={SECRET}"]
    pipelines.kubectl("create", "secret", "generic", "storage", *literals)
    pipelines.apply(manifest(s3))
    pipelines.wait(lambda: claims(pipelines) == [("remote-scratch", "Bound", "1Gi")], "the claim")
    status = pipelines.wait_phase("remote", "Succeeded", seconds=600)
    assert [(s["attempts"], s["result"]["code"]) for s in status["stages"]] == [(1, 0), (1, 0)]
    model = status["stages"][1]["result"]["artifacts"][0]
    assert model["uri"] == "s3://team/runs/remote/stages/base/model"
    kept = json.loads(s3.content("runs/remote/stages/base/model/manifest.json"))
    assert kept["digest"] == model["digest"]
    assert not [name for name in s3.names("runs/remote/") if "/checkpoint-" in name]
    assert list(shared.glob("storage/*/remote/stages/base/model/manifest.json")), "the pods worked there"
    told = json.dumps(status) + json.dumps(pipelines.list("pods", "remote")) + cluster.logs()
    said = pipelines.kubectl("logs", "--selector=camel-ray.dev/pipeline=remote", "--tail=-1", "--ignore-errors=true")
    assert "camel-ray-result:" in said, "the submitters' logs, which hold those of the stages"
    assert SECRET not in told + said
    assert all(SECRET.encode() not in s3.content(name) for name in s3.names("runs/") if name.endswith("l"))
    pipelines.kubectl("delete", "camel", "remote")
    pipelines.wait(lambda: not claims(pipelines), "the claim to go with its pipeline")


def claims(pipelines: Pipelines) -> list[tuple[str, str, str]]:
    """Name, phase and size asked for of all claims."""
    found = json.loads(pipelines.kubectl("get", "pvc", "-o", "json"))["items"]
    return [(c["metadata"]["name"], c["status"]["phase"], c["spec"]["resources"]["requests"]["storage"]) for c in found]
