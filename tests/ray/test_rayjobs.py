"""The command of jobs/rayjobs on a real Ray cluster, submitted as KubeRay's submitter does: one job, a whole pipeline.

The head offers no CPU, and the worker nodes carry the label of their group, as the RayJobs of jobs/ make them.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import JOBS, SPEC_KEY, config_map_and_rayjob
from rig.kube import wait_until
from rig.process import free_ports

STORE_BYTES = 80 * 2**20
GROUP = "camel-ray.dev/group"

Submit = Callable[[dict[str, Any]], tuple[str, str]]
"""Runs a pipeline by the command of a RayJob; gives Ray's word on how the job ended, and its log."""


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Submit]:
    """A cluster of a head and two worker nodes of group `cpu`, with the dashboard that takes jobs."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # what the image brings
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    from ray.cluster_utils import Cluster
    from ray.job_submission import JobSubmissionClient

    port, agent = free_ports(2)
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port, "object_store_memory": STORE_BYTES}
    head["dashboard_agent_listen_port"] = agent  # Ray's own choice is one fixed port, which another Ray here may hold
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1, labels={GROUP: "cpu"}, object_store_memory=STORE_BYTES, wait=False)
    cluster.wait_for_nodes(timeout=300)
    wait_until(lambda: is_healthy(agent), 180)  # KubeRay submits no job before this probe of the head succeeds, either
    client = JobSubmissionClient(f"http://127.0.0.1:{port}")

    def run(pipeline: dict[str, Any]) -> tuple[str, str]:
        (tmp_path / SPEC_KEY).write_text(yaml.safe_dump(pipeline))
        command = config_map_and_rayjob(JOBS / "rayjobs/sft.yaml")[1]["spec"]["entrypoint"]
        job = client.submit_job(entrypoint=command.replace("/etc/camel-ray", str(tmp_path)))
        until = time.monotonic() + 900
        while not client.get_job_status(job).is_terminal() and time.monotonic() < until:
            time.sleep(0.2)
        return client.get_job_status(job).value, client.get_job_logs(job)

    yield run
    cluster.shutdown()


def is_healthy(agent: int) -> bool:
    """Whether the agent of a node, which starts the jobs, answers on its port that the node is healthy."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{agent}/api/local_raylet_healthz", timeout=5) as response:
            return bool(response.read() == b"success")
    except OSError:
        return False


def laptop(storage: Path, **base: Any) -> dict[str, Any]:
    """jobs/pipelines/laptop-ray.yaml, smaller."""
    pipeline: dict[str, Any] = yaml.safe_load((JOBS / "pipelines/laptop-ray.yaml").read_text())
    pipeline["spec"]["storage"] = str(storage)
    stages = {stage["name"]: stage for stage in pipeline["spec"]["stages"]}
    stages["text"]["data"]["limit"] = 400
    stages["words"]["tokenizer"]["vocabSize"] = 400
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = {"config": {"model_type": "llama", "max_position_embeddings": 128, **shape}}
    stages["base"]["pretrain"] |= {"model": model, "steps": 6, "maxLength": 32, "batchSize": 8, "microBatchSize": 4}
    stages["base"]["pretrain"] |= base
    return pipeline


def test_a_pipeline_runs_as_one_job_skips_what_is_done_and_fails_visibly(submit: Submit, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    ended, log = submit(laptop(storage))
    assert ended == "SUCCEEDED", log
    base = storage / "laptop-ray/stages/base"
    shards = (base / "work/checkpoints/checkpoint-6/global_step6").glob("zero_pp_rank_*_optim_states.pt")
    assert len(list(shards)) == 2  # two processes shared the optimizer
    model = base / "model"
    assert json.loads((model / "manifest.json").read_text())["metrics"]["steps"] == 6
    first = model.stat().st_mtime_ns

    ended, log = submit(laptop(storage))  # deleted and applied again
    assert (ended, model.stat().st_mtime_ns) == ("SUCCEEDED", first), log

    ended, log = submit(laptop(storage, data="nowhere"))
    assert ended == "FAILED"
    assert "spec.stages[2].pretrain.data" in log and "Traceback" not in log
