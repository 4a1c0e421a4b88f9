"""Scores of a reward model."""

import pytest
import torch

from camel_ray.api.model import ModelSpec
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.models.load import load_reward_model
from camel_ray.models.reward import score

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
SEQUENCES = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 6], [20, 21, 22, 23]]


@pytest.fixture
def model():
    tokenizer = train_tokenizer(["some words"], vocab_size=300)
    return load_reward_model(ModelSpec(config=LLAMA), tokenizer, seed=0)


def raw(model, ids):
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits.item()


@pytest.mark.parametrize("batch_tokens", [1, 8, 1000])
def test_scores_come_in_order_and_do_not_depend_on_the_batch(model, batch_tokens):
    pad = model.config.pad_token_id
    got = score(model, SEQUENCES, pad_id=pad, batch_tokens=batch_tokens)
    assert got == pytest.approx([raw(model, s) for s in SEQUENCES], abs=1e-6)


def test_scores_are_normalised_with_the_figures_of_the_model(model):
    plain = score(model, SEQUENCES, pad_id=0, batch_tokens=64)
    model.config.reward_mean, model.config.reward_std = 2.0, 0.5
    assert score(model, SEQUENCES, pad_id=0, batch_tokens=64) == pytest.approx([(x - 2.0) / 0.5 for x in plain])


def test_training_mode_is_left_as_it_was(model):
    model.train()
    score(model, [[5]], pad_id=0, batch_tokens=8)
    assert model.training


def test_an_empty_sequence_has_no_score(model):
    with pytest.raises(ValueError, match="empty"):
        score(model, [[5], []], pad_id=0, batch_tokens=8)
    assert score(model, [], pad_id=0, batch_tokens=8) == []
