"""Devices are checked and reserved on real clusters: too few are refused in seconds, growth is waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from camel_ray.api.cluster import ClusterSpec
from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.errors import RetryableError, SpecError
from camel_ray.ppo.placement import Placement, place
from camel_ray.ppo.reservation import Reservation, reserve
from camel_ray.progress import Progress, ProgressReader
from camel_ray.ray_session import GROUP_LABEL, ensure_ray, shut_down_ray

TRAIN, ROLLOUT = {GROUP_LABEL: "train"}, {GROUP_LABEL: "rollout"}


def placement_of(*, train: int = 2, rollout: int = 1, group: str = "train", gpus: int = 0) -> Placement:
    """[actor, critic, reference] on worker group `group`, [rollout] on worker group rollout."""
    spec = PpoStageSpec.model_validate(
        {
            "prompts": "p",
            "reward": {"answer": {}},
            "placement": [["actor", "critic", "reference"], ["rollout"]],
            "roles": {
                **{role: {"group": group, "workers": train} for role in ("actor", "critic", "reference")},
                "rollout": {"group": "rollout", "workers": rollout},
            },
        }
    )
    cluster = ClusterSpec.model_validate(
        {"groups": [{"name": name, "replicas": 1, "gpus": gpus} for name in ("train", "rollout")]}
    )
    return place(spec, workers=1, where="ppo", cluster=cluster)


def notes(progress: Progress) -> list[str]:
    return [event["message"] for event in ProgressReader(progress.path).new_events()]


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    return Progress(tmp_path / "progress.jsonl")


@ray.remote
class Whereabouts:
    def labels(self) -> dict[str, str]:
        return dict(ray.get_runtime_context().get_node_labels())


def labels_of_hosts(placement: Placement, reservation: Reservation) -> list[str]:
    hosts = [
        Whereabouts.options(**reservation.options(plan, rank)).remote()
        for plan in placement.groups
        for rank in range(plan.size)
    ]
    labels = ray.get([host.labels.remote() for host in hosts], timeout=600)
    return [label[GROUP_LABEL] for label in labels]


def test_hosts_live_on_the_nodes_of_their_worker_groups(ray_cluster: Callable[..., None], progress: Progress) -> None:
    ray_cluster({"num_cpus": 1, "labels": TRAIN}, {"num_cpus": 1, "labels": TRAIN}, {"num_cpus": 2, "labels": ROLLOUT})
    placement = placement_of(train=2, rollout=2)
    reservation = reserve(placement, autoscaling=False, limit_seconds=600, progress=progress)
    assert labels_of_hosts(placement, reservation) == ["train", "train", "rollout", "rollout"]
    reservation.release()
    states = {entry["state"] for entry in placement_group_table().values()}
    assert states == {"REMOVED"}


def test_too_many_devices_and_wrong_labels_are_refused_in_seconds_with_a_table(
    ray_cluster: Callable[..., None], progress: Progress
) -> None:
    ray_cluster({"num_cpus": 2, "num_gpus": 2, "labels": TRAIN}, {"num_cpus": 2, "labels": ROLLOUT})
    # Beyond the time limit of the test: nothing waits for the placement's.
    with pytest.raises(SpecError) as refused:
        reserve(placement_of(train=4, rollout=3, gpus=1), autoscaling=False, limit_seconds=7200, progress=progress)
    assert str(refused.value).splitlines() == [
        "the placement does not fit the cluster (3 nodes), which does not grow; lower `workers`, name another `group` "
        "or other `labels`, or enlarge the cluster:",
        "  group                   wanted                                there            missing",
        "  actor+critic+reference  4 GPU on camel-ray.dev/group=train    2 GPU on 1 node  2 GPU",
        "  rollout                 3 GPU on camel-ray.dev/group=rollout  0 GPU on 1 node  3 GPU",
    ]
    with pytest.raises(SpecError, match=r"no node has camel-ray.dev/group=trian; there is rollout, train"):
        reserve(placement_of(group="trian"), autoscaling=False, limit_seconds=7200, progress=progress)
    assert placement_group_table() == {}  # nothing was reserved for what cannot fit


def test_devices_in_use_are_waited_for_up_to_the_limit(
    ray_cluster: Callable[..., None], progress: Progress, tmp_path: Path
) -> None:
    ray_cluster({"num_cpus": 2, "labels": TRAIN}, {"num_cpus": 1, "labels": ROLLOUT})
    others = Progress(tmp_path / "others.jsonl")  # where a slow machine may have a word about free devices, too
    first = reserve(placement_of(), autoscaling=False, limit_seconds=600, progress=others)
    with pytest.raises(RetryableError, match=r"did not become free .* within 10 s \(limits.placementSeconds\)"):
        reserve(placement_of(), autoscaling=False, limit_seconds=10, progress=progress)
    assert notes(progress) == [
        "waiting for devices that others use or that are starting: actor+critic+reference (2 CPU on "
        "camel-ray.dev/group=train), rollout (1 CPU on camel-ray.dev/group=rollout)"
    ]
    first.release()
    reserve(placement_of(), autoscaling=False, limit_seconds=600, progress=others).release()


def test_a_growing_cluster_is_waited_for_and_the_note_names_what_is_missing(
    autoscaling_ray: Callable[[Mapping[str, Any]], None], progress: Progress
) -> None:
    worker = {"node_config": {}, "min_workers": 0, "max_workers": 2}
    autoscaling_ray(
        {
            "train": {"resources": {"CPU": 1}, "labels": TRAIN, **worker},
            "rollout": {"resources": {"CPU": 1}, "labels": ROLLOUT, **worker},
        }
    )
    placement = placement_of(train=2, rollout=1)
    reservation = reserve(placement, autoscaling=True, limit_seconds=900, progress=progress)
    said = notes(progress)
    assert said[0] == (
        "waiting for the cluster to grow: missing 2 x {CPU: 1} on camel-ray.dev/group=train for "
        "actor+critic+reference, 1 x {CPU: 1} on camel-ray.dev/group=rollout for rollout; at most 900 s"
    )
    assert said[-1] == "all devices of the placement are reserved"
    assert len(said) == len(set(said)) <= 6  # said again only when it changes
    assert labels_of_hosts(placement, reservation) == ["train", "train", "rollout"]
    reservation.release()
    # Beyond what the cluster may grow to, there is a limit.
    with pytest.raises(RetryableError, match="the cluster did not grow to what the placement needs within 5 s"):
        reserve(placement_of(rollout=3), autoscaling=True, limit_seconds=5, progress=progress)


def test_on_one_machine_hosts_share_the_cores_and_labels_do_not_apply(progress: Progress) -> None:
    ensure_ray(cores=2)
    placement = placement_of(train=4, rollout=4)
    reservation = reserve(placement, autoscaling=False, limit_seconds=1, progress=progress)
    assert reservation.options(placement.groups[0], 3) == {"num_cpus": 0, "num_gpus": 0}


def test_on_one_machine_with_gpus_each_host_gets_one_or_the_placement_is_refused(progress: Progress) -> None:
    shut_down_ray()
    ray.init(address="local", num_cpus=1, num_gpus=3, include_dashboard=False, log_to_driver=False)
    try:
        placement = placement_of(train=2, rollout=1)
        reservation = reserve(placement, autoscaling=False, limit_seconds=1, progress=progress)
        assert reservation.options(placement.groups[0], 1) == {"num_cpus": 0, "num_gpus": 1}
        with pytest.raises(SpecError, match="has 4 processes with a GPU each, but this machine has 3 GPUs"):
            reserve(placement_of(train=2, rollout=2), autoscaling=False, limit_seconds=1, progress=progress)
    finally:
        shut_down_ray()
