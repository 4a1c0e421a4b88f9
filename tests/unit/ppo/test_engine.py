"""The training engine in one process: exact steps, skipped ones, checkpoints, averages, adapters, recomputation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from camel_ray.api.stages.ppo_roles import GuardSpec, LoraSpec
from camel_ray.api.training import OptimizerSpec
from camel_ray.errors import ModelError
from camel_ray.models.adapters import add_lora
from camel_ray.ppo.engine import TrainingEngine
from camel_ray.ppo.engine_state import in_buckets
from camel_ray.ppo.policy import PolicyModule
from camel_ray.ppo.settings import TrainingSettings

OPTIMIZER = OptimizerSpec(
    learning_rate=1e-2, schedule="constant", warmup_ratio=0.0, weight_decay=0.1, max_grad_norm=0.5
)


class Toy(nn.Module):
    """With a frozen bias, so that not all is trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 5)
        self.last = nn.Linear(5, 1)
        self.last.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x_BH: Tensor) -> Tensor:
        y_B: Tensor = self.last(torch.tanh(self.first(x_BH.to(self.first.weight.dtype))))[:, 0] * self.scale
        return y_B


def build(module: nn.Module | None = None, *, bf16: bool = False, **changes: Any) -> TrainingEngine:
    training = TrainingSettings(**{"optimizer": OPTIMIZER, "updates": 8, "zero": 2, **changes})
    return TrainingEngine(module or Toy(), training, bf16=bf16, world=1)


def losses(module: Callable[[Tensor], Tensor], step: int, factor: float = 1.0) -> list[Callable[[], Tensor]]:
    torch.manual_seed(step)
    inputs_NBH = torch.randn(3, 4, 6)
    return [lambda x_BH=x_BH: (module(x_BH).float() ** 2).sum() * factor for x_BH in inputs_NBH]


def run(engine: TrainingEngine, *steps: int) -> list[float]:
    return [engine.update(losses(engine, step)).grad_norm for step in steps]


def everything(engine: TrainingEngine) -> list[Tensor]:
    state = engine._state
    moments = [value for master in state.masters for value in state.optimizer.state[master].values()]
    average = [] if engine._average is None else engine._average.pieces
    return [x.detach().clone() for x in (*engine.module.parameters(), *state.masters, *moments, *average)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_update_is_a_step_of_adamw_on_the_clipped_gradient_of_the_sum() -> None:
    engine, wanted = build(), Toy()
    adamw = torch.optim.AdamW(
        [
            {"params": [wanted.first.weight, wanted.last.weight], "weight_decay": 0.1},
            {"params": [wanted.first.bias], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.epsilon,
    )
    for step in range(4):
        adamw.zero_grad()
        sum(loss() for loss in losses(wanted, step)).backward()  # type: ignore[union-attr]
        norm = nn.utils.clip_grad_norm_([p for p in wanted.parameters() if p.requires_grad], OPTIMIZER.max_grad_norm)
        adamw.step()
        result = engine.update(losses(engine, step))
        assert (result.skipped, result.reason) == (False, "")
        assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    for (name, got), expected in zip(engine.module.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("factor", "guard", "reason"),
    [
        (float("nan"), GuardSpec(), "the loss is nan"),
        (float("inf"), GuardSpec(), "the loss is inf"),
        (1e25, GuardSpec(), "the gradient's norm is inf"),
        (1e4, GuardSpec(max_loss=1e3), "is beyond guard.maxLoss 1000"),
        (-1e4, GuardSpec(max_loss=1e3), "is beyond guard.maxLoss 1000"),
        (1e4, GuardSpec(max_grad_norm=1e2), "is above guard.maxGradNorm 100"),
    ],
)
def test_a_broken_update_changes_nothing_and_leaves_nothing_behind(
    bf16: bool, factor: float, guard: GuardSpec, reason: str
) -> None:
    engine, unbroken = (build(bf16=bf16, guard=guard, ema_decay=0.5) for _ in range(2))
    run(engine, 0, 1)
    before, rate = everything(engine), engine.learning_rate
    result = engine.update(losses(engine, 9, factor))
    assert result.skipped
    assert reason in result.reason
    assert same(everything(engine), before)
    assert (engine.learning_rate, engine.updates) == (rate, 2)
    run(engine, 2, 3)
    run(unbroken, 0, 1, 2, 3)
    assert same(everything(engine), everything(unbroken))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(tmp_path: Path, bf16: bool) -> None:
    engines = [
        build(bf16=bf16, ema_decay=0.9, optimizer=OPTIMIZER.model_copy(update={"schedule": "linear"})) for _ in "ab"
    ]
    whole, resumed = engines
    run(whole, 0, 1)
    whole.save(tmp_path)
    run(whole, 2, 3)
    resumed.load(tmp_path)
    assert (resumed.updates, resumed.learning_rate) == (2, pytest.approx(1e-2 * 6 / 8))
    run(resumed, 2, 3)
    assert same(everything(resumed), everything(whole))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "buffers-00000-000.safetensors",
        "ema-00000-000.safetensors",
        "engine.json",
        "exp_avg-00000-000.safetensors",
        "exp_avg_sq-00000-000.safetensors",
        "weights-00000-000.safetensors",
    ]
    weights = load_file(tmp_path / "weights-00000-000.safetensors")
    assert {name: value.dtype for name, value in weights.items()} == dict.fromkeys(
        ("first.weight", "first.bias", "last.weight"), torch.float32
    )


def test_damaged_and_foreign_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    build().save(tmp_path)
    with pytest.raises(ModelError, match=r"holds exp_avg, exp_avg_sq, weights instead of .*ema; set `emaDecay` back"):
        build(ema_decay=0.9).load(tmp_path)
    with pytest.raises(ModelError, match=r"weights-\*\.safetensors are of another model: bias"):
        build(nn.Linear(6, 1)).load(tmp_path)
    file = tmp_path / "exp_avg-00000-000.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "last.weight": torch.zeros(1, 4)}, file)
    with pytest.raises(ModelError, match=r"exp_avg-\*\.safetensors are of another model: last.weight"):
        build().load(tmp_path)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ModelError, match=r"exp_avg-00000-000.safetensors is corrupt"):
        build().load(tmp_path)
    (tmp_path / "engine.json").write_text("{")
    with pytest.raises(ModelError, match=r"engine.json is not readable"):
        build().load(tmp_path)


def test_the_average_follows_the_weights_by_its_decay() -> None:
    engine = build(ema_decay=0.8)
    average = engine.full_state()
    assert average is not None and engine.averages
    for step in range(3):
        run(engine, step)
        now = engine.full_state()
        assert now is not None
        average = {name: 0.8 * average[name] + 0.2 * value for name, value in now.items()}
    state = engine.ema_state()
    assert state is not None
    assert {*state} == {"first.weight", "first.bias", "last.weight", "last.bias", "scale"}
    for name, value in state.items():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-7, msg=name)
    with pytest.raises(ValueError, match="ema_decay"):
        build().ema_state()


def test_weights_come_in_parts_of_at_most_the_asked_size() -> None:
    engine = build()
    parts = list(engine.weight_buckets(64))
    assert [sorted(part) for part in parts] == [["first.weight"], ["first.bias", "last.bias", "last.weight"], ["scale"]]
    state = engine.full_state()
    assert state is not None
    assert all(torch.equal(value, state[name]) for part in parts for name, value in part.items())
    assert list(in_buckets({"a": 3, "b": 9, "c": 2, "d": 2, "e": 1}, 4)) == [["a"], ["b"], ["c", "d"], ["e"]]


def test_the_masters_keep_in_fp32_what_bf16_weights_round_away() -> None:
    engine = build(bf16=True, optimizer=OPTIMIZER.model_copy(update={"learning_rate": 1e-7}))
    before = everything(engine)
    run(engine, *range(8))
    weights, masters = engine._state.module.state_dict(), engine._state.masters
    assert torch.equal(weights["first.weight"], before[0])
    assert not torch.equal(masters[0], before[4])
    assert weights["first.weight"].dtype == torch.bfloat16


def policy(lora: LoraSpec | None = None) -> PolicyModule:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, attention_dropout=0.5, **sizes))
    return PolicyModule(model if lora is None else add_lora(model, lora, seed=1))


def policy_losses(engine: TrainingEngine) -> list[Callable[[], Tensor]]:
    inputs = torch.tensor([[3, 4, 5, 6]]), torch.tensor([1, 2]), torch.tensor([5, 6])
    return [lambda: -engine(*inputs, 1.0, "none")[0].sum()]


def test_recomputed_activations_give_the_same_step_and_none_are_recomputed_elsewhere() -> None:
    engines = [build(policy(), gradient_checkpointing=recompute) for recompute in (False, True)]
    calls = []
    for layer in engines[1]._recomputed:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    norms = [engine.update(policy_losses(engine)).grad_norm for engine in engines]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert len(calls) == 2 * 2  # layers, each forward and again in backward
    assert not any(module.training for module in engines[1].module.modules())
    first, second = (engine.full_state() for engine in engines)
    assert first is not None and second is not None
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-7, msg=name)


def test_adapters_are_trained_saved_and_merged(tmp_path: Path) -> None:
    engine = build(policy(LoraSpec(rank=2)), ema_decay=0.5)
    first, plain = engine.full_state(), build(policy()).full_state()
    assert first is not None and plain is not None
    assert first.keys() == plain.keys()
    assert all(torch.equal(first[name], plain[name]) for name in plain)
    for _ in range(3):
        engine.update(policy_losses(engine))
    state, average = engine.full_state(), engine.ema_state()
    assert state is not None and average is not None
    changed = {name for name in plain if not torch.equal(state[name], plain[name])}
    assert changed == {name for name in plain if "_proj" in name}
    assert changed == {name for name in plain if not torch.equal(average[name], state[name])}

    inputs = torch.tensor([[3, 4, 5, 6]]), torch.tensor([1, 2]), torch.tensor([5, 6])
    merged = policy()
    merged.load_state_dict(state)
    torch.testing.assert_close(merged.eval()(*inputs, 1.0, "none"), engine(*inputs, 1.0, "none"), rtol=1e-4, atol=1e-5)

    engine.save(tmp_path)
    names = load_file(tmp_path / "weights-00000-000.safetensors").keys()
    assert names and all(".lora_" in name for name in names)
    assert json.loads((tmp_path / "engine.json").read_text())["updates"] == 3
    resumed = build(policy(LoraSpec(rank=2)), ema_decay=0.5)
    resumed.load(tmp_path)
    again = resumed.full_state()
    assert again is not None
    assert all(torch.equal(again[name], state[name]) for name in state)
