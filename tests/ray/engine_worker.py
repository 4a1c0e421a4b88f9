"""One rank of tests/ray/test_engine.py, as a process: runs every scenario at every ZeRO stage and writes what it saw.

Usage: engine_worker.py RANK WORLD ENDPOINT DIRECTORY SCENARIO..., where a scenario is `STAGE-PRECISION-OFFLOAD` or
`models-STAGE`. The models have matrices larger than what ZeRO-3 keeps whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo_roles import GuardSpec, LoraSpec
from camel_ray.api.training import OptimizerSpec
from camel_ray.models.adapters import adapter_off, add_lora
from camel_ray.models.load import load_causal_lm, load_tokenizer
from camel_ray.models.value import load_value_model
from camel_ray.ppo.engine import TrainingEngine, join_process_group, loading
from camel_ray.ppo.policy import PolicyModule
from camel_ray.ppo.settings import TrainingSettings

UPDATES = 4
ROWS = 8
DECAY = 0.9


class Toy(nn.Module):
    """Matrices, biases, a norm, a frozen layer, a parameter that only some updates use, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 401)
        self.frozen = nn.Linear(401, 401)
        self.second = nn.Linear(401, 401)
        self.norm = nn.LayerNorm(401)
        self.last = nn.Linear(401, 1)
        self.sometimes = nn.Parameter(torch.ones(3, 3))
        self.register_buffer("scale", torch.tensor(2.0))
        self.frozen.requires_grad_(False)

    def forward(self, x_BH: Tensor, with_it: bool) -> Tensor:
        x_BH = self.frozen(torch.tanh(self.first(x_BH)))
        y_B: Tensor = self.last(self.norm(torch.tanh(self.second(x_BH))))[:, 0] * self.scale
        return y_B + self.sometimes.sum() if with_it else y_B


def settings(zero: int, **changes: Any) -> TrainingSettings:
    optimizer = OptimizerSpec(learning_rate=1e-2, weight_decay=0.1, warmup_ratio=0.5, max_grad_norm=0.5)
    return TrainingSettings(
        **{"optimizer": optimizer, "updates": UPDATES + 4, "zero": zero, "ema_decay": DECAY, **changes}
    )


def losses(
    engine: TrainingEngine, step: int, rank: int, world: int, *, factor: float = 1.0
) -> list[Callable[[], Tensor]]:
    """This rank's micro-batches of a global batch that is the same for every world: two rows a micro-batch."""
    torch.manual_seed(100 + step)
    inputs_BH, targets_B = torch.randn(ROWS, 16), torch.randn(ROWS)
    dtype = next(p.dtype for p in engine.module.parameters())

    def loss(rows: slice) -> Tensor:
        errors_B = engine(inputs_BH[rows].to(dtype), step % 2 == 1).float() - targets_B[rows]
        return (errors_B**2).sum() / ROWS * factor

    own = range(rank * ROWS // world, (rank + 1) * ROWS // world, 2)
    return [lambda start=start: loss(slice(start, start + 2)) for start in own]


def snapshot(engine: TrainingEngine) -> list[Tensor]:
    """Everything an update may change on this rank: fp32 weights, moments, step counts, average, parameters."""
    state = engine._state
    moments = [value for master in state.masters for value in state.optimizer.state[master].values()]
    local = [getattr(p, "ds_tensor", p) for p in engine.module.parameters()]
    average = [] if engine._average is None else engine._average.pieces
    return [x.detach().clone() for x in (*state.masters, *moments, *average, *local)]


def fragments(engine: TrainingEngine) -> list[Tensor]:
    """This rank's fp32 weights, moments and average without the padding between them, which ZeRO-3 never sets."""
    state = engine._state
    flats = [
        [master, *(value for name, value in state.optimizer.state[master].items() if name != "step"), average]
        for master, average in zip(state.masters, engine._average.pieces, strict=True)
    ]
    return [
        flat.detach()[part.start : part.start + part.numel]
        for part in state.fragments.values()
        for flat in flats[part.flat]
    ]


def train(engine: TrainingEngine, steps: range, rank: int, world: int) -> list[float]:
    return [engine.update(losses(engine, step, rank, world)).grad_norm for step in steps]


def scenario(directory: Path, zero: int, *, bf16: bool, offload: str, rank: int, world: int) -> dict[str, Any]:
    def build(**changes: Any) -> TrainingEngine:
        return TrainingEngine(Toy(), settings(zero, offload=offload, **changes), bf16=bf16, world=world)

    name = f"zero{zero}-{'bf16' if bf16 else 'fp32'}-{offload}-world{world}"
    seen: dict[str, Any] = {}
    plain = build()
    seen["zero"] = plain.zero
    weights, rates = [plain.full_state()], []
    seen["norms"] = []
    for step in range(UPDATES):
        rates.append(plain.learning_rate)
        seen["norms"] += train(plain, range(step, step + 1), rank, world)
        weights.append(plain.full_state())
        if step + 1 == UPDATES // 2:
            plain.save(directory / name)
    seen["weights"], seen["rates"], seen["ema"] = weights, rates, plain.ema_state()
    parts = list(plain.weight_buckets(700_000))
    seen["parts"] = [{key: value.clone() for key, value in part.items()} for part in parts]

    broken = build(guard=GuardSpec(max_loss=1e4, max_grad_norm=1e6))
    train(broken, range(2), rank, world)
    before = snapshot(broken)
    seen["broken"] = [
        broken.update(losses(broken, 7, rank, world, factor=factor if rank == world - 1 else 1.0))
        for factor in (float("nan"), float("inf"), 1e6)
    ]
    guard, broken._guard = broken._guard, GuardSpec(max_grad_norm=1e-3)
    seen["broken"].append(broken.update(losses(broken, 7, rank, world)))
    broken._guard = guard
    seen["changed"] = [not torch.equal(a, b) for a, b in zip(before, snapshot(broken), strict=True)]
    seen["rate_after_broken"] = broken.learning_rate
    train(broken, range(2, UPDATES), rank, world)
    seen["weights_after_broken"] = broken.full_state()
    seen["same_as_unbroken"] = all(torch.equal(a, b) for a, b in zip(fragments(plain), fragments(broken), strict=True))

    seen["resumed"] = {}
    for path in sorted(directory.glob("zero*")):
        if path.is_dir() and ("bf16" in path.name) is bf16:
            resumed = build()
            resumed.load(path)
            start = resumed.full_state()
            train(resumed, range(UPDATES // 2, UPDATES), rank, world)
            seen["resumed"][path.name] = (start, resumed.full_state(), resumed.ema_state())
    return seen


def models(directory: Path, *, zero: int, rank: int, world: int) -> dict[str, Any]:
    """A policy with and without adapters and a value model, loaded from files as the roles load them."""
    tokenizer = load_tokenizer(str(directory / "policy"))
    inputs = torch.tensor([[3, 4, 5, 6]]), torch.tensor([1, 2]), torch.tensor([5, 6])
    seen: dict[str, Any] = {}
    for lora in (None, LoraSpec(rank=4)):
        spec, training = ModelSpec(source=str(directory / "policy")), settings(zero)
        with loading(spec, training, bf16=False, world=world):
            model = load_causal_lm(spec, tokenizer, seed=3)
        held = sum(parameter.numel() for parameter in model.parameters())
        policy = PolicyModule(model if lora is None else add_lora(model, lora, seed=1))
        engine = TrainingEngine(policy, training, bf16=False, world=world)
        with torch.no_grad():
            first = engine(*inputs, 1.0, "none")[0]
        norms = [
            engine.update([lambda engine=engine: -engine(*inputs, 1.0, "none")[0].sum() / world]).grad_norm
            for _ in range(3)
        ]
        with torch.no_grad(), adapter_off(policy):
            off = engine(*inputs, 1.0, "none")[0]
        seen["policy" if lora is None else "adapters"] = {
            "held": held,
            "norms": norms,
            "logprobs": [first, off],
            "states": [engine.full_state(), engine.ema_state()],
        }
    spec, training = ModelSpec(source=str(directory / "reward")), settings(zero)
    with loading(spec, training, bf16=False, world=world):
        value = load_value_model(spec, tokenizer, seed=1)
    held = sum(parameter.numel() for parameter in value.parameters())
    engine = TrainingEngine(value, training, bf16=False, world=world)
    norms = [engine.update([lambda: (engine(*inputs[:2]) ** 2).sum() / world]).grad_norm for _ in range(3)]
    seen["value"] = {"held": held, "norms": norms, "logprobs": [], "states": [engine.full_state()]}
    return seen


def main() -> None:
    rank, world, endpoint, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    join_process_group(endpoint, rank=rank, world=world, timeout_seconds=1200)
    seen = {}
    for argument in sys.argv[5:]:
        if argument.startswith("models"):
            seen["models"] = models(directory, zero=int(argument[-1]), rank=rank, world=world)
            continue
        stage, precision, offload = argument.split("-")
        seen[argument] = scenario(
            directory, int(stage), bf16=precision == "bf16", offload=offload, rank=rank, world=world
        )
    torch.save(seen, directory / f"world{world}-rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
