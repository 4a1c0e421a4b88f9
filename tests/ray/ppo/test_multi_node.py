"""Split PPO over a Ray of several nodes: roles go to the worker groups they ask for, and learn the same as on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from camel_ray.ppo.groups import HostGroup

GROUP = "camel-ray.dev/group"
CLUSTER = {"groups": [{"name": "train", "replicas": 2}, {"name": "serve", "replicas": 1}]}
FIELDS: dict[str, Any] = {
    "placement": "split",
    "roles": {
        "actor": {"group": "train", "workers": 2, "zero": 2},
        "critic": {"group": "train", "workers": 2, "zero": 3},
        "reference": {"group": "serve"},
        "reward": {"group": "serve"},
        "rollout": {"group": "serve", "workers": 2},
    },
}


def _node_of(_: Any) -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def where_hosts_went(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Fills while groups settle: the worker groups of the nodes that host each role."""
    import ray

    found: dict[str, set[str]] = {}
    original = HostGroup.settle

    def settle(group: HostGroup) -> None:
        original(group)
        nodes = {node["NodeID"]: node["Labels"].get(GROUP, "none") for node in ray.nodes()}
        ids = [
            host.actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()) for host in group.hosts
        ]
        found[group.plan.name] = {nodes[node] for node in ray.get(ids)}

    monkeypatch.setattr(HostGroup, "settle", settle)
    return found


def test_split_roles_live_on_their_worker_groups_and_learn_the_same(
    ppo: Any,
    tmp_path: Path,
    plain: tuple[Path, dict[str, torch.Tensor]],
    assert_same: Any,
    ray_cluster: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = {"num_cpus": 2, "labels": {GROUP: "train"}}
    ray_cluster(train, train, {"num_cpus": 4, "labels": {GROUP: "serve"}})
    found = where_hosts_went(monkeypatch)
    weights = ppo.weights(tmp_path, cluster=CLUSTER, **FIELDS)
    assert_same(weights, plain[1], atol=5e-5)
    assert found == {
        "actor": {"train"},
        "critic": {"train"},
        "reference": {"serve"},
        "reward": {"serve"},
        "rollout": {"serve"},
    }


def test_a_cluster_that_grows_runs_the_stage(
    ppo: Any,
    tmp_path: Path,
    plain: tuple[Path, dict[str, torch.Tensor]],
    assert_same: Any,
    autoscaling_ray: Callable[[Any], None],
) -> None:
    def node(group: str, cpus: int, most: int) -> dict[str, Any]:
        return {"resources": {"CPU": cpus}, "labels": {GROUP: group}, "node_config": {}, "max_workers": most}

    autoscaling_ray({"train": node("train", 2, 2), "serve": node("serve", 4, 1)})
    groups = [{"name": n, "minReplicas": 0, "maxReplicas": m} for n, m in (("train", 2), ("serve", 1))]
    weights = ppo.weights(tmp_path, cluster={"groups": groups, "autoscaling": {"enabled": True}}, **FIELDS)
    assert_same(weights, plain[1], atol=5e-5)
    assert any("waits" in note or "missing" in note for note in ppo.notes(tmp_path)), ppo.notes(tmp_path)
