"""Flat experience: what is selected, padded and put back is the same tokens."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camel_ray.errors import ModelError
from camel_ray.ppo.experience import (
    Experience,
    concatenate,
    from_answers,
    join_indices,
    load_experience,
    save_experience,
)
from camel_ray.ppo.ragged import discounted_sum, gather_index


def experience_of(sizes: list[tuple[int, int]]) -> Experience:
    """Prompts and answers of the given lengths; every token id is unique."""
    ids = iter(range(10_000))
    prompts = [[next(ids) for _ in range(p)] for p, _ in sizes]
    answers = [[next(ids) for _ in range(a)] for _, a in sizes]
    return from_answers(
        prompts,
        answers,
        [[-float(t) for t in answer] for answer in answers],
        [len(answer) % 2 == 0 for answer in answers],
        groups=list(range(len(sizes))),
        policy_versions=[3] * len(sizes),
    )


sizes_of = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=8)


@given(sizes=sizes_of, data=st.data())
def test_select_keeps_the_tokens_and_log_probabilities_of_a_sequence_together(
    sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    whole = experience_of(sizes)
    rows = data.draw(st.permutations(range(len(sizes))))[: data.draw(st.integers(1, len(sizes)))]
    part = whole.select(torch.tensor(rows))
    assert part.lengths_B.tolist() == [sum(sizes[row]) for row in rows]
    assert part.groups_B.tolist() == list(rows)
    assert part.rollout_logprobs_A.tolist() == [-float(t) for t in part.tokens_N[part.action_N].tolist()]


@given(sizes=sizes_of)
def test_padding_points_each_action_token_at_the_token_before_it(sizes: list[tuple[int, int]]) -> None:
    whole = experience_of(sizes)
    rows = list(range(len(sizes)))[::-1]
    batch = whole.sequences.padded(rows)
    assert batch.input_BT.shape == (len(sizes), max(p + a for p, a in sizes))
    flat = batch.input_BT.reshape(-1)
    assert flat[batch.index_A + 1].tolist() == batch.target_A.tolist()
    assert (
        batch.target_A.tolist()
        == whole.select(torch.tensor(rows)).tokens_N[whole.select(torch.tensor(rows)).action_N].tolist()
    )


@given(sizes=sizes_of, data=st.data())
def test_gather_index_undoes_a_permutation_of_sequences(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    whole = experience_of(sizes)
    order = torch.tensor(data.draw(st.permutations(range(len(sizes)))))
    moved = whole.select(order)
    back = moved.rollout_logprobs_A[gather_index(moved.action_lengths_B, order.argsort())]
    assert torch.equal(back, whole.rollout_logprobs_A)


def test_a_field_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="values_A has 3 entries, but there are 2 per action"):
        experience_of([(2, 2)]).with_(values_A=torch.zeros(3))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(0.0, 1.0))
def test_the_scan_by_doubling_equals_the_recurrence(lengths: list[int], discount: float) -> None:
    values = torch.linspace(-1.0, 2.0, max(sum(lengths), 1), dtype=torch.float64)[: sum(lengths)]
    expected: list[float] = []
    for part in torch.split(values, lengths):
        running, sums = 0.0, []
        for value in reversed(part.tolist()):
            running = value + discount * running
            sums.append(running)
        expected += sums[::-1]
    actual = discounted_sum(values, torch.tensor(lengths), discount)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_what_was_saved_is_read_back_also_where_fields_share_their_memory(tmp_path: Path) -> None:
    whole = experience_of([(3, 2), (1, 4)])
    whole = whole.with_(logprobs_A=whole.rollout_logprobs_A)
    save_experience(whole, tmp_path / "round" / "experience.safetensors")
    again = load_experience(tmp_path / "round" / "experience.safetensors")
    for f in fields(Experience):
        kept, read = getattr(whole, f.name), getattr(again, f.name)
        assert (kept is None and read is None) or torch.equal(kept, read), f.name
    (tmp_path / "other").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="holds no experience"):
        load_experience(tmp_path / "other")


@given(first=sizes_of, second=sizes_of)
def test_parts_joined_are_the_whole_and_so_are_their_indices(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    parts = [experience_of(first), experience_of(second)]
    whole = concatenate(parts)
    index = join_indices([part.index() for part in parts])
    assert whole.index() == index
    rows = list(range(len(index)))[::-1]
    assert whole.select(torch.tensor(rows)).index() == index.select(rows)
