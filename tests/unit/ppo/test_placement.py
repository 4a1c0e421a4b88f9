"""Placement: from the spec to groups of hosts."""

from __future__ import annotations

from typing import Any

import pytest

from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.errors import SpecError
from camel_ray.ppo.placement import GroupPlan, needed_roles, place


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
        ({"zero": 3, "roles": {"actor": {"zero": 1}}}, True),
        ({"placement": "split"}, False),
    ],
)
def test_rollout_shares_the_actors_weights_only_where_they_are_whole_and_near(
    fields: dict[str, Any], shared: bool
) -> None:
    spec = spec_of(**fields)
    assert place(spec, workers=1, where="ppo").shares_actor(spec) is shared


def test_roles_together_with_different_workers_are_refused() -> None:
    with pytest.raises(SpecError, match=r"ppo\.roles: .*same number of workers \(actor 1, critic 2,"):
        place(spec_of(roles={"critic": {"workers": 2}}), workers=1, where="ppo")


def test_a_missing_role_is_named() -> None:
    with pytest.raises(SpecError, match="role 'rollout' is not placed"):
        place(spec_of(placement=[["actor", "reference", "critic", "reward"]]), workers=1, where="ppo")
