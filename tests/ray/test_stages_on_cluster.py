"""Stages on a Ray cluster whose head offers no CPU run on the nodes of their worker group, and survive lost ones."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camel_ray import ray_session
from camel_ray.api.pipeline import CamelPipeline
from camel_ray.errors import DataError, RetryableError, SpecError
from camel_ray.progress import ProgressReader
from camel_ray.runtime import remote
from camel_ray.runtime.runner import Runner
from camel_ray.training import launch

MODEL = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
TRAINING = {
    "data": "text", "model": {"config": MODEL}, "steps": 30, "maxLength": 64, "batchSize": 8, "microBatchSize": 4,
    "learningRate": 1e-3, "logEverySteps": 1, "checkpoint": {"everySteps": 10},
}  # fmt: skip
PREPARE: list[dict[str, Any]] = [
    {"name": "text", "group": "prepare", "data": {"source": "rows.jsonl", "validation": 0.1}},
    {"name": "tokenizer", "group": "prepare", "tokenizer": {"data": "text", "vocabSize": 400}},
]
TRAIN: list[dict[str, Any]] = [
    {"name": "alone", "group": "train", "pretrain": TRAINING},
    {"name": "pair", "group": "train", "workers": 2, "pretrain": TRAINING},
    {"name": "report", "group": "prepare", "evaluate": {"model": "pair", "metrics": ["perplexity"], "samples": 0}},
]
GROUPS = {"groups": [{"name": name, "replicas": 1} for name in ("prepare", "train", "absent")]}


def here() -> tuple[str, int, str]:
    """Group of this process's node, the process, and the node."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == own]
    return node["Labels"].get(ray_session.GROUP_LABEL, "head"), os.getpid(), own


def telling_worker(config: dict[str, Any]) -> None:
    """A training process that leaves word where it is."""
    import ray.train

    from camel_ray.training.launch import _worker

    rank = ray.train.get_context().get_world_rank()
    (config["plan"].work / f"worker-{rank}.json").write_text(json.dumps(here()))
    _worker(config)


def dying_worker(config: dict[str, Any]) -> None:
    """A telling worker that is killed as soon as its first checkpoint is complete, unless it continues from one.

    It kills itself: somebody else might look too late, when training is over.
    """
    from camel_ray.training.callbacks import commit as saving

    whole = saving.commit

    def commit_and_die(directory: Path, *, run: str, step: int, keep: int) -> None:
        whole(directory, run=run, step=step, keep=keep)
        os.kill(os.getpid(), signal.SIGKILL)

    if config["resume"] is None:
        saving.commit = commit_and_die
    telling_worker(config)


def telling_task(context: Any) -> Any:
    """A task that leaves word where it is."""
    from camel_ray.runtime.remote import _run_there

    (context.work / "task.json").write_text(json.dumps(here()))
    return _run_there(context)


@pytest.fixture
def cluster(ray_cluster: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Runner]:
    """Starts the cluster; then makes runners of stages with storage in a folder of the given name."""
    labels = [{ray_session.GROUP_LABEL: name} for name in ("prepare", "train", "train")]
    ray_cluster(*({"num_cpus": 1, "labels": label} for label in labels))
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(launch, "_worker", telling_worker)
    monkeypatch.setattr(remote, "_run_there", telling_task)
    rows = [{"text": " ".join(f"word{(i * 7 + k * k) % 50}" for k in range(30))} for i in range(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(storage: str, *stages: dict[str, Any]) -> Runner:
        spec = {"storage": str(tmp_path / storage), "cluster": GROUPS, "stages": stages}
        pipeline = CamelPipeline.model_validate({"metadata": {"name": "p"}, "spec": spec})
        return Runner(pipeline, base_dir=tmp_path)

    return make


def place(storage: Path, stage: str, who: str) -> str:
    group, _, _ = json.loads((storage / "p/stages" / stage / "work" / f"{who}.json").read_text())
    return str(group)


def test_every_stage_runs_on_its_group_and_a_killed_worker_changes_nothing(
    cluster: Callable[..., Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cluster("whole", *PREPARE, *TRAIN).run().ran == ("text", "tokenizer", "alone", "pair", "report")
    assert [place(whole, stage, "task") for stage in ("text", "tokenizer", "report")] == ["prepare"] * 3
    assert [place(whole, "alone", "worker-0"), place(whole, "pair", "worker-0"), place(whole, "pair", "worker-1")] == (
        ["train"] * 3
    )
    nodes = {json.loads((whole / f"p/stages/pair/work/worker-{rank}.json").read_text())[1] for rank in (0, 1)}
    assert os.getpid() not in nodes

    monkeypatch.setattr(launch, "_worker", dying_worker)
    assert cluster("killed", *PREPARE, TRAIN[0]).run().ran == ("text", "tokenizer", "alone")
    events = ProgressReader(killed / "p/stages/alone/progress.jsonl").new_events()
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert any("a training process died" in note for note in notes)
    assert any("continues at step" in note for note in notes)
    models = [(storage / "p/stages/alone/model/model.safetensors").read_bytes() for storage in (whole, killed)]
    assert models[0] == models[1]


def test_a_machine_that_is_taken_away_costs_no_step(cluster: Callable[..., Runner], tmp_path: Path) -> None:
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    long = {**TRAIN[0], "pretrain": {**TRAINING, "steps": 1200, "checkpoint": {"everySteps": 5000}}}
    directory = tmp_path / "s/p/stages/alone"
    drained: list[str] = []

    def drain_its_node() -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until and '"loss"' not in read(directory / "progress.jsonl"):
            time.sleep(0.01)
        drained.append(json.loads((directory / "work/worker-0.json").read_text())[2])
        deadline = int(1000 * (time.time() + 60))
        client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        client.drain_node(drained[0], DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "a test", deadline)

    runner = cluster("s", *PREPARE, long)
    drainer = threading.Thread(target=drain_its_node)
    drainer.start()
    runner.run()
    drainer.join()
    notes = [e["message"] for e in ProgressReader(directory / "progress.jsonl").new_events() if e["event"] == "note"]
    (taken,) = [note for note in notes if "a machine is being taken away" in note]
    saved = taken.split("step ")[1].split(" ")[0]
    assert any(f"continues at step {saved}" in note for note in notes)
    assert json.loads((directory / "work/worker-0.json").read_text())[2] != drained[0]


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_what_a_stage_raises_elsewhere_arrives_as_it_is(cluster: Callable[..., Runner], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        cluster("s", PREPARE[0]).run()


def test_a_group_without_nodes_is_named_when_the_time_is_up(
    cluster: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster("s", *PREPARE).run()
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "4")
    with pytest.raises(RetryableError, match="stage 'text': no node of group absent took the work within 4 s"):
        cluster("other", {**PREPARE[0], "group": "absent"}).run()
    monkeypatch.setattr("camel_ray.stages.supervised._tokenise", here_tokenise)
    with pytest.raises(RetryableError, match="stage 'alone': its 1 workers on group absent did not start within 4 s"):
        cluster("s", *PREPARE, {**TRAIN[0], "group": "absent"}).run()


def here_tokenise(context: Any, tokens: Path, dataset: Any, rows: Any) -> None:
    from camel_ray.training.tokens import tokenise

    tokenise(tokens, dataset, rows, stage="alone", progress=context.progress)


def test_a_node_that_does_not_see_the_storage_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"stage 'text': a worker node does not see .*executor: Job"):
        ray_session._call(tmp_path / "gone" / "mark", "stage 'text'", here, ())
