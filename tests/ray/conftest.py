"""Real Ray clusters of several nodes on this machine: of fixed size, and with Ray's autoscaler.

Ray's own `AutoscalingCluster` is not used: it begins and ends with `ray stop --force`, which stops every Ray of the
machine, and the configuration file it reads is not part of Ray's wheel. Ray is imported in the fixtures: this file is
read before `tests/conftest.py` has given Ray its secret, which Ray reads when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from camel_ray.ray_session import ensure_ray, shut_down_ray
from rig.process import free_ports

# A node is there once its agents run, Python programs that a busy machine starts slowly; Ray's own limit is 30 s.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")

_STORE_BYTES = 80 * 2**20
_START_SECONDS = 300.0
_HEAD_ID = "f" * 51 + "00000"  # the autoscaler's fake provider numbers its nodes in this form
_COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
_MARK = "CAMEL_RAY_TEST_CLUSTER"

StartCluster = Callable[..., None]
"""Starts a cluster with a head node without devices and one node per argument (`num_cpus`, `num_gpus`, `labels`), and
connects this process to it.
"""


@pytest.fixture
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartCluster]:
    """Starts a cluster of fixed size."""
    from ray.cluster_utils import Cluster

    started: list[Cluster] = []

    def start(*nodes: Mapping[str, Any]) -> None:
        shut_down_ray()
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        head["dashboard_agent_listen_port"] = 0  # any: Ray's own choice is one fixed port, which another Ray may hold
        cluster = Cluster()
        started.append(cluster)
        for node in (head, *({"object_store_memory": _STORE_BYTES, **node} for node in nodes)):
            cluster.add_node(wait=False, **node)
        cluster.wait_for_nodes(timeout=_START_SECONDS)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        ensure_ray(cores=1)

    yield start
    shut_down_ray()
    for cluster in started:
        cluster.shutdown()


@pytest.fixture
def autoscaling_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Starts a cluster of one head without devices that grows by nodes of the given types, and connects to it.

    The types are those of Ray's cluster files: `{name: {resources, labels, node_config, min_workers, max_workers}}`.
    """
    mark = uuid.uuid4().hex

    def start(node_types: Mapping[str, Any]) -> None:
        shut_down_ray()
        import ray

        host = ray.util.get_node_ip_address()
        port, client_port = free_ports(2)
        config = {
            "cluster_name": "grows",
            "max_workers": 8,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 5,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": f"{host}:{port}",
                "head_node_id": _HEAD_ID,
                "launch_multiple": True,
            },
            # Empty, but a cluster file has to say so.
            "auth": {},
            "file_mounts": {},
            **{key: [] for key in ("cluster_synced_files", *_COMMANDS)},
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                **node_types,
            },
        }
        path = tmp_path / "cluster.json"
        path.write_text(json.dumps(config))
        environment = {
            **os.environ,
            _MARK: mark,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--port={port}", "--num-cpus=0"]
        command += [
            f"--autoscaling-config={path}",
            f"--ray-client-server-port={client_port}",
            "--dashboard-agent-listen-port=0",
            "--include-dashboard=false",
            f"--object-store-memory={_STORE_BYTES}",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        monkeypatch.setenv("RAY_ADDRESS", f"{host}:{port}")
        ensure_ray(cores=1)

    yield start
    shut_down_ray()
    _stop_marked(mark)


def _stop_marked(mark: str) -> None:
    """End the processes that carry this test's mark in their environment: ours, whoever their parent is now."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        ours = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    ours.append(process)
            except psutil.Error:
                continue
        if not ours:
            return
        for process in ours:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(ours, timeout=5)
    raise AssertionError("processes of an autoscaling test cluster did not end")
