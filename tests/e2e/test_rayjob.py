"""Training on Ray clusters of real pods: head and workers by KubeRay's rules, Ray, its autoscaler and its job API real.

KubeRay itself is played (tests/kuberay_standin); a kubelet runs the pods it makes. A worker offers one CPU and the head
none, so two training processes are two pods.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camel_ray.progress import ProgressReader
from kuberay_standin.launch import KubeRay
from rig.control_plane import ControlPlane
from rig.images import TRAINER
from rig.node import Node
from rig.pipelines import Object, Pipelines, pipeline
from rig.training import CONFIG, ENVIRONMENT, FOREVER, machine, write_data

MakeVolume = Callable[[str], Path]


@pytest.fixture
def data(volume: MakeVolume) -> Path:
    """The directory behind the claim `data`, with rows and a tokenizer that was made at home."""
    directory = volume("data")
    write_data(directory)
    return directory


def training(name: str, *, steps: int, group: Object, checkpoint: int, **cluster: Any) -> Object:
    """One stage of ZeRO-2 over two pods."""
    member = {
        "data": {"source": "/data/rows.jsonl", "format": "text", "validation": 0.1},
        "tokenizer": "/data/home/stages/words/tokenizer",
        "model": {"config": CONFIG},
        "zero": 2,
        "steps": steps,
        "batchSize": 8,
        "microBatchSize": 4,
        "maxLength": 32,
        "logEverySteps": 1,
        "checkpoint": {"everySteps": checkpoint},
    }
    return pipeline(
        name,
        {"name": "base", "workers": 2, "group": "train", "pretrain": member},
        storage="/data/storage",
        cluster={
            "executor": "RayJob",
            "image": TRAINER,
            "head": machine("3Gi"),
            "groups": [{"name": "train", **machine("2500Mi"), **group}],
            "env": [{"name": key, "value": value} for key, value in ENVIRONMENT.items()],
            "volumes": [{"mountPath": "/data", "claim": "data"}],
            "drainTimeoutSeconds": 20,
            **cluster,
        },
    )


class Run:
    """A pipeline of `training`, and what can be seen of it."""

    def __init__(self, pipelines: Pipelines, node: Node, data: Path, manifest: Object) -> None:
        self.pipelines, self.node, self.name = pipelines, node, manifest["metadata"]["name"]
        self.directory = data / "storage" / self.name / "stages/base"
        pipelines.apply(manifest)

    def steps(self) -> list[int]:
        """The training steps told, in the order of telling."""
        return [step for event in self._events() if (step := trained(event))]

    def notes(self) -> list[str]:
        return [e["message"] for e in self._events() if e["event"] == "note"]

    def steps_around(self, words: str) -> tuple[list[int], list[int]]:
        """The steps told before and after the first note with these words."""
        events = self._events()
        at = next(i for i, e in enumerate(events) if e["event"] == "note" and words in e["message"])
        told = [(i, step) for i, event in enumerate(events) if (step := trained(event))]
        return [step for i, step in told if i < at], [step for i, step in told if i > at]

    def wait_note(self, words: str, seconds: float) -> str:
        """The newest note with these words, once there is one."""
        return str(self.wait(lambda: [n for n in self.notes() if words in n], f"the note '{words}'", seconds)[-1])

    def wait_steps(self, count: int, seconds: float = 400) -> None:
        """Wait for as many more steps."""
        before = len(self.steps())
        self.wait(lambda: len(self.steps()) >= before + count, f"{count} more steps", seconds)

    def wait(self, condition: Any, what: str, seconds: float = 300) -> Any:
        try:
            return self.pipelines.wait(condition, what, seconds)
        except Exception as error:
            status = json.dumps(self.pipelines.status(self.name), indent=1)
            raise AssertionError(f"no {what}; {status[:3000]}\n{self.notes()}") from error

    def pods(self, role: str) -> list[Object]:
        """Pods of `head` or `worker` that are not on their way out."""
        found = self.pipelines.list("pods", self.name)
        mine = [p for p in found if p["metadata"]["labels"].get("ray.io/node-type") == role]
        return [p for p in mine if "deletionTimestamp" not in p["metadata"]]

    def attempts(self) -> int:
        return int(self.pipelines.stage(self.name, "base")["attempts"])

    def training_pods(self) -> set[str]:
        """Names of the worker pods in which a training process of Ray Train runs now."""
        look = (
            'for p in /proc/[0-9]*; do tr "\\0" " " <$p/cmdline | grep -q "^ray::.*TrainWorker" && cat $p/cgroup; done'
        )
        seen = self.node.exec("sh", "-c", f"({look}) 2>/dev/null", check=False)
        return {p["metadata"]["name"] for p in self.pods("worker") if p["metadata"]["uid"] in seen}

    def _events(self) -> list[Object]:
        file = self.directory / "progress.jsonl"
        return ProgressReader(file).new_events() if file.exists() else []


def trained(event: Object) -> int:
    """The step whose loss an event tells, 0 if it tells none."""
    tells = event["event"] == "update" and event["task"] == "train" and "loss" in (event.get("metrics") or {})
    return int(event["done"]) if tells else 0


def ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def test_the_autoscaler_brings_the_second_pod_and_zero_trains_over_both(
    kuberay: KubeRay, pipelines: Pipelines, node: Node, data: Path
) -> None:
    group = {"minReplicas": 1, "maxReplicas": 2}
    manifest = training("scaled", steps=40, group=group, checkpoint=20, autoscaling={"enabled": True})
    run = Run(pipelines, node, data, manifest)
    first = run.wait(lambda: [p for p in run.pods("worker") if ready(p)], "a ready worker", 900)
    assert len(first) == 1 and len(run.pods("head")) == 1
    (cluster,) = pipelines.list("rayclusters", "scaled")
    assert cluster["spec"]["workerGroupSpecs"][0]["replicas"] == 1
    run.wait(lambda: len(run.training_pods()) == 2, "training processes in two pods", 1200)
    (cluster,) = pipelines.list("rayclusters", "scaled")
    (job,) = pipelines.list("rayjobs", "scaled")
    assert cluster["spec"]["workerGroupSpecs"][0]["replicas"] == 2
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 1, "KubeRay leaves the RayJob alone"
    base = pipelines.wait_phase("scaled", "Succeeded", seconds=400)["stages"][0]
    assert (base["attempts"], base["result"]["code"], base["progress"]["percentage"]) == (1, 0, 100)
    assert 0 < base["progress"]["metrics"]["loss"] < 10
    assert run.steps() == list(range(1, 41))
    model = run.directory / "model"
    assert json.loads((model / "manifest.json").read_text())["digest"] == base["result"]["artifacts"][0]["digest"]
    run.wait(lambda: not pipelines.list("pods", "scaled") or not run.pods("worker"), "the workers to go")


def test_a_long_run_outlives_a_drain_a_killed_worker_and_a_pause(
    kuberay: KubeRay, pipelines: Pipelines, node: Node, plane: ControlPlane, data: Path
) -> None:
    run = Run(pipelines, node, data, training("long", steps=FOREVER, group={"replicas": 2}, checkpoint=100))
    run.wait_steps(20)
    assert len(run.training_pods()) == 2
    drain_a_worker(run, plane)
    kill_a_worker(run)
    pause_and_resume(run)
    pipelines.request("long", "cancel - 1")
    assert pipelines.wait_phase("long", "Cancelled", seconds=300)["stages"][0]["failures"] == 0


def drain_a_worker(run: Run, plane: ControlPlane) -> None:
    """As `kubectl drain` does it: SIGTERM, then the grace period, in which the training saves its state and moves."""
    gone = run.pods("worker")[0]["metadata"]["name"]
    path = f"/api/v1/namespaces/{run.pipelines.namespace}/pods/{gone}/eviction"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": gone}}
    plane.request("POST", path, eviction)
    taken = run.wait_note("a machine is being taken away", 300)
    saved = step_of(taken)
    run.wait_note(f"continues at step {saved}", 300)
    run.wait_steps(5)
    before, after = run.steps_around(f"continues at step {saved}")
    assert saved <= max(before) <= saved + 1, "at most one step was done again"
    assert after[0] == saved + 1
    assert len(run.training_pods()) == 2 and gone not in run.training_pods()
    assert run.attempts() == 1


def kill_a_worker(run: Run) -> None:
    """SIGKILL to a worker's container, as the kernel does it when memory is short: nobody is warned."""
    run.wait_steps(120)  # there is a checkpoint since the last restart, and time to write it
    victim = run.pods("worker")[0]
    container = victim["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    notes = len(run.notes())
    run.node.exec("ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", container)
    run.wait(lambda: [n for n in run.notes()[notes:] if "continues at step" in n], "the restart", 300)
    at = step_of(run.notes()[-1])
    assert at % 100 == 0 and at > 0
    run.wait_steps(5)
    assert victim["metadata"]["name"] not in run.training_pods() and len(run.training_pods()) == 2
    assert run.attempts() == 1


def pause_and_resume(run: Run) -> None:
    """`suspend: true` and back: a checkpoint of both ranks, no pods meanwhile, and on from that very step."""
    run.pipelines.patch_spec("long", suspend=True)
    status = run.pipelines.wait_phase("long", "Suspended", seconds=300)
    assert status["stages"][0]["history"][-1]["outcome"] == "Stopped"
    phases = {pod["status"]["phase"] for pod in run.pipelines.list("pods", "long")}
    assert phases <= {"Succeeded", "Failed"}, "nothing runs while it waits"
    newest = max((run.directory / "work/checkpoints").glob("checkpoint-*"), key=step_of_directory)
    shards = {match[1] for file in newest.rglob("*") if (match := re.search(r"zero_pp_rank_(\d+)", file.name))}
    assert shards == {"0", "1"}
    saved, last = step_of_directory(newest), run.steps()[-1]
    assert saved <= last <= saved + 1
    run.pipelines.patch_spec("long", suspend=False)
    run.wait_note(f"continues at step {saved}", 300)
    run.wait_steps(5)
    _, after = run.steps_around(f"continues at step {saved}")
    assert after[0] == saved + 1


def step_of(note: str) -> int:
    match = re.search(r"step (\d+)", note)
    assert match, note
    return int(match[1])


def step_of_directory(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
