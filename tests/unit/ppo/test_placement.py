"""Placement: from the spec to groups of hosts."""

from __future__ import annotations

from typing import Any

import pytest

from camel_ray.api.cluster import ClusterSpec
from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.errors import SpecError
from camel_ray.ppo.placement import GroupPlan, needed_roles, place, settings_of
from camel_ray.ray_session import GROUP_LABEL


def spec_of(**fields: Any) -> PpoStageSpec:
    return PpoStageSpec.model_validate({"prompts": "p", "reward": {"model": "rm"}, **fields})


def test_colocated_is_one_group_of_all_roles() -> None:
    placement = place(spec_of(), workers=2, where="ppo")
    assert placement.groups == (GroupPlan(("actor", "critic", "reference", "reward", "rollout"), 2),)
    assert placement.hosts == 2


def test_split_gives_each_role_its_own_group() -> None:
    placement = place(spec_of(placement="split", roles={"rollout": {"workers": 3}}), workers=1, where="ppo")
    assert [(group.name, group.size) for group in placement.groups] == [
        ("actor", 1),
        ("critic", 1),
        ("reference", 1),
        ("reward", 1),
        ("rollout", 3),
    ]
    assert placement.hosts == 7


def test_mixed_placement_leaves_out_roles_that_are_not_needed() -> None:
    fields = {"advantage": "rloo", "samplesPerPrompt": 2, "reward": {"function": {"path": "r.py"}}}
    spec = spec_of(placement=[["actor", "reference"], ["critic", "reward"], ["rollout"]], **fields)
    assert needed_roles(spec) == ("actor", "reference", "rollout")
    assert [group.name for group in place(spec, workers=1, where="ppo").groups] == ["actor+reference", "rollout"]


@pytest.mark.parametrize(
    ("fields", "shared"),
    [
        ({"zero": 2}, True),
        ({"zero": 3}, False),
        ({"zero": 3, "offload": "all"}, False),
        ({"zero": 3, "roles": {"actor": {"zero": 1}}}, True),
        ({"placement": "split"}, False),
        ({"placement": "split", "rollout": {"engine": "vllm"}}, False),
    ],
)
def test_rollout_shares_the_actors_weights_only_where_they_are_whole_and_near(
    fields: dict[str, Any], shared: bool
) -> None:
    spec = spec_of(**fields)
    assert place(spec, workers=2, where="ppo").shares_actor(spec) is shared


def test_one_process_has_nothing_to_shard_so_rollout_shares_its_weights_at_any_stage() -> None:
    assert place(spec := spec_of(zero=3), workers=1, where="ppo").shares_actor(spec)
    offloaded = spec_of(zero=3, offload="all")
    assert not place(offloaded, workers=1, where="ppo").shares_actor(offloaded)


def test_roles_together_with_different_workers_are_refused() -> None:
    with pytest.raises(SpecError, match=r"ppo\.roles: .*same number of workers \(actor 1, critic 2,"):
        place(spec_of(roles={"critic": {"workers": 2}}), workers=1, where="ppo")


def test_a_missing_role_is_named() -> None:
    with pytest.raises(SpecError, match="role 'rollout' is not placed"):
        place(spec_of(placement=[["actor", "reference", "critic", "reward"]]), workers=1, where="ppo")


def test_without_a_kl_penalty_there_is_no_reference() -> None:
    assert needed_roles(spec_of(kl={"controller": "none"})) == ("actor", "critic", "reward", "rollout")


def test_a_group_carries_the_labels_of_its_worker_group_and_its_own() -> None:
    cluster = ClusterSpec.model_validate(
        {"groups": [{"name": "big", "replicas": 2, "gpus": 8}, {"name": "cheap", "replicas": 4}]}
    )
    spec = spec_of(
        placement=[["actor", "critic"], ["reference"], ["reward"], ["rollout"]],
        roles={
            "reference": {"group": "cheap"},
            "reward": {"labels": {"zone": "a"}},
            "rollout": {"group": "elsewhere", "labels": {"zone": "b"}, "workers": 3},
        },
    )
    groups = place(spec, workers=2, where="ppo", group="big", cluster=cluster).groups
    assert [(group.name, dict(group.labels), group.on_gpu) for group in groups] == [
        ("actor+critic", {GROUP_LABEL: "big"}, True),
        ("reference", {GROUP_LABEL: "cheap"}, False),
        ("reward", {"zone": "a", GROUP_LABEL: "big"}, True),
        ("rollout", {"zone": "b", GROUP_LABEL: "elsewhere"}, None),
    ]
    assert groups[3].worker_group == "elsewhere"
    without = place(spec_of(), workers=1, where="ppo").groups[0]
    assert (without.labels, without.on_gpu, without.worker_group) == ({}, None, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"critic": {"group": "big"}}, r"need the same group \(actor none, critic big,"),
        ({"critic": {"labels": {"a": "b"}}}, r"need the same labels \(actor {}, critic {'a': 'b'},"),
    ],
)
def test_roles_together_on_different_nodes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        place(spec_of(roles=fields), workers=1, where="ppo")


@pytest.mark.parametrize("rollout", [{"engine": "vllm"}, {"staleness": 1}])
def test_an_engine_or_overlap_that_needs_rollout_apart_is_refused_beside_other_roles(rollout: dict[str, Any]) -> None:
    ((field, value),) = rollout.items()
    with pytest.raises(SpecError, match=f"rollout.{field}: {value} needs rollout in processes of its own, but it is"):
        place(spec_of(rollout=rollout), workers=1, where="ppo")
    assert place(spec_of(rollout=rollout, placement="split"), workers=1, where="ppo").hosts == 5


def test_a_split_vllm_engine_takes_several_devices_per_process() -> None:
    spec = spec_of(
        placement="split", rollout={"engine": "vllm", "tensorParallel": 4}, roles={"rollout": {"workers": 2}}
    )
    placement = place(spec, workers=1, where="ppo")
    assert (placement.group_of("rollout").devices, placement.hosts, placement.devices) == (4, 6, 12)


def test_fields_of_a_role_override_those_of_the_stage() -> None:
    spec = spec_of(zero=1, offload="optimizer", roles={"critic": {"zero": 0, "offload": "none", "precision": "fp32"}})
    actor, critic = settings_of(spec, "actor"), settings_of(spec, "critic")
    assert (actor.zero, actor.offload, actor.precision) == (1, "optimizer", "auto")
    assert (critic.zero, critic.offload, critic.precision) == (0, "none", "fp32")


def test_only_a_reference_that_lives_with_an_adapted_actor_is_the_actor() -> None:
    adapted = spec_of(lora={})
    assert place(adapted, workers=1, where="ppo").reference_is_actor(adapted)
    apart = spec_of(lora={}, placement="split")
    assert not place(apart, workers=1, where="ppo").reference_is_actor(apart)
    assert not place(spec_of(), workers=1, where="ppo").reference_is_actor(spec_of())
