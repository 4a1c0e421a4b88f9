"""Before anything is loaded, the ppo stage compares what the roles need with what their devices have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.errors import SpecError
from camel_ray.ppo.placement import place
from camel_ray.stages.ppo import Models, _check_memory

MODEL = ModelSpec(
    config={
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    }
)
GIB = 2**30


def check(free: int | None) -> None:
    spec = PpoStageSpec.model_validate({"prompts": "p", "reward": {"answer": {}}, "placement": "split"})
    placement = place(spec, workers=2, where="stage 'tuned', ppo")
    groups: Any = {
        role: SimpleNamespace(plan=plan, free_device_memory=lambda: free)
        for plan in placement.groups
        for role in plan.roles
    }
    tokenizer: Any = range(32_000)
    models = Models(MODEL, MODEL, None, "tokenizer", tokenizer, own_reward_tokens=False)
    _check_memory(spec, placement, models, groups, where="stage 'tuned', ppo")


def test_roles_that_fit_pass_and_cpus_are_not_judged() -> None:
    check(80 * GIB)
    check(None)


def test_roles_that_do_not_fit_are_refused_with_a_table() -> None:
    with pytest.raises(SpecError, match=r"stage 'tuned', ppo does not fit the memory of its devices") as raised:
        check(4 * GIB)
    lines = str(raised.value).splitlines()
    assert any("actor" in line and "of 4.0: does not fit" in line for line in lines)
    assert "optimizer" in lines[1]
