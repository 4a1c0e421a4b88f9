"""Micro-batches: nothing lost, nothing twice, the budget kept, and the same number for every rank."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.ppo.batching import balance, mini_batches

lengths_of = st.lists(st.integers(1, 300), max_size=60)


@given(lengths=lengths_of, ranks=st.integers(1, 9), budget=st.integers(1, 700))
def test_every_sequence_goes_to_exactly_one_micro_batch(lengths: list[int], ranks: int, budget: int) -> None:
    cut = balance(lengths, ranks=ranks, budget=budget)
    assert sorted(row for batches in cut for batch in batches for row in batch) == list(range(len(lengths)))


@given(lengths=lengths_of, ranks=st.integers(1, 9), budget=st.integers(1, 700))
def test_ranks_have_equally_many_micro_batches_within_the_budget(lengths: list[int], ranks: int, budget: int) -> None:
    cut = balance(lengths, ranks=ranks, budget=budget)
    assert len(cut) == ranks
    assert len({len(batches) for batches in cut}) == 1
    for batch in (batch for batches in cut for batch in batches):
        assert len(batch) <= 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60), ranks=st.integers(1, 9))
def test_ranks_differ_by_at_most_the_longest_sequence(lengths: list[int], ranks: int) -> None:
    loads = [
        sum(lengths[row] for batch in batches for row in batch) for batches in balance(lengths, ranks=ranks, budget=512)
    ]
    assert max(loads) - min(loads) <= max(lengths)


@given(lengths=lengths_of, budget=st.integers(1, 100_000))
def test_one_rank_pads_little_however_large_the_budget(lengths: list[int], budget: int) -> None:
    (batches,) = balance(lengths, ranks=1, budget=budget)
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert sum(longest - lengths[row] for row in batch) <= budget / 16


def test_a_long_answer_does_not_pad_the_short_ones() -> None:
    (batches,) = balance([100, 10, 10, 10], ranks=1, budget=1000)
    assert batches == [[0], [1, 2, 3]]


def test_fewer_sequences_than_ranks_leave_ranks_with_an_empty_micro_batch() -> None:
    assert balance([5, 3], ranks=4, budget=100) == [[[0]], [[1]], [[]], [[]]]


def test_no_sequences_make_no_micro_batches() -> None:
    assert balance([], ranks=3, budget=10) == [[], [], []]


def test_nine_equal_micro_batches_on_four_ranks_are_three_for_each() -> None:
    cut = balance([10] * 9, ranks=4, budget=10)
    assert [len(batches) for batches in cut] == [3, 3, 3, 3]


@given(count=st.integers(0, 50), parts=st.integers(1, 9), seed=st.integers(0, 100))
def test_mini_batches_hold_every_sequence_once_and_none_is_empty(count: int, parts: int, seed: int) -> None:
    cut = mini_batches(count, parts, seed=seed)
    assert sorted(row for part in cut for row in part) == list(range(count))
    assert all(cut) and len(cut) == min(count, parts)


@pytest.mark.parametrize("seed", [0, 1])
def test_mini_batches_repeat_with_the_seed(seed: int) -> None:
    assert mini_batches(20, 3, seed=seed) == mini_batches(20, 3, seed=seed) != mini_batches(20, 3, seed=seed + 5)
