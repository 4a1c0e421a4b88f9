"""Which groups of answers can teach something."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.ppo.advantages import dr_grpo, rloo
from camel_ray.ppo.filters import rows_with_signal, uniform_share


def test_groups_whose_rewards_are_all_equal_are_left_out() -> None:
    assert rows_with_signal([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], [0, 0, 4, 4, 2, 2]) == [2, 3]
    assert uniform_share([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], [0, 0, 4, 4, 2, 2]) == pytest.approx(2 / 3)


def test_members_of_a_group_need_not_stand_together() -> None:
    assert rows_with_signal([1.0, 5.0, 2.0, 5.0], [7, 3, 7, 3]) == [0, 2]


def test_a_group_of_one_and_one_with_a_nan_have_no_signal() -> None:
    assert rows_with_signal([1.0, float("nan"), 2.0], [0, 1, 1]) == []
    assert uniform_share([], []) == 0.0


@given(st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5]), st.integers(0, 3)), max_size=20))
def test_an_answer_is_kept_where_its_group_has_any_advantage(answers: list[tuple[float, int]]) -> None:
    rewards, groups = [r for r, _ in answers], [g for _, g in answers]
    rewards_B, groups_B = torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups, dtype=torch.long)
    kept = rows_with_signal(rewards, groups)
    for estimator in (rloo, dr_grpo):
        useful = groups_B[estimator(rewards_B, groups_B).abs() > 1e-9].tolist()
        assert {groups[row] for row in kept} == set(useful)
