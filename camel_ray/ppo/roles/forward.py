"""How a share of the experience goes through a model: micro-batch by micro-batch, and back into order.

All ranks of a group have equally many micro-batches, some perhaps empty; an empty one runs on a dummy token, because
a forward pass of a sharded model is a collective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camel_ray.ppo.batching import MicroBatch
from camel_ray.ppo.experience import PaddedBatch, Sequences
from camel_ray.ppo.ragged import gather_index

_DUMMY = PaddedBatch(
    torch.zeros((1, 2), dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
)


def padded(sequences: Sequences, rows: MicroBatch, device: torch.device) -> PaddedBatch:
    """A micro-batch on the device; a dummy for an empty one."""
    return (sequences.padded(rows) if rows else _DUMMY).to(device)


@torch.no_grad()
def per_action(
    forward: Callable[[PaddedBatch], Tensor],
    sequences: Sequences,
    micro_batches: Sequence[MicroBatch],
    device: torch.device,
) -> Tensor:
    """Results of `forward`, one per action token, float32 (A,) on the CPU in the order of the sequences."""
    parts = [forward(padded(sequences, rows, device)) for rows in micro_batches]
    filled = [(part, rows) for part, rows in zip(parts, micro_batches, strict=True) if rows]
    if not filled:
        return torch.zeros(0)
    order_B = torch.tensor([row for _, rows in filled for row in rows])
    flat_A = torch.cat([part for part, _ in filled]).float().cpu()
    if bool((order_B[1:] > order_B[:-1]).all()):
        return flat_A
    return flat_A[gather_index(sequences.action_lengths_B[order_B], order_B.argsort())]


def on(values: Tensor | None, like: Tensor) -> Tensor:
    """A field of the experience on the device and in the type of `like`."""
    assert values is not None, "the phase that fills this field has not run"
    return values.to(device=like.device, dtype=like.dtype)
