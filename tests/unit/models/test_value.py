"""The critic's model: where its first values come from, and that it survives a save."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from camel_ray.api.model import ModelSpec
from camel_ray.models.reward import score
from camel_ray.models.value import load_value_model

SEQUENCE = [5, 6, 7, 8]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {f"t{i}": i for i in range(40)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="t0")),
        pad_token="t2",
        eos_token="t1",
        unk_token="t0",
    )


def config(**fields: float) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=2,
        **fields,
    )


def test_from_a_reward_model_the_last_value_is_its_normalised_score(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    reward = LlamaForSequenceClassification(config(num_labels=1, reward_mean=0.3, reward_std=0.5)).eval()
    reward.save_pretrained(tmp_path)
    values = load_value_model(ModelSpec(source=str(tmp_path)), tokenizer, seed=0)(
        torch.tensor([SEQUENCE]), torch.tensor([3])
    )
    expected = score(reward, [SEQUENCE], pad_id=2, batch_tokens=100)
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_from_a_language_model_the_first_values_are_zero_and_learn(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    LlamaForCausalLM(config()).save_pretrained(tmp_path)
    model = load_value_model(ModelSpec(source=str(tmp_path)), tokenizer, seed=0)
    values = model(torch.tensor([SEQUENCE]), torch.tensor([0, 2]))
    assert values.tolist() == [0.0, 0.0]
    (values - 1.0).square().sum().backward()
    assert model.head.weight.grad is not None and model.head.weight.grad.abs().sum() > 0


def test_a_saved_value_model_gives_the_same_values_and_holds_no_pickle(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    LlamaForCausalLM(config()).save_pretrained(tmp_path / "lm")
    model = load_value_model(ModelSpec(source=str(tmp_path / "lm")), tokenizer, seed=0)
    torch.nn.init.normal_(model.head.weight)
    model.save(tmp_path / "value")
    again = load_value_model(ModelSpec(source=str(tmp_path / "value")), tokenizer, seed=0)
    at = torch.tensor([SEQUENCE]), torch.arange(4)
    torch.testing.assert_close(again(*at), model(*at), rtol=0, atol=0)
    assert {path.suffix for path in (tmp_path / "value").iterdir()} == {".json", ".safetensors"}
