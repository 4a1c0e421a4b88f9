"""A pipeline that is applied with kubectl trains a real model: operator, apiserver, stage processes and Ray are real.

There is no kubelet: the stand-in runs the containers of pods as processes of this machine, with the environment, the
volumes and the tokens their pods describe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.operator import Operator, forget_leader, install, start_operator
from rig.pipelines import Pipelines, pipeline
from rig.process import free_ports
from rig.training import CONFIG

# What the trainer's image would set, and this machine needs: offline, few threads.
IMAGE = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture(scope="module")
def kuberay(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeRay]:
    install(control_plane)
    image = {**IMAGE, "PATH": os.environ["PATH"]}
    directory = tmp_path_factory.mktemp("kuberay")
    with KubeRay(control_plane, directory, run_entrypoints=True, environment=image) as standin:
        yield standin


@pytest.fixture(scope="module")
def replica(control_plane: ControlPlane, kuberay: KubeRay) -> Iterator[Operator]:
    forget_leader(control_plane)
    (port,) = free_ports(1)
    options = (f"--progress-port={port}", f"--progress-url=http://127.0.0.1:{port}", "--stop-seconds=60")
    replica = start_operator(control_plane, "training", *options)
    yield replica
    replica.process.stop(graceful=True)


@pytest.fixture
def pipelines(control_plane: ControlPlane, namespace: str, replica: Operator) -> Pipelines:
    return Pipelines(control_plane, namespace)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"text": f"row {i} says {i * i} words about camels and rays"} for i in range(200)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def training(name: str, storage: Path, rows: Path, *, steps: int = 12, **spec: Any) -> dict[str, Any]:
    member = {"data": "rows", "steps": steps, "batchSize": 4, "microBatchSize": 4, "maxLength": 32}
    return pipeline(
        name,
        {"name": "rows", "data": {"source": str(rows), "format": "text", "validation": 0.1}},
        {"name": "words", "tokenizer": {"data": "rows", "vocabSize": 300}},
        {"name": "base", "pretrain": {**member, "model": {"config": CONFIG}, "checkpoint": {"everySteps": 4}}},
        storage=str(storage),
        **spec,
    )


def steps_done(pipelines: Pipelines, name: str, stage: str) -> int:
    told = pipelines.stage(name, stage).get("progress", {})
    return int(told["done"]) if told.get("task") == "train" else 0


@pytest.mark.parametrize("executor", ["Job", "RayJob"])
def test_a_pipeline_applied_with_kubectl_trains_a_model(
    pipelines: Pipelines, tmp_path: Path, rows: Path, executor: str
) -> None:
    name = executor.lower()
    pipelines.apply(training(name, tmp_path / "storage", rows, cluster={"executor": executor}))
    status = pipelines.wait_phase(name, "Succeeded", seconds=400)
    assert [s["attempts"] for s in status["stages"]] == [1, 1, 1], status
    base = status["stages"][2]
    # what the attempt told of itself, by the progress server
    assert base["result"]["code"] == 0
    assert [artifact["kind"] for artifact in base["result"]["artifacts"]] == ["model"]
    assert base["progress"]["percentage"] == 100
    assert 0 < base["progress"]["metrics"]["loss"] < 10
    model = tmp_path / "storage" / name / "stages" / "base" / "model"
    manifest = json.loads((model / "manifest.json").read_text())
    assert manifest["digest"] == base["result"]["artifacts"][0]["digest"]
    assert (model / "model.safetensors").stat().st_size > 10_000


def test_a_suspended_job_saves_a_checkpoint_and_goes_on_from_it(
    pipelines: Pipelines, tmp_path: Path, rows: Path
) -> None:
    spec = training("pause", tmp_path / "storage", rows, steps=100_000)  # more than it can do in the meantime
    spec["spec"]["stages"][2]["pretrain"]["checkpoint"] = {"everySteps": 100_000}
    pipelines.apply(spec)
    pipelines.wait(lambda: steps_done(pipelines, "pause", "base") > 5, "some steps", 300)
    pipelines.patch_spec("pause", suspend=True)
    status = pipelines.wait_phase("pause", "Suspended")
    assert status["stages"][2]["history"][0]["outcome"] == "Stopped"
    checkpoints = tmp_path / "storage/pause/stages/base/work/checkpoints"
    saved = [int(path.parent.name.rpartition("-")[2]) for path in checkpoints.glob("*/manifest.json")]
    assert len(saved) == 1 and saved[0] > 5
    pipelines.patch_spec("pause", suspend=False)
    goes_on = f"continues at step {saved[0]}"
    progress = tmp_path / "storage/pause/stages/base/progress.jsonl"
    pipelines.wait(lambda: goes_on in progress.read_text(), goes_on)
    pipelines.request("pause", "cancel - 1")
    assert pipelines.wait_phase("pause", "Cancelled")["stages"][2]["failures"] == 0
