"""An experience cut for the ranks of a host group, and the way back.

The same cut serves all roles of a group (reference, critic and actor see the same sequences), so each rank's part
goes through Ray's object store once however many roles read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import torch
from torch import Tensor

from camel_ray.ppo.batching import MicroBatch, balance
from camel_ray.ppo.experience import Experience, Sequences
from camel_ray.ppo.ragged import gather_index


class Shares:
    """`sequences` over `ranks` in micro-batches of at most `budget` padded tokens."""

    def __init__(self, sequences: Experience | Sequences, *, ranks: int, budget: int) -> None:
        cut = balance(sequences.lengths_B.tolist(), ranks=ranks, budget=budget)
        rows = [[row for batch in batches for row in batch] for batches in cut]
        self.micro_batches: list[list[MicroBatch]] = [_renumber(batches) for batches in cut]
        """By rank, numbered within the rank's own part."""
        self.order_B = torch.tensor([row for part in rows for row in part], dtype=torch.long)
        self._action_lengths_B = sequences.action_lengths_B
        self._refs = [ray.put(sequences.select(torch.tensor(part, dtype=torch.long))) for part in rows]

    def of(self, rank: int) -> tuple[Any, list[MicroBatch]]:
        """Reference to a rank's part, and its micro-batches."""
        return self._refs[rank], self.micro_batches[rank]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Action-token results of all ranks, (A,), in the order of the experience they were cut from."""
        return torch.cat(list(parts))[gather_index(self._action_lengths_B[self.order_B], self.order_B.argsort())]


def _renumber(batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """Row numbers within the rank's part, where micro-batches lie one after the other."""
    renumbered, start = [], 0
    for batch in batches:
        renumbered.append(list(range(start, start + len(batch))))
        start += len(batch)
    return renumbered
