"""Which rows make up the batch of a step: a pure function of the seed and the step.

Training sees one endless stream of rows: the rows of pass 0 in a pseudo-random order, then those of pass 1 in another,
and so on. Step k takes rows k x batch_size and following. So a resumed run knows its data position from the step alone,
every row is seen equally often, no batch is short, and the batch of a step is the same for any number of workers.

Within a batch, rows are sorted by length before they are cut into micro-batches. This changes nothing about the
gradient of the step (a mean over its tokens), but sequences of similar length share a forward pass, which saves
padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a whole run. `lengths`: tokens of each row; `steps`: optimizer steps of the run."""

    lengths: npt.NDArray[np.int64]
    batch_size: int
    steps: int
    seed: int

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Row numbers in the order of pass `epoch`."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))

    def step(self, step: int) -> list[tuple[int, int]]:
        """(row, pass) of the batch of `step`, counted from 0, longest row first."""
        rows = len(self.lengths)
        first = step * self.batch_size
        batch: list[tuple[int, int]] = []
        for epoch in range(first // rows, (first + self.batch_size - 1) // rows + 1):
            low, high = max(first - epoch * rows, 0), min(first + self.batch_size - epoch * rows, rows)
            batch += [(int(row), epoch) for row in self.order(epoch)[low:high]]
        return sorted(batch, key=lambda item: (-int(self.lengths[item[0]]), item))

    def tokens(self) -> npt.NDArray[np.int64]:
        """Tokens seen after 0, 1, ... `steps` optimizer steps, padding not counted."""
        epochs = math.ceil(self.steps * self.batch_size / len(self.lengths))
        stream = np.concatenate([self.lengths[self.order(epoch)] for epoch in range(epochs)])
        per_step = stream[: self.steps * self.batch_size].reshape(self.steps, self.batch_size).sum(axis=1)
        return np.concatenate([[0], np.cumsum(per_step)])


def steps_for(*, rows: int, batch_size: int, epochs: float, steps: int | None) -> int:
    """Optimizer steps of a run: `steps`, or enough to see every row `epochs` times."""
    return steps if steps is not None else max(1, math.ceil(rows * epochs / batch_size))


class RankBatches(Sampler[list[int]]):
    """Micro-batches of one worker, as lists of keys `pass x rows + row` (see `StreamRows`)."""

    def __init__(self, plan: BatchPlan, *, micro_batch_size: int, workers: int, rank: int) -> None:
        self.plan, self.micro_batch_size, self.workers, self.rank = plan, micro_batch_size, workers, rank

    def __len__(self) -> int:
        return self.plan.steps * self.plan.batch_size // (self.micro_batch_size * self.workers)

    def __iter__(self) -> Iterator[list[int]]:
        rows = len(self.plan.lengths)
        group = self.micro_batch_size * self.workers
        for step in range(self.plan.steps):
            batch = [epoch * rows + row for row, epoch in self.plan.step(step)]
            # Taking turns gives every worker about the same number of tokens in the forward pass that all wait for.
            for start in range(0, len(batch), group):
                yield batch[start + self.rank : start + group : self.workers]


@dataclass(frozen=True)
class ValidationBatch:
    """Rows of one forward pass; `counted` is false for a repeat that only keeps the workers in step."""

    rows: list[int]
    counted: bool


def validation_batches(
    lengths: Sequence[int], *, micro_batch_size: int, workers: int, rank: int
) -> list[ValidationBatch]:
    """Forward passes of one worker over all rows, similar lengths together.

    In every pass all workers have equally many rows: ZeRO-3 gathers parameters and the trainers gather figures in each
    of them. Rows that do not divide come last, one per worker, and workers that have none repeat one that is not
    counted.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    group = micro_batch_size * workers
    even = len(order) // workers * workers
    batches = [
        ValidationBatch(order[start + rank : min(start + group, even) : workers], counted=True)
        for start in range(0, even, group)
    ]
    if rest := order[even:]:
        batches.append(ValidationBatch([rest[min(rank, len(rest) - 1)]], counted=rank < len(rest)))
    return batches
