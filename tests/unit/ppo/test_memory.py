"""Memory formulas against what torch and DeepSpeed really hold, and how roles of a process add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from camel_ray.api.cluster import ClusterSpec
from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo import PpoStageSpec
from camel_ray.errors import SpecError
from camel_ray.models.memory import (
    GIB,
    backward_bytes,
    cache_bytes,
    flat_state,
    layer_bytes,
    logits_bytes,
    zero_state,
)
from camel_ray.models.size import ModelSize, model_size
from camel_ray.ppo.advice import advice
from camel_ray.ppo.memory import BUCKET_ELEMENTS, CONTEXT_BYTES, GroupMemory, estimate, refuse_what_does_not_fit
from camel_ray.ppo.placement import place

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}
EIGHT_B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
GPUS = {"groups": [{"name": "gpu", "replicas": 1, "gpus": 8}]}


def size_of(config: dict[str, Any]) -> ModelSize:
    return model_size(ModelSpec(config=config))


def test_training_state_is_what_the_engine_holds_to_the_byte_but_for_padding() -> None:
    ranks = 4
    cases: list[dict[str, Any]] = [
        {"zero": 0, "bf16": True, "average": True},
        {"zero": 1, "bf16": False},
        {"zero": 2, "bf16": False},
        {"zero": 2, "bf16": True, "average": True},
        {"zero": 2, "bf16": True, "trained": "q_proj"},
        {"zero": 3, "bf16": True, "average": True},
        {"zero": 3, "bf16": True, "trained": "q_proj"},
    ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("held_bytes.py")), str(ranks)],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(cases) + 1
    for case, measured in zip(cases, lines[1:], strict=True):
        trained, frozen, bf16, zero = measured["trained"], measured["frozen"], case["bf16"], case["zero"]
        average = 4 * trained // (ranks if zero else 1) if case.get("average") else 0
        if zero == 0:
            state = flat_state(trained, frozen, bf16=bf16)
        else:
            state = zero_state(
                trained, frozen, stage=zero, offload="none", bf16=bf16, ranks=ranks, bucket_elements=BUCKET_ELEMENTS
            )
        expected = state.weights + state.optimizer + average
        if zero in (0, 3):  # gradients have their place from the start
            expected += state.gradients
        else:
            # In fp32 a shard of a gradient is a view that keeps the whole one, of one parameter here.
            assert measured["gradients"] == pytest.approx(expected + state.gradients, rel=0.05), case
        if zero == 3:  # the bucket, too; what is gathered for use is not there yet
            expected += 4 * (trained + frozen)
        assert measured["start"] == pytest.approx(expected, rel=0.01), case


def test_offload_moves_state_to_the_host() -> None:
    options: dict[str, Any] = {"stage": 3, "bf16": True, "ranks": 4, "bucket_elements": 10}
    there = zero_state(1000, 0, offload="none", **options)
    assert (there.weights, there.gradients, there.optimizer, there.host) == (500, 1000, 3000, 0)
    optimizer = zero_state(1000, 0, offload="optimizer", **options)
    assert (optimizer.weights, optimizer.gradients, optimizer.optimizer, optimizer.host) == (500, 0, 0, 4000)
    everything = zero_state(1000, 0, offload="all", **options)
    assert (everything.weights, everything.host) == (0, 4500)


def saved_bytes(config: dict[str, Any], *, dtype: torch.dtype, recompute: bool) -> int:
    """Bytes that autograd keeps of a forward pass of the backbone over 2 x 64 tokens."""
    arguments = {key: value for key, value in config.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**arguments)).to(dtype)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(input_ids=torch.zeros((2, 64), dtype=torch.long), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize(("dtype", "bf16"), [(torch.float32, False), (torch.bfloat16, True)])
def test_activations_are_what_autograd_keeps(dtype: torch.dtype, bf16: bool) -> None:
    for change in ({}, {"hidden_size": 128}, {"intermediate_size": 512}, {"num_key_value_heads": 4}, {"head_dim": 32}):
        config = {**TINY, **change}
        estimated = backward_bytes(size_of(config), 2 * 64, bf16=bf16, recompute=False)
        measured = saved_bytes(config, dtype=dtype, recompute=False)
        assert estimated == pytest.approx(measured, rel=0.02), change


def test_with_recomputation_only_the_inputs_of_the_layers_are_kept() -> None:
    size = size_of(TINY)
    # The estimate adds the one layer that is computed again in the backward pass.
    estimated = backward_bytes(size, 128, bf16=False, recompute=True) - 128 * layer_bytes(size, bf16=False)
    assert estimated == pytest.approx(saved_bytes(TINY, dtype=torch.float32, recompute=True), rel=0.1)


def test_cache_is_keys_and_values_of_all_layers() -> None:
    assert cache_bytes(size_of(TINY), 10, bf16=True) == 10 * 2 * 3 * 2 * 16 * 2


def spec_of(**fields: Any) -> PpoStageSpec:
    return PpoStageSpec.model_validate({"prompts": "p", "reward": {"model": "rm"}, **fields})


def memory_of(
    spec: PpoStageSpec, config: dict[str, Any], *, workers: int = 8, device: int | None = 80 * GIB
) -> tuple[GroupMemory, ...]:
    placement = place(spec, workers=workers, where="ppo", group="gpu", cluster=ClusterSpec.model_validate(GPUS))
    size = size_of(config)
    sizes = dict.fromkeys(("actor", "critic", "reference", "reward", "rollout"), size)
    return estimate(spec, placement, sizes, devices=dict.fromkeys(placement.groups, device))  # type: ignore[arg-type]


def test_roles_of_a_process_add_up_what_they_keep_but_work_in_turn() -> None:
    (group,) = memory_of(spec_of(), EIGHT_B)
    by_role = {role.role: role for role in group.roles}
    assert group.total == CONTEXT_BYTES + sum(r.kept for r in group.roles) + max(r.working for r in group.roles)
    parameters = size_of(EIGHT_B).parameters
    actor = by_role["actor"]
    # bf16 weights whole; at stage 2 over 8 ranks fp32 gradients, masters and two moments in eighths.
    assert (actor.weights, actor.gradients, actor.optimizer) == (
        2 * parameters,
        4 * parameters // 8,
        12 * parameters // 8,
    )
    assert by_role["rollout"].weights == 0  # the actor's own
    assert by_role["reference"].weights == 2 * parameters
    assert by_role["rollout"].cache > 0


def test_a_reference_with_the_actor_costs_no_weights_under_lora() -> None:
    (group,) = memory_of(spec_of(lora={"rank": 16}), EIGHT_B)
    by_role = {role.role: role for role in group.roles}
    assert by_role["reference"].weights == 0
    assert by_role["actor"].optimizer == 12 * size_of(EIGHT_B).adapter_parameters(16, None) // 8
    apart = memory_of(spec_of(lora={"rank": 16}, placement="split"), EIGHT_B)
    assert apart[2].roles[0].weights == 2 * size_of(EIGHT_B).parameters


def test_average_is_counted_once_and_sharded() -> None:
    plain, averaged = memory_of(spec_of(), EIGHT_B)[0], memory_of(spec_of(emaDecay=0.99), EIGHT_B)[0]
    assert averaged.total - plain.total == 4 * size_of(EIGHT_B).parameters // 8


def test_vllm_fills_its_share_of_the_device_and_needs_room_for_an_answer() -> None:
    spec = spec_of(placement="split", rollout={"engine": "vllm", "memoryShare": 0.9})
    rollout = memory_of(spec, EIGHT_B)[-1]
    assert rollout.total - CONTEXT_BYTES == pytest.approx(0.9 * 80 * GIB, rel=1e-6)
    assert rollout.fits
    assert not memory_of(spec, EIGHT_B, device=16 * GIB)[-1].fits


def test_advice_is_a_change_that_really_fits() -> None:
    spec = spec_of(gradientCheckpointing=True, samplesPerPrompt=2, advantage="group", reward={"answer": {}})

    def estimate_of(changed: PpoStageSpec) -> GroupMemory:
        return memory_of(changed, EIGHT_B, device=50 * GIB)[0]

    group = estimate_of(spec)
    assert not group.fits
    assert advice(spec, group, estimate_of) == "set roles.actor.offload: optimizer"
    changed = spec.model_copy(
        update={
            "roles": spec.roles.model_copy(
                update={"actor": spec.roles.actor.model_copy(update={"offload": "optimizer"})}
            )
        }
    )
    assert estimate_of(changed).fits
    hopeless = memory_of(spec, EIGHT_B, device=2 * GIB)[0]
    assert "no setting is enough" in advice(spec, hopeless, lambda s: memory_of(s, EIGHT_B, device=2 * GIB)[0])


def test_logits_dominate_for_a_large_vocabulary() -> None:
    assert logits_bytes(128256, 1000, bf16=True, backward=True) == 1000 * 128256 * 18


def test_what_does_not_fit_is_refused_with_a_table_of_all_roles() -> None:
    groups = memory_of(spec_of(placement=[["actor", "rollout", "reference"], ["critic"], ["reward"]]), EIGHT_B)
    with pytest.raises(SpecError) as refused:
        refuse_what_does_not_fit(groups, where="stage 'tuned', ppo")
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("stage 'tuned', ppo does not fit the memory of its devices (GiB per device); `camel-ray")
    assert lines[1].split()[:4] == ["group", "role", "weights", "gradients"]
    assert lines[2].split()[:4] == ["actor+rollout+reference", "actor", "15.0", "3.7"]
    assert lines[5].split()[-3:] == ["does", "not", "fit"]
    assert lines[-1].endswith("of 80.0: fits")
    refuse_what_does_not_fit(groups[2:], where="stage 'tuned', ppo")
