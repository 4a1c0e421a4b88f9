"""Batches of plain text: padding, and what masked language modelling hides."""

import datasets
import numpy as np
import torch

from camel_ray.training.collate import IGNORED, CausalCollator, MaskedCollator, StreamRows

MASKED = MaskedCollator(pad_id=0, mask_id=99, special_ids=(0, 1), vocab_size=90, share=0.15, seed=3)


def row(ids, epoch=0, number=0):
    return {"input_ids": ids, "stream": (epoch, number)}


def test_causal_batch_pads_on_the_right_and_ignores_padding():
    batch = CausalCollator(0)([row([5, 6, 7]), row([8])])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_padding_token_inside_a_row_is_still_a_label():
    batch = CausalCollator(7)([row([5, 7, 6]), row([8, 9])])
    assert batch["labels"].tolist() == [[5, 7, 6], [8, 9, IGNORED]]


def test_rows_of_equal_length_need_no_mask():
    assert set(CausalCollator(0)([row([5, 6]), row([7, 8])])) == {"input_ids", "labels"}


def test_about_15_percent_are_hidden_and_80_percent_of_those_by_the_mask_token():
    ids = [2 + i % 80 for i in range(20_000)]
    batch = MASKED([row(ids)])
    hidden = batch["labels"][0] != IGNORED
    assert abs(float(hidden.float().mean()) - 0.15) < 0.01
    masked = batch["input_ids"][0][hidden] == 99
    assert abs(float(masked.float().mean()) - 0.8) < 0.03
    unchanged = batch["input_ids"][0][hidden] == torch.tensor(ids)[hidden]
    assert abs(float(unchanged.float().mean()) - 0.1) < 0.03
    assert batch["labels"][0][hidden].tolist() == torch.tensor(ids)[hidden].tolist()


def test_what_is_hidden_depends_on_row_and_pass_only():
    ids = list(range(2, 60))
    first = MASKED([row(ids, 0, 5)])["input_ids"]
    assert torch.equal(first, MASKED([row(ids, 1, 1), row(ids, 0, 5)])["input_ids"][1:])
    assert not torch.equal(first, MASKED([row(ids, 1, 5)])["input_ids"])
    assert not torch.equal(first, MASKED([row(ids, 0, 6)])["input_ids"])


def test_special_tokens_are_never_hidden_and_every_row_hides_something():
    for number in range(30):
        labels = MASKED([row([1, 5, 1, 0], 0, number)])["labels"][0]
        assert labels.tolist() == [IGNORED, 5, IGNORED, IGNORED]


def test_stream_rows_know_their_pass():
    rows = StreamRows(datasets.Dataset.from_list([{"input_ids": [i]} for i in range(4)]))
    assert rows.__getitems__([2, 9]) == [
        {"input_ids": [2], "stream": (0, 2)},
        {"input_ids": [1], "stream": (2, 1)},
    ]
    assert np.array_equal(rows[3]["input_ids"], [3])
