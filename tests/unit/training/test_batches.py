"""Batches as a function of seed and step."""

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.training.batches import BatchPlan, RankBatches, steps_for, validation_batches


def plan(rows=23, batch_size=8, steps=9, seed=1):
    return BatchPlan(np.arange(1, rows + 1), batch_size, steps, seed)


def rows_of(keys, rows):
    return [key % rows for key in keys]


@given(rows=st.integers(1, 40), steps=st.integers(1, 12), seed=st.integers(0, 5))
def test_every_row_is_seen_equally_often(rows, steps, seed):
    made = plan(rows=rows, steps=steps, seed=seed)
    seen = Counter(row for step in range(steps) for row, _ in made.step(step))
    counts = [seen[row] for row in range(rows)]
    assert sum(counts) == 8 * steps
    assert max(counts) - min(counts) <= 1


def test_a_batch_across_two_passes_takes_rows_of_both():
    made = plan(rows=5, batch_size=4)
    assert Counter(epoch for _, epoch in made.step(1)) == {0: 1, 1: 3}


def test_the_batch_of_a_step_is_the_same_for_any_number_of_workers():
    made = plan(rows=40, batch_size=8, steps=6)

    def batches(workers, micro):
        ranks = [list(RankBatches(made, micro_batch_size=micro, workers=workers, rank=r)) for r in range(workers)]
        per_step = 8 // (micro * workers)
        return [
            sorted(key for rank in ranks for batch in rank[step * per_step : (step + 1) * per_step] for key in batch)
            for step in range(6)
        ]

    assert batches(1, 8) == batches(1, 2) == batches(2, 2) == batches(4, 2)


def test_micro_batches_hold_rows_of_similar_length():
    made = plan(rows=64, batch_size=16, steps=1)
    micro = [
        [made.lengths[i] for i in rows_of(batch, 64)]
        for batch in RankBatches(made, micro_batch_size=4, workers=1, rank=0)
    ]
    assert [len(m) for m in micro] == [4, 4, 4, 4]
    assert all(min(left) >= max(right) for left, right in pairwise(micro))


def test_workers_get_about_the_same_number_of_tokens():
    made = plan(rows=64, batch_size=16, steps=4)
    tokens = [
        sum(
            int(made.lengths[i])
            for batch in RankBatches(made, micro_batch_size=4, workers=2, rank=r)
            for i in rows_of(batch, 64)
        )
        for r in range(2)
    ]
    assert abs(tokens[0] - tokens[1]) < 0.1 * sum(tokens)


def test_order_depends_on_seed_and_pass():
    made = plan()
    assert list(made.order(0)) == list(plan().order(0))
    assert list(made.order(0)) != list(made.order(1))
    assert list(made.order(0)) != list(plan(seed=2).order(0))


def test_tokens_add_up_the_lengths_of_the_batches():
    made = plan(rows=10, batch_size=4, steps=5)
    tokens = made.tokens()
    assert tokens[0] == 0 and len(tokens) == 6
    for step in range(5):
        assert tokens[step + 1] - tokens[step] == sum(int(made.lengths[row]) for row, _ in made.step(step))


def test_steps_follow_from_epochs_unless_they_are_set():
    assert steps_for(rows=100, batch_size=32, epochs=1.0, steps=None) == 4
    assert steps_for(rows=100, batch_size=32, epochs=0.1, steps=None) == 1
    assert steps_for(rows=100, batch_size=32, epochs=3.0, steps=7) == 7


@given(rows=st.integers(0, 30), workers=st.integers(1, 4), micro=st.integers(1, 5))
def test_validation_counts_every_row_once_and_keeps_workers_in_step(rows, workers, micro):
    lengths = [(7 * i) % 11 + 1 for i in range(rows)]
    ranks = [validation_batches(lengths, micro_batch_size=micro, workers=workers, rank=r) for r in range(workers)]
    counted = sorted(row for batches in ranks for b in batches if b.counted for row in b.rows)
    assert counted == list(range(rows))
    assert len({tuple(len(b.rows) for b in batches) for batches in ranks}) == 1
    assert all(1 <= len(b.rows) <= micro for batches in ranks for b in batches)
