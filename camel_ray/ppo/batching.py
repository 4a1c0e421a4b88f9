"""Cuts sequences into micro-batches by a token budget, balanced over ranks.

Every rank gets the same number of micro-batches, because each forward pass of a ZeRO engine is a collective: a rank
with one fewer would leave the others waiting for ever. Where there are fewer sequences than ranks, a rank gets empty
micro-batches, which its role runs on a dummy token.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Sequence

MicroBatch = list[int]
"""Indices of the sequences that go through a model together."""
_PADDING = 1 / 16
"""Padding a micro-batch may hold, as a share of the budget: about what starting another one costs."""


def balance(lengths: Sequence[int], *, ranks: int, budget: int) -> list[list[MicroBatch]]:
    """Micro-batches of each rank, `ranks` lists of equal length.

    A micro-batch costs its number of sequences times its longest one, and costs at most `budget` tokens unless a single
    sequence is longer. Sequences of similar length go together, and a micro-batch ends where its padding would cost
    more than a new one. Ranks differ in tokens by at most about one sequence. No sequences: every rank gets none.
    """
    if not lengths:
        return [[] for _ in range(ranks)]
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    own: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in longest_first:
        load, rank = heapq.heappop(loads)
        own[rank].append(index)
        heapq.heappush(loads, (load + lengths[index], rank))
    cut = [_cut(indices, lengths, budget) for indices in own]
    count = max(len(batches) for batches in cut)
    return [_fill(batches, count) for batches in cut]


def _cut(indices: list[int], lengths: Sequence[int], budget: int) -> list[MicroBatch]:
    """Cut a list sorted by falling length: the first of a micro-batch is its longest."""
    batches: list[MicroBatch] = []
    longest = padding = 0
    for index in indices:
        padding += longest - lengths[index]
        if batches and longest * (len(batches[-1]) + 1) <= budget and padding <= _PADDING * budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest, padding = lengths[index], 0
    return batches


def _fill(batches: list[MicroBatch], count: int) -> list[MicroBatch]:
    """Reach `count` by halving the fullest micro-batch, or with empty ones where only single sequences are left."""
    batches = [list(batch) for batch in batches]
    while len(batches) < count:
        fullest = max(range(len(batches)), key=lambda i: len(batches[i]), default=None)
        if fullest is None or len(batches[fullest]) < 2:
            batches.append([])
        else:
            batch = batches[fullest]
            half = math.ceil(len(batch) / 2)
            batches[fullest : fullest + 1] = [batch[:half], batch[half:]]
    return batches


def decode_rows(budget: int, longest: int) -> int:
    """Answers that are decoded together, for a budget of tokens in a forward pass and sequences of `longest` tokens.

    Decoding keeps no activations, only keys and values: eight times what a training pass may hold.
    """
    return max(1, 8 * budget // longest)


def mini_batches(count: int, parts: int, *, seed: int) -> list[list[int]]:
    """A seeded shuffle of `count` sequences in `parts` parts of nearly equal size; parts that would be empty are left
    out.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [order[a:b] for a, b in itertools.pairwise(bounds) if b > a]
