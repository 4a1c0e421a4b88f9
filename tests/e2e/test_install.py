"""The whole way: the chart is installed, a file is applied, and pods run its stages to the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from camel_ray.version import __version__
from rig.control_plane import ControlPlane
from rig.helm import NAMESPACE
from rig.images import OPERATOR, TRAINER
from rig.pipelines import Pipelines, pipeline
from rig.release import Release

SMALL = {"resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}}


def write_rows(directory: Path) -> None:
    lines = [{"text": f"row {i} says {i * i} words about camels and rays"} for i in range(200)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def tokenizer_pipeline(name: str) -> dict[str, Any]:
    manifest = pipeline(
        name,
        {"name": "rows", "data": {"source": "/data/rows.jsonl", "format": "text"}},
        {"name": "words", "tokenizer": {"data": "rows", "vocabSize": 300}},
        storage="/data/storage",
        cluster={
            "head": SMALL,
            "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
            "volumes": [{"mountPath": "/data", "claim": "data"}],
        },
    )
    del manifest["spec"]["cluster"]["image"]  # the one the operator is told to use
    return manifest


def test_the_operator_of_the_chart_runs_as_restricted_pods(cluster: Release, plane: ControlPlane) -> None:
    pods = plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
    assert len(pods) == 2
    for pod in pods:
        (container,) = pod["status"]["containerStatuses"]
        assert container["ready"] and container["restartCount"] == 0
        assert container["image"] == OPERATOR
    assert f"camel-ray {__version__}" in cluster.logs()


def test_a_pipeline_runs_in_pods_to_its_end(pipelines: Pipelines, volume: Callable[[str], Path]) -> None:
    directory = volume("data")
    write_rows(directory)
    pipelines.apply(tokenizer_pipeline("words"))
    status = pipelines.wait_phase("words", "Succeeded", seconds=1200)
    assert [stage["attempts"] for stage in status["stages"]] == [1, 1]
    rows, words = status["stages"]
    assert rows["result"]["code"] == 0  # told by the pod, through the progress server
    manifest = json.loads((directory / "storage/words/stages/words/tokenizer/manifest.json").read_text())
    assert manifest["digest"] == words["result"]["artifacts"][0]["digest"]
    pods = pipelines.list("pods", "words")
    assert sorted(pod["status"]["phase"] for pod in pods) == ["Succeeded", "Succeeded"]
    assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {TRAINER}
