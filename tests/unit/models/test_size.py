"""Sizes of models that nobody loads: exact from a configuration, assumed from a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo_roles import LoraSpec
from camel_ray.errors import ModelError
from camel_ray.models.adapters import add_lora
from camel_ray.models.size import model_size

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}


@pytest.mark.parametrize("tied", [True, False])
def test_counts_are_those_of_the_model(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(**SHAPE, tie_word_embeddings=tied)
    config.save_pretrained(tmp_path)
    size = model_size(ModelSpec(source=str(tmp_path)))
    assert size.parameters == sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    assert size.head == (0 if tied else 300 * 32)
    config.num_labels = 1
    judge = LlamaForSequenceClassification(config)
    assert size.reward_parameters == sum(p.numel() for p in judge.parameters())
    assert size.value_parameters == size.reward_parameters + 1
    assert (size.layers, size.hidden, size.heads, size.kv_heads, size.head_dim) == (2, 32, 4, 2, 8)
    assert (size.intermediate, size.vocabulary, size.assumed) == (80, 300, "")


@pytest.mark.parametrize("targets", [None, ["q_proj", "down_proj"]])
def test_adapter_parameters_are_those_of_peft(targets: list[str] | None) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    adapted = add_lora(model, LoraSpec(rank=4, targets=targets), seed=0)
    size = model_size(ModelSpec(config={"model_type": "llama", **SHAPE}))
    assert size.adapter_parameters(4, targets) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_overrides_and_the_tokenizers_vocabulary_count(tmp_path: Path) -> None:
    LlamaConfig(**SHAPE).save_pretrained(tmp_path)
    assert model_size(ModelSpec(source=str(tmp_path), config={"num_hidden_layers": 3})).layers == 3
    scratch = ModelSpec(config={"model_type": "llama", **{k: v for k, v in SHAPE.items() if k != "vocab_size"}})
    assert model_size(scratch, vocabulary=777).vocabulary == 777


def test_another_family_is_counted_too(tmp_path: Path) -> None:
    GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=300).save_pretrained(tmp_path)
    size = model_size(ModelSpec(source=str(tmp_path)))
    assert (size.hidden, size.layers, size.intermediate, size.kv_heads) == (32, 2, 128, 4)
    assert size.adapter_parameters(1, None) == 2 * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))


def test_a_70b_model_is_counted_without_room_for_it() -> None:
    config = {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    config |= {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}
    assert model_size(ModelSpec(config=config)).parameters == 70_553_706_496


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", 70e9, 80),
        ("Qwen/Qwen2.5-0.5B", 0.5e9, 24),
        ("HuggingFaceTB/SmolLM2-135M", 135e6, 30),
        ("Qwen/Qwen3-235B-A22B", 235e9, 126),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7e9, 32),
    ],
)
def test_without_a_configuration_the_name_tells(name: str, parameters: float, layers: int) -> None:
    size = model_size(ModelSpec(source=name))
    assert size.parameters == pytest.approx(parameters, rel=0.01)
    assert size.layers == layers
    assert "from the name" in size.assumed


def test_a_name_that_tells_nothing_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"the size of model openai/gpt4 is not known: .* download its config\.json"):
        model_size(ModelSpec(source="openai/gpt4"))
    with pytest.raises(ModelError, match="'lama' is unknown"):
        model_size(ModelSpec(config={"model_type": "lama"}))
