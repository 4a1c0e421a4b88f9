"""Answers divided among the ranks of a host group, and the order in which their results come back.

A share is row numbers and micro-batches, nothing more: every rank reads the experience from Ray's object store and
selects its rows itself, so that dividing costs the driver the same for short and for long answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camel_ray.ppo.batching import MicroBatch, balance


@dataclass(frozen=True)
class Share:
    """What one rank works on."""

    rows: list[int]
    """Rows of the experience."""
    micro_batches: list[MicroBatch]
    """Numbered within `rows`. All ranks have equally many, some perhaps empty."""


@dataclass(frozen=True)
class Shares:
    """The shares of all ranks of a group."""

    by_rank: list[Share]

    def of(self, rank: int) -> tuple[Share]:
        """The positional argument a rank gets."""
        return (self.by_rank[rank],)

    @property
    def order(self) -> list[int]:
        """Rows in the order in which the ranks' results lie one after the other."""
        return [row for share in self.by_rank for row in share.rows]


def divide(lengths: Sequence[int], *, ranks: int, budget: int, rows: Sequence[int] | None = None) -> Shares:
    """Shares of the answers with these `lengths` (tokens), micro-batches of at most `budget` padded tokens.

    `rows`: their row numbers in the experience. Default: all of it, in order.
    """
    shares = []
    for batches in balance(lengths, ranks=ranks, budget=budget):
        own = [index for batch in batches for index in batch]
        numbered, start = [], 0
        for batch in batches:
            numbered.append(list(range(start, start + len(batch))))
            start += len(batch)
        shares.append(Share(own if rows is None else [rows[index] for index in own], numbered))
    return Shares(shares)
