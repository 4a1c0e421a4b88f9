"""What trains a role: a module, AdamW, a schedule and an average, over any number of ranks at any ZeRO stage.

The gradient is that of a sum over a global batch, exactly: `update` takes any number of micro-batches per rank and
makes one optimizer step, or none on all ranks together if the update is broken. Where nothing is sharded the step is
plain AdamW (`FlatOptimizer`), else DeepSpeed's (`ZeroOptimizer`); no caller can tell which.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore
from transformers import PreTrainedModel, get_scheduler
from transformers.modeling_layers import GradientCheckpointingLayer

from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo_roles import GuardSpec
from camel_ray.api.training import OptimizerSpec
from camel_ray.models.adapters import merged_weights
from camel_ray.ppo.ema import WeightAverage
from camel_ray.ppo.engine_flat import FlatOptimizer
from camel_ray.ppo.engine_state import (
    Optimization,
    gather,
    in_buckets,
    load_state,
    persistent_buffers,
    save_state,
    whole_shape,
)
from camel_ray.ppo.placement import effective_zero
from camel_ray.ppo.settings import TrainingSettings

_SYNC_BYTES = 1 << 28
"""Bytes of parameters that are whole at one time while all are copied to the host."""


def meeting_point(address: str) -> TCPStore:
    """Where the others will find rank 0, at this address of its node: it listens at once, on a port that is its own."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False)


def join_process_group(
    endpoint: str, *, rank: int, world: int, timeout_seconds: float, store: TCPStore | None = None
) -> None:
    """Make this process one of `world`: NCCL where there is a GPU, gloo else. `endpoint`: host:port of rank 0, whose
    `meeting_point` is `store`.
    """
    host, _, port = endpoint.rpartition(":")
    timeout = timedelta(seconds=timeout_seconds)
    if store is not None:
        store.set_timeout(timeout)
    os.environ.update(
        MASTER_ADDR=host, MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", LOCAL_WORLD_SIZE="1"
    )
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=store or TCPStore(host, int(port), is_master=False, timeout=timeout),
        rank=rank,
        world_size=world,
        timeout=timeout,
    )


def loading(model: ModelSpec, training: TrainingSettings, *, bf16: bool, world: int) -> AbstractContextManager[None]:
    """Within it, `model` is loaded for a `TrainingEngine` with the same settings (collective).

    Under ZeRO-3 each rank gets its shards while the file is read, and never needs room for the whole model. Fresh
    weights are drawn whole all the same: sharded they would be others than those the reference draws.
    """
    if effective_zero(training.zero, training.offload, bf16=bf16, ranks=world) < 3 or model.source is None:
        return nullcontext()
    from camel_ray.ppo.engine_zero import loading_in_shards

    return loading_in_shards(training, bf16=bf16)


@dataclass(frozen=True)
class UpdateResult:
    """What became of an update. The same on all ranks."""

    grad_norm: float
    """Global L2 norm before clipping."""
    skipped: bool
    """Nothing was changed, on any rank."""
    reason: str = ""
    """Why it was skipped."""


class TrainingEngine:
    """A module, its AdamW, its schedule and its shards on one rank. All ranks have to call all methods alike."""

    def __init__(self, module: nn.Module, training: TrainingSettings, *, bf16: bool, world: int) -> None:
        self.world = world
        self.rank = dist.get_rank() if world > 1 else 0
        self.updates = 0
        """Optimizer steps taken."""
        self._guard = training.guard
        # Dropout would make the probability ratio differ from 1 before anything was learned.
        module.eval()
        self._recomputed = _recomputed_layers(module) if training.gradient_checkpointing else []
        self.zero = effective_zero(training.zero, training.offload, bf16=bf16, ranks=world)
        """ZeRO stage that is really in use: 0 where a higher one would shard nothing."""
        self._state = _optimization(module, training, stage=self.zero, bf16=bf16, world=world)
        self._average = WeightAverage(self._state.masters, training.ema_decay) if training.ema_decay else None
        self._peak = training.optimizer.learning_rate
        self._schedule = _schedule(training.optimizer, training.updates)
        self._parts = merged_weights(self._state.module)

    @property
    def module(self) -> nn.Module:
        """The module that is trained; under ZeRO-3 its parameters are shards."""
        return self._state.module

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self._state.device

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is kept."""
        return self._average is not None

    def __call__(self, *inputs: Any) -> Any:
        """A forward pass. A collective under ZeRO-3: all ranks have to call it equally often."""
        return self._state(*inputs)

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        return self._peak * self._schedule(self.updates)

    def update(self, losses: Sequence[Callable[[], Tensor]]) -> UpdateResult:
        """One optimizer step on the gradient of the sum of all losses over all ranks, or none on any rank.

        Each loss is called once and runs its own forward pass. All ranks bring equally many, at least one. The step is
        skipped if that sum or the gradient's norm is not finite or beyond the guard's limits: then weights, moments,
        schedule and average stay as they are, to the bit.
        """
        for group in self._state.optimizer.param_groups:
            group["lr"] = self.learning_rate
        total = torch.zeros((), device=self.device)
        with self._recomputing():
            for number, loss in enumerate(losses, start=1):
                value = loss()
                total += value.detach()
                self._state.backward(value, last=number == len(losses))
        result = UpdateResult(math.nan, skipped=True)

        def judge(norm: Tensor) -> bool:
            nonlocal result
            # The norm is the same on all ranks already; the maximum makes sure of the last bit.
            norm_and_loss = torch.stack([norm.to(total) / self.world, total])
            if self.world > 1:
                dist.all_reduce(norm_and_loss)
            grad_norm, whole_loss = norm_and_loss.tolist()
            reason = _broken(whole_loss, grad_norm, self._guard)
            result = UpdateResult(grad_norm, bool(reason), reason)
            return not reason

        self._state.step(judge)
        if not result.skipped:
            self.updates += 1
            if self._average is not None:
                self._average.update(self._state.masters)
        return result

    def weight_buckets(self, max_bytes: int) -> Iterator[dict[str, Tensor]]:
        """All parameters and buffers in parts of at most `max_bytes`, on rank 0; the other ranks get empty parts.

        Adapters are merged: names are those of the module without them. Every rank has to go through to the end.
        Tensors may be the live parameters, and are good until the next part.
        """
        yield from self._buckets(max_bytes, average=None)

    def full_state(self) -> dict[str, Tensor] | None:
        """All parameters and buffers, whole and on the CPU, on rank 0; None on the others.

        Sharded parameters are gathered in parts, so that no device needs room for all of them.
        """
        return self._copied(None)

    def ema_state(self) -> dict[str, Tensor] | None:
        """Like `full_state`, with the average in the place of the trained weights. ValueError if none is kept."""
        if self._average is None:
            raise ValueError("no average of the weights is kept; set ema_decay")
        return self._copied(self._average)

    def save(self, directory: Path) -> None:
        """Write weights, moments, schedule and average as safetensors, every rank its share at the same time."""
        average = None if self._average is None else self._average.pieces
        save_state(self._state, directory, updates=self.updates, ema=average, rank=self.rank, world=self.world)

    def load(self, directory: Path) -> None:
        """Read what `save` wrote, on any number of ranks and at any ZeRO stage. ModelError if it does not fit."""
        average = None if self._average is None else self._average.pieces
        self.updates = load_state(self._state, directory, ema=average)

    def _copied(self, average: WeightAverage | None) -> dict[str, Tensor] | None:
        state: dict[str, Tensor] = {}
        for part in self._buckets(_SYNC_BYTES, average):
            state.update({name: value.to("cpu", copy=True) for name, value in part.items()})
        return state if self.rank == 0 else None

    @torch.no_grad()
    def _buckets(self, max_bytes: int, average: WeightAverage | None) -> Iterator[dict[str, Tensor]]:
        parameters = dict(self.module.named_parameters())
        parts = {part.name: part for part in self._parts}
        sizes = {
            name: whole_shape(parameters[part.parameters[0]]).numel() * parameters[part.parameters[0]].element_size()
            for name, part in parts.items()
        }
        for names in in_buckets(sizes, max_bytes):
            needed = [source for name in names for source in parts[name].parameters]
            trained = [] if average is None else [name for name in needed if parameters[name].requires_grad]
            averaged = {} if average is None else gather(self._state, average.pieces, trained)
            with self._state.whole([parameters[name] for name in needed if name not in averaged]):
                values = {
                    name: averaged[name].to(parameters[name].dtype) if name in averaged else parameters[name].detach()
                    for name in needed
                }
                yield {name: parts[name].of(values) for name in names} if self.rank == 0 else {}
        buffers = persistent_buffers(self.module)
        yield buffers if self.rank == 0 else {}

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Layers recompute their activations only in training mode, in which they could not be generated with."""
        for layer in self._recomputed:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._recomputed:
                layer.training = False


def _optimization(module: nn.Module, training: TrainingSettings, *, stage: int, bf16: bool, world: int) -> Optimization:
    if stage == 0:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return FlatOptimizer(module, training.optimizer, bf16=bf16, world=world, device=device)
    # Not at the top: one process on one device never needs DeepSpeed, and starts faster without it.
    from camel_ray.ppo.engine_zero import ZeroOptimizer

    return ZeroOptimizer(module, training, stage=stage, bf16=bf16, world=world)


def _schedule(spec: OptimizerSpec, updates: int) -> Callable[[int], float]:
    """Learning rate as a share of its peak, by the number of updates before."""
    names = {"cosine": "cosine_with_min_lr", "linear": "linear", "constant": "constant_with_warmup"}
    options = {"min_lr_rate": spec.min_learning_rate_ratio} if spec.schedule == "cosine" else {}
    scheduler: Any = get_scheduler(
        names[spec.schedule],
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
        num_warmup_steps=round(spec.warmup_ratio * updates),
        num_training_steps=updates,
        scheduler_specific_kwargs=options,
    )
    share: Callable[[int], float] = scheduler.lr_lambdas[0]
    return share


def _broken(loss: float, norm: float, guard: GuardSpec) -> str:
    """Why an update must not be made, or an empty string."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient's norm is {norm}"
    if guard.max_loss is not None and abs(loss) > guard.max_loss:
        return f"the loss {loss:.4g} is beyond guard.maxLoss {guard.max_loss:g}"
    if guard.max_grad_norm is not None and norm > guard.max_grad_norm:
        return f"the gradient's norm {norm:.4g} is above guard.maxGradNorm {guard.max_grad_norm:g}"
    return ""


def _recomputed_layers(module: nn.Module) -> list[nn.Module]:
    for model in module.modules():
        if isinstance(model, PreTrainedModel) and model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers:
        # Training mode of the layer alone turns on the dropout that it applies itself, where it has one.
        for name, value in vars(layer).items():
            if "dropout" in name and isinstance(value, float):
                setattr(layer, name, 0.0)
    return list(layers)
