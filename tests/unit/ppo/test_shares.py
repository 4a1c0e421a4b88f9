"""Dividing answers: every row once, equal counts per rank, numbers within the share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from camel_ray.ppo.shares import divide


@given(
    lengths=st.lists(st.integers(1, 200), max_size=40),
    ranks=st.integers(1, 9),
    budget=st.integers(16, 600),
)
def test_every_answer_is_in_one_micro_batch_of_one_rank(lengths: list[int], ranks: int, budget: int) -> None:
    rows = [1000 + index for index in range(len(lengths))]
    shares = divide(lengths, ranks=ranks, budget=budget, rows=rows)
    assert len(shares.by_rank) == ranks
    assert sorted(shares.order) == rows
    assert len({len(share.micro_batches) for share in shares.by_rank}) == 1
    for share in shares.by_rank:
        assert [index for batch in share.micro_batches for index in batch] == list(range(len(share.rows)))
        for batch in share.micro_batches:
            own = [lengths[share.rows[index] - 1000] for index in batch]
            assert len(own) <= 1 or len(own) * max(own) <= budget


def test_without_rows_the_share_counts_from_0() -> None:
    shares = divide([5, 3], ranks=1, budget=100)
    assert shares.of(0)[0].rows == [0, 1]
    assert shares.of(0)[0].micro_batches == [[0, 1]]
