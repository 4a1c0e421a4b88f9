"""AdamW over whole parameters: what every ZeRO stage comes down to where there is nothing to shard.

With one rank, and at ZeRO 0, DeepSpeed's hooks, buckets and copies cost time and save no memory. Here parameters and
gradients are views of a few flat tensors, so that an update is a handful of operations whatever the number of
parameters: one all-reduce (with several ranks), one norm, one fused AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from camel_ray.api.training import OptimizerSpec
from camel_ray.ppo.engine_state import Fragment, Judge, by_weight_decay, new_adamw, start_moments

_ALIGNMENT = 64
"""Elements. Every parameter starts at a multiple, as if it had been allocated alone."""
_ROW = 4096
"""Elements of which a norm is taken at a time. One over millions is off by 1e-4 in fp32 on a CPU."""


class FlatOptimizer:
    """Whole parameters, gradients and moments on every rank. Methods and fields: see `Optimization`."""

    sharded = False

    def __init__(self, module: nn.Module, spec: OptimizerSpec, *, bf16: bool, world: int, device: torch.device) -> None:
        self.module = module.to(device)
        self.device = device
        self.fragments: dict[str, Fragment] = {}
        self.masters: list[Tensor] = []
        self._world = world
        self._max_norm = spec.max_grad_norm
        self._weights: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._sums: list[Tensor] = []
        for parameter in module.parameters():
            parameter.data = parameter.data.to(torch.bfloat16 if bf16 else torch.float32)
            if world > 1:
                dist.broadcast(parameter.data, src=0)
        decays = []
        for decay, group in by_weight_decay(module):
            self._flatten(group)
            decays.append(spec.weight_decay if decay else 0.0)
        groups = [{"params": [m], "weight_decay": decay} for m, decay in zip(self.masters, decays, strict=True)]
        self.optimizer = new_adamw(groups, spec)
        start_moments(self.optimizer, self.masters)

    def _flatten(self, group: list[tuple[str, nn.Parameter]]) -> None:
        size = _aligned(sum(_aligned(p.numel()) for _, p in group), _ROW)
        weights = torch.zeros(size, dtype=group[0][1].dtype, device=self.device)
        gradients = torch.zeros_like(weights)
        start = 0
        for name, parameter in group:
            piece = slice(start, start + parameter.numel())
            weights[piece].copy_(parameter.data.view(-1))
            parameter.data = weights[piece].view(parameter.shape)
            parameter.grad = gradients[piece].view(parameter.shape)
            self.fragments[name] = Fragment(len(self.masters), start, 0, parameter.numel())
            start += _aligned(parameter.numel())
        whole = weights.dtype == torch.float32
        self._weights.append(weights)
        self._gradients.append(gradients)
        # bf16 gradients of micro-batches are added up in fp32.
        self._sums.append(gradients if whole else torch.zeros_like(gradients, dtype=torch.float32))
        self.masters.append(weights if whole else weights.float())

    def __call__(self, *inputs: Any) -> Any:
        """A forward pass."""
        return self.module(*inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch to those of this update."""
        loss.backward()  # type: ignore[no-untyped-call]
        for total, gradient in zip(self._sums, self._gradients, strict=True):
            if total is not gradient:
                total.add_(gradient)
                gradient.zero_()

    @torch.no_grad()
    def step(self, judge: Judge) -> None:
        """Clip and step if `judge` accepts the norm; clear the gradients."""
        if self._world > 1:
            for total in self._sums:
                dist.all_reduce(total)
        norms = [torch.linalg.vector_norm(total.view(-1, _ROW), dim=1) for total in self._sums]
        norm = torch.linalg.vector_norm(torch.cat(norms))
        if judge(norm):
            shrink = float(self._max_norm / (norm + 1e-6))
            for master, total in zip(self.masters, self._sums, strict=True):
                master.grad = total.mul_(shrink) if shrink < 1.0 else total
            self.optimizer.step()
            for master in self.masters:
                master.grad = None
            self.publish()
        for total in self._sums:
            total.zero_()

    def whole(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """They always are."""
        return nullcontext()

    @torch.no_grad()
    def publish(self) -> None:
        """Make the masters the parameters of the forward pass."""
        for weights, master in zip(self._weights, self.masters, strict=True):
            if weights is not master:
                weights.copy_(master)


def _aligned(numel: int, to: int = _ALIGNMENT) -> int:
    return -(-numel // to) * to
