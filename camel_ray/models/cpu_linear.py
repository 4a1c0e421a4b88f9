"""Linear layers that run on oneDNN, for CPUs on which torch's own way to multiply float32 matrices is slow.

torch multiplies float32 matrices on a CPU with MKL, which keeps its AVX-512 kernels for Intel's processors: on others
it falls back to AVX2 and reaches less than half of what the machine can do. oneDNN, which torch ships too, asks the
processor what it can do and not who made it. The results agree to the rounding of float32.

A layer only changes its class, so names of parameters, hooks and checkpoints stay as they are. Away from the CPU, in
other types and where it brings nothing it is a plain `nn.Linear`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def speed_up_linear_layers(model: nn.Module) -> None:
    """Let the linear layers of `model` use oneDNN where that is faster on this machine. Changes them in place."""
    if not _mkl_is_slow():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """Lay the weights out for small batches as long as the body runs, which must not change them.

    Decoding multiplies the same weights by a few rows many times; laying them out costs about as much as one product.
    """
    layers = [m for m in model.modules() if isinstance(m, OneDnnLinear) and _fits(m.weight)]
    for layer in layers:
        layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    try:
        yield
    finally:
        for layer in layers:
            del layer.packed


class OneDnnLinear(nn.Linear):
    """`nn.Linear` through oneDNN."""

    packed: Tensor
    """Weights in oneDNN's own layout; set within `packed_weights` only."""

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear`."""
        if not (_fits(self.weight) and _fits(input)):
            return linear(input, self.weight, self.bias)
        if torch.is_grad_enabled() and (self.weight.requires_grad or input.requires_grad):
            output: Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return output
        return _product(input, self.__dict__.get("packed", self.weight), self.bias)


class _Linear(torch.autograd.Function):
    """y = x W^T + b and its gradients."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        of_input = _product(gradient, weight.t()) if needs_input else None
        of_weight = of_bias = None
        gradient_NO = gradient.reshape(-1, gradient.shape[-1])
        if needs_weight:
            input_NI = input.reshape(-1, input.shape[-1])
            # The same matrix either way round; oneDNN is faster with the longer side as columns.
            if weight.shape[0] > weight.shape[1]:
                of_weight = _product(input_NI.t(), gradient_NO.t()).t()
            else:
                of_weight = _product(gradient_NO.t(), input_NI.t())
        if needs_bias:
            of_bias = gradient_NO.sum(0)
        return of_input, of_weight, of_bias


def _product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`input` times the transposed `weight`, by oneDNN."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise.default(input, weight, bias, "none", [], "")
    return output


def _fits(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


@cache
def _mkl_is_slow() -> bool:
    """Whether this processor has AVX-512 and MKL does not use it, because another maker than Intel built it."""
    one_dnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (one_dnn and torch.backends.cpu.get_cpu_capability() == "AVX512"):
        return False
    try:
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "GenuineIntel" not in information
